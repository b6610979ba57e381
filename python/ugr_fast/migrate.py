"""From a folder of MiniOneRec, or of UGR's released code, to a data folder and a folder of semantic IDs.

    NAME.index.json                  each item's semantic ID: {"0": ["<a_12>", "<b_7>", "<c_30>"], ...}
    NAME.item.json                   its texts: {"0": {"title": ..., "description": ...}, ...}
    NAME.train.inter, valid, test    user_id, item_id_list, item_id: tabs, and blanks within the history
    train/NAME*.csv, valid/, test/   user_id, history_item_id, item_id, item_sid: a history as Python prints a list

UGR trains on the `.inter` files, MiniOneRec on the CSV files that it makes from them; where a folder holds both, the
latter are read. Rows, splits and semantic IDs are taken over as they are: items that share one go on sharing it.
Neither has times, so a user's rows must stand in order of time, as both write them.
"""

from __future__ import annotations

import ast
import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ugr_fast import data, sids
from ugr_fast.configs import check
from ugr_fast.files import check_new_folder, new_folder, parse_json
from ugr_fast.trie import SidTrie

if TYPE_CHECKING:
    from ugr_fast.configs import MigrateConfig

Index = dict[str, list[str]]
"""Item -> the tokens of its semantic ID, in the order in which items are numbered."""


@dataclass(frozen=True)
class _Files:
    index: Path
    items: Path
    splits: dict[str, Path]


def migrate(config: MigrateConfig) -> dict[str, int]:
    r"""Turn a folder of MiniOneRec or UGR into `config.out`/data and `config.out`/sids.

    Items that are numbered 0..N-1, as both number them, keep their numbers, and so the rows of NAME.emb-*.npy; other
    names are numbered in their order. All files are read and checked before anything is written.

    Args:
        config: see `MigrateConfig`.

    Returns:
        The counts that data/meta.json records: items, users, rows per split, collisions of semantic IDs, and more.

    Raises:
        FileExistsError: `config.out` is a folder with something in it.
        FileNotFoundError: the folder or one of its files does not exist.
        ValueError: several files could be meant, a file is malformed, a token does not say level and code, an item
            has no semantic ID or one that begins another's, or a row names an unknown item or has no history; the
            message names the file and the item or row.

    Example:
        >>> import json, tempfile
        >>> from ugr_fast.configs import MigrateConfig
        >>> folder = Path(tempfile.mkdtemp())
        >>> index = {str(item): [f"<a_{item // 2}>", f"<b_{item % 2}>"] for item in range(4)}
        >>> _ = (folder / "Toys.index.json").write_text(json.dumps(index))
        >>> _ = (folder / "Toys.item.json").write_text(json.dumps({"0": {"title": "Kite", "description": "Red"}}))
        >>> for split in ("train", "valid", "test"):
        ...     lines = "user_id:token\titem_id_list:token_seq\titem_id:token", "7\t0 1\t3", ""
        ...     _ = (folder / f"Toys.{split}.inter").write_text("\n".join(lines))
        >>> counts = migrate(MigrateConfig(folder, folder / "out"))
        >>> counts["items"], counts["train_rows"], data.load(folder / "out" / "data").titles[:2]
        (4, 1, ['Kite', '1'])
        >>> sids.load_codes(folder / "out" / "sids").tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    check(config)
    check_new_folder(config.out)
    files = _find(config.folder, config.name)
    index = _read_index(files.index)
    codes = _codes(index, files.index)
    titles, rest = _read_texts(files.items, index)
    users: dict[str, int] = {}
    splits = {name: _read_split(path, index, users) for name, path in files.splits.items()}
    shared = sids.collisions(codes)
    counts = {
        "users": len(users),
        "items": len(index),
        "items_without_title": titles.count(""),
        "items_that_share_a_sid": shared["items"],
        **{f"{name}_rows": len(rows) for name, rows in splits.items()},
    }
    origin = {"source": "migrate", "method": "file", "file": str(files.index), "collisions": shared}
    with new_folder(config.out) as folder:
        for part in ("data", "sids"):
            (folder / part).mkdir()
        data.write(folder / "data", data.catalogue_table([*index], titles, rest), splits, config, counts)
        sids.write(folder / "sids", codes, [], origin)
    return counts


def token_ids(folder: str | os.PathLike[str], tokenizer: Any, name: str = "") -> NDArray[np.int64]:
    """Return the tokens by which a model of theirs knows the items, for a `SidTrie` over its own vocabulary.

    Their training adds the tokens of index.json to the language model's tokenizer, each once and in the order of the
    text; here they are looked up, whatever their order.

    Args:
        folder: holds NAME.index.json, at any depth.
        tokenizer: of the trained model, a transformers tokenizer.
        name: NAME, where the folder holds several.

    Returns:
        (num_items, L) token ids, row i for item i; −1 after the last token of a shorter semantic ID.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed, or `tokenizer` lacks one of its tokens.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "Toys.index.json").write_text('{"0": ["<a_3>", "<b_1>"], "1": ["<a_12>", "<b_1>"]}')
        >>> class Tokenizer:
        ...     def get_vocab(self):
        ...         return {"<a_12>": 100, "<a_3>": 101, "<b_1>": 102}
        >>> token_ids(folder, Tokenizer()).tolist()
        [[101, 102], [100, 102]]
    """
    path = _find_index(Path(folder), name)
    index = _read_index(path)
    _codes(index, path)
    known: dict[str, int] = tokenizer.get_vocab()
    missing = next((token for tokens in index.values() for token in tokens if token not in known), None)
    if missing is not None:
        raise ValueError(
            f"`tokenizer` must hold the tokens of {path}, but lacks {missing!r}; load it from the folder of the model "
            "that was trained on that file"
        )
    return _padded([[known[token] for token in tokens] for tokens in index.values()])


# ------------------------------------------------------------------------------------------------- finding files


def _find(folder: Path, name: str) -> _Files:
    index = _find_index(folder, name)
    name = index.name.removesuffix(".index.json")
    literal = glob.escape(name)
    items = _only(folder, [f"{literal}.item.json"])
    tables = {split: [f"{split}/{literal}.csv", f"{split}/{literal}_*.csv"] for split in data.SPLITS}
    if not any(_matches(folder, patterns) for patterns in tables.values()):
        tables = {split: [f"{literal}.{split}.inter"] for split in data.SPLITS}
    return _Files(index, items, {split: _only(folder, patterns) for split, patterns in tables.items()})


def _find_index(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"`folder` {folder} does not exist")
    return _only(folder, [f"{glob.escape(name) if name else '*'}.index.json"])


def _matches(folder: Path, patterns: list[str]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.rglob(pattern))


def _only(folder: Path, patterns: list[str]) -> Path:
    """Return the one file below `folder` that matches."""
    found = _matches(folder, patterns)
    if not found:
        raise FileNotFoundError(f"`folder` must hold {' or '.join(patterns)} at some depth, and {folder} does not")
    if len(found) > 1:
        raise ValueError(
            f"`folder` must hold one {' or '.join(patterns)}, got {', '.join(map(str, found))}; give the `name` before "
            ".index.json, or a folder further down"
        )
    return found[0]


# -------------------------------------------------------------------------------------------------- reading items


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object with at least one key, and none twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} comes twice")
        return found

    try:
        found = parse_json(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); make it again") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} must hold an object with an entry for each item, got {str(found)[:40]}")
    return found


def _read_index(path: Path) -> Index:
    """Return the semantic IDs by item: numbers in their order, other names in that of the file."""
    index = _read_json(path)
    for item, tokens in index.items():
        if not (isinstance(tokens, list) and tokens and all(isinstance(token, str) for token in tokens)):
            raise ValueError(f"{path}: item {item!r} must have a list of tokens, got {str(tokens)[:40]}")
    numbers = all(item.isdecimal() for item in index)
    return {item: index[item] for item in (sorted(index, key=int) if numbers else index)}


def _codes(index: Index, path: Path) -> NDArray[np.int64]:
    """Return the codes (num_items, L) of "<a_12>" or, as constrained k-means writes them, "<|a_12|>"."""
    bars = "|" if next(iter(index.values()))[0].startswith("<|") else ""
    pattern = re.compile(rf"<{re.escape(bars)}([a-z])_(0|[1-9]\d{{0,6}}){re.escape(bars)}>")
    codes = []
    for item, tokens in index.items():
        parsed = [pattern.fullmatch(token) for token in tokens]
        letters = "".join(match[1] if match else "?" for match in parsed)
        if letters != ascii_lowercase[: len(tokens)]:
            level = next(i for i, letter in enumerate(letters) if letter != ascii_lowercase[i : i + 1])
            raise ValueError(
                f"{path}: the tokens of item {item!r} must be <{bars}a_0{bars}>, <{bars}b_0{bars}>, ..., the letter of "
                f"the level and a code, alike for all items; got {tokens[level]!r} at level {level}"
            )
        codes.append([int(match[2]) for match in parsed if match])
    padded = _padded(codes)
    if not SidTrie.build(padded).prefix_free:
        raise ValueError(
            f"{path}: the semantic ID of one item must not be the beginning of another's; give the shorter ones a "
            "token more"
        )
    return padded


def _padded(rows: list[list[int]]) -> NDArray[np.int64]:
    padded = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _read_texts(path: Path, index: Index) -> tuple[list[str], list[str]]:
    """Return title and description of every item, "" where there is none."""
    found = _read_json(path)
    unknown = next((item for item in found if item not in index), None)
    if unknown is not None:
        raise ValueError(f"{path}: item {unknown!r} has no semantic ID in index.json; add it or leave it out")
    wrong = next((item for item, fields in found.items() if not isinstance(fields, dict)), None)
    if wrong is not None:
        raise ValueError(f"{path}: item {wrong!r} must have an object with a title, got {str(found[wrong])[:40]}")
    titles = [_text(found, item, "title", path) for item in index]
    return titles, [_text(found, item, "description", path) for item in index]


def _text(found: Mapping[str, Any], item: str, field: str, path: Path) -> str:
    value = found.get(item, {}).get(field) or ""
    parts = value if isinstance(value, list) else [value]  # Amazon's descriptions are lists of paragraphs
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{path}: `{field}` of item {item!r} must be text, got {str(value)[:40]}")
    return " ".join(parts).strip()


# --------------------------------------------------------------------------------------------------- reading rows


def _read_split(path: Path, index: Index, users: dict[str, int]) -> data.Rows:
    """Return the rows of one file; `users` numbers those of all files and grows."""
    listed = path.suffix == ".csv"
    history = "history_item_id" if listed else "item_id_list"
    lines = data.read_table(path, ("user_id", history, "item_id", *(("item_sid",) if listed else ()))).to_pylist()
    number = {item: i for i, item in enumerate(index)}
    histories, targets, owners = [], [], []
    for row, line in enumerate(lines):
        try:
            items = _list(line[history]) if listed else line[history].split()
            _check_row(line["user_id"], items, line["item_id"], number)
            if listed:
                _check_sid(line["item_sid"], index[line["item_id"]])
        except ValueError as error:
            raise ValueError(f"{path}, row {row} (the first is 0): {error}") from error
        histories.append([number[item] for item in items])
        targets.append(number[line["item_id"]])
        owners.append(users.setdefault(line["user_id"], len(users)))
    return data.Rows.of(histories, targets, owners)


def _list(text: str) -> list[str]:
    """Return the items of a list as Python prints it, which is read as a literal and not run."""
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, (int, str)) for item in found):
        raise ValueError(f"`history_item_id` must be a list of items such as [3, 17], got {text[:40]!r}")
    return [str(item) for item in found]


def _check_row(user: str, history: list[str], item: str, number: Mapping[str, int]) -> None:
    if not user:
        raise ValueError("`user_id` is empty; give it or leave out the row")
    if not history:
        raise ValueError("the history is empty; leave out rows without one")
    unknown = next((name for name in (*history, item) if name not in number), None)
    if unknown is not None:
        raise ValueError(f"item {unknown!r} has no semantic ID in index.json; add it there or leave out the row")


def _check_sid(written: str, tokens: list[str]) -> None:
    if written.strip() != "".join(tokens):
        raise ValueError(
            f"`item_sid` is {written!r}, but index.json says {''.join(tokens)!r}; take the index.json that the rows "
            "were made with"
        )
