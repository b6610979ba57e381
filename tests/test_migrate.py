"""Folders of MiniOneRec and UGR, written here as they write them: taken over whole, or refused with the place.

Their rewards too, as loops over strings in reference.py: what ours equal, and where theirs differ.
"""

from __future__ import annotations

import csv
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import SidTrie, data, rewards, sids
from ugr_fast.configs import MigrateConfig
from ugr_fast.migrate import migrate, token_ids

pa = pytest.importorskip("pyarrow")
from pipeline import RL, SFT, call, snapshot, write_events  # noqa: E402

NAME = "Office_Products"
HEADER = ["user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid", "item_sid"]


# ---- folders as they write them


def spelled(codes, bars=""):
    return [f"<{bars}{chr(97 + level)}_{code}{bars}>" for level, code in enumerate(codes)]


def write_items(folder, codes, texts, bars=""):
    folder.mkdir(parents=True, exist_ok=True)
    index = {item: spelled(sid, bars) for item, sid in codes.items()}
    (folder / f"{NAME}.index.json").write_text(json.dumps(index))
    (folder / f"{NAME}.item.json").write_text(json.dumps(texts, indent=2))


def write_ugr(root, codes, texts, splits, bars=""):
    """NAME/NAME.*, as the preprocessing of both writes them."""
    folder = root / NAME
    write_items(folder, codes, texts, bars)
    for split, rows in splits.items():
        lines = [f"{user}\t{' '.join(history)}\t{item}" for user, history, item in rows]
        header = "user_id:token\titem_id_list:token_seq\titem_id:token"
        (folder / f"{NAME}.{split}.inter").write_text("\n".join([header, *lines]) + "\n")


def write_minionerec(root, codes, texts, splits, bars=""):
    """index/NAME.*.json and train/NAME_*.csv, what MiniOneRec makes of the former."""
    write_items(root / "index", codes, texts, bars)
    title = lambda item: texts.get(item, {}).get("title", f"Item_{item}")  # noqa: E731
    for split, rows in splits.items():
        (root / split).mkdir(exist_ok=True)
        with (root / split / f"{NAME}_5_2016-10-2018-11.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            for user, history, item in rows:
                joined = ["".join(spelled(codes[name], bars)) for name in history]
                numbers = [int(name) if name.isdecimal() else name for name in history]
                own = "".join(spelled(codes[item], bars))
                writer.writerow([user, [*map(title, history)], title(item), numbers, item, joined, own])


LAYOUTS = {"ugr": write_ugr, "minionerec": write_minionerec}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)

CODES = {"0": (3, 0, 7), "1": (3, 1, 0), "2": (0, 1, 0), "3": (3, 0, 7)}
TEXTS = {
    "0": {"title": "Pen, blue", "description": "Writes.", "brand": "Acme", "categories": "Office,Pens"},
    "1": {"title": 'Ruler "12"', "description": ["Of wood.", "Straight."]},
    "3": {"title": "", "description": None},
}
SPLITS = {
    "train": [("A7", ["0"], "1"), ("A2", ["2"], "0"), ("A7", ["0", "1"], "3")],
    "valid": [("A9", ["3", "3"], "2")],
    "test": [("A2", ["2", "0"], "3")],
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "theirs"


def migrated(folder, out, name=""):
    counts = migrate(MigrateConfig(folder, out, name))
    return counts, data.load(out / "data"), sids.load_codes(out / "sids")


def rows_of(split):
    return [(int(split.user[i]), split.history(i).tolist(), int(split.item[i])) for i in range(len(split))]


# ---- what is taken over


@each_layout
def test_everything_is_taken_over_as_it_is(folder, tmp_path, layout):
    LAYOUTS[layout](folder, CODES, TEXTS, SPLITS)
    counts, found, codes = migrated(folder, tmp_path / "out")
    assert codes.tolist() == [list(sid) for sid in CODES.values()]
    assert found.titles == ["Pen, blue", 'Ruler "12"', "2", "3"]
    assert found.texts == ["Pen, blue. Writes.", 'Ruler "12". Of wood. Straight.', "2", "3"]
    assert found.ids == ["0", "1", "2", "3"]
    assert rows_of(found.train) == [(0, [0], 1), (1, [2], 0), (0, [0, 1], 3)]
    assert rows_of(found.valid) == [(2, [3, 3], 2)]
    assert rows_of(found.test) == [(1, [2, 0], 3)]
    assert found.train.time is None
    rest = {"items_without_title": 2, "items_that_share_a_sid": 2}
    assert counts == {"users": 3, "items": 4, **rest, "train_rows": 3, "valid_rows": 1, "test_rows": 1}
    meta = [json.loads((tmp_path / "out" / part / "meta.json").read_text()) for part in ("data", "sids")]
    assert [part["format"] for part in meta] == ["ugr-fast.data", "ugr-fast.sids"]
    assert meta[0]["counts"] == counts
    assert (meta[1]["collisions"], meta[1]["unique"]) == ({"groups": 1, "items": 2}, False)


WORD = st.text("a'\"\\,\n;é[]", max_size=6)
CATALOGUES = st.lists(st.tuples(*[st.integers(0, 3)] * 2, st.integers(0, 20)), min_size=1, max_size=12)


@settings(max_examples=25)
@given(CATALOGUES, st.data(), st.sampled_from([*LAYOUTS]), st.sampled_from(["", "|"]))
def test_any_catalogue_and_rows_survive(catalogue, draw, layout, bars):
    codes = {str(item): sid for item, sid in enumerate(catalogue)}
    texts = {item: {"title": draw.draw(WORD), "description": draw.draw(WORD)} for item in codes}
    item = st.sampled_from([*codes])
    row = st.tuples(st.sampled_from(["A1", "A2", "a,b"]), st.lists(item, min_size=1, max_size=4), item)
    splits = {split: draw.draw(st.lists(row, min_size=1, max_size=5)) for split in data.SPLITS}
    with tempfile.TemporaryDirectory() as root:
        LAYOUTS[layout](Path(root) / "theirs", codes, texts, splits, bars)
        _, found, kept = migrated(Path(root) / "theirs", Path(root) / "out")
    assert [tuple(sid) for sid in kept.tolist()] == catalogue
    assert found.titles == [texts[name]["title"].strip() or name for name in codes]
    names = list(dict.fromkeys(user for split in splits.values() for user, _, _ in split))
    for split, rows in splits.items():
        expected = [(names.index(user), [*map(int, history)], int(target)) for user, history, target in rows]
        assert rows_of(getattr(found, split)) == expected


def test_items_keep_their_numbers_whatever_the_order_of_the_file(folder, tmp_path):
    codes = {str(item): (item,) for item in (10, 2, 0, 1, *range(3, 10))}
    write_ugr(folder, codes, {}, SPLITS)
    (folder / NAME / f"{NAME}.item.json").write_text('{"10": {"title": "Ten"}}')
    _, found, kept = migrated(folder, tmp_path / "out")
    assert kept[:, 0].tolist() == list(range(11))
    assert found.titles[10] == "Ten"
    assert rows_of(found.valid) == [(2, [3, 3], 2)]


@each_layout
def test_other_names_are_numbered_as_they_come(folder, tmp_path, layout):
    codes = {"B00X": (1, 0), "A9": (0, 0)}
    LAYOUTS[layout](folder, codes, {"A9": {"title": "Nine"}}, {split: [("u", ["A9"], "B00X")] for split in data.SPLITS})
    _, found, kept = migrated(folder, tmp_path / "out")
    assert (found.ids, kept.tolist()) == (["B00X", "A9"], [[1, 0], [0, 0]])
    assert rows_of(found.test) == [(0, [1], 0)]


def test_sids_told_apart_by_a_token_more_are_ragged(folder, tmp_path):
    write_ugr(folder, CODES | {"0": (3, 0, 7, 1), "3": (3, 0, 7, 2)}, TEXTS, SPLITS, bars="|")
    counts, _, codes = migrated(folder, tmp_path / "out")
    assert codes.tolist() == [[3, 0, 7, 1], [3, 1, 0, -1], [0, 1, 0, -1], [3, 0, 7, 2]]
    assert counts["items_that_share_a_sid"] == 0


def test_the_csv_files_come_first_and_a_name_chooses(folder, tmp_path):
    write_ugr(folder, CODES, TEXTS, SPLITS | {"test": SPLITS["valid"]})
    write_minionerec(folder, CODES, TEXTS, SPLITS)
    for path in (folder / "index").iterdir():
        path.unlink()  # NAME.index.json stays once
    (folder / "Toys.index.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"`folder` must hold one \*\.index\.json, got .*Office.*Toys.*give the `name`"
    ):
        migrate(MigrateConfig(folder, tmp_path / "out"))
    assert rows_of(migrated(folder, tmp_path / "out", NAME)[1].test) == [(1, [2, 0], 3)]


# ---- what is refused


def edited(path, change):
    path.write_text(change(path.read_text()))


def index_of(change):
    """Edit the index as a dict."""

    def apply(text):
        index = json.loads(text)
        change(index)
        return json.dumps(index)

    return apply


BAD = {  # what is done to which file, and what is said
    "no index": ("*.index.json", None, r"`folder` must hold \*\.index\.json at some depth, and .*theirs does not"),
    "no items": ("*.item.json", None, r"must hold Office_Products\.item\.json at some depth"),
    "no rows": ("*valid*", None, r"must hold Office_Products\.valid\.inter at some depth"),
    "cut off": ("*.index.json", lambda s: s[:-9], r"index\.json is not readable JSON \(.*\); make it again"),
    "a list": ("*.index.json", lambda s: "[1, 2]", r"must hold an object with an entry for each item, got \[1, 2\]"),
    "deep": ("*.index.json", lambda s: "[" * 100_000, "is not readable JSON"),
    "no item": ("*.index.json", lambda s: "{}", "must hold an object with an entry for each item, got {}"),
    "twice": ("*.index.json", lambda s: '{"0": [], "0": []}', r"is not readable JSON \('0' comes twice\)"),
    "not a list": ("*.index.json", index_of(lambda i: i.update({"1": "<a_1>"})), "item '1' must have a list of tokens"),
    "empty sid": ("*.index.json", index_of(lambda i: i.update({"1": []})), r"item '1' must have a list of tokens, got"),
    "no code": ("*.index.json", index_of(lambda i: i["2"].append("<d_>")), "item '2' must be .*got '<d_>' at level 3"),
    "zeros": ("*.index.json", index_of(lambda i: i["2"].append("<d_01>")), "got '<d_01>' at level 3"),
    "huge": ("*.index.json", index_of(lambda i: i["2"].append("<d_9999999999>")), "got '<d_9999999999>' at level 3"),
    "beyond a model": (
        "*.index.json",
        index_of(lambda i: i["2"].append("<d_99999999>")),
        "got '<d_99999999>' at level",
    ),
    "half": ("*.item.json", lambda s: '{"0": {"title": "\\ud800"}}', r"is not readable JSON \(it holds half of a char"),
    "wrong level": ("*.index.json", index_of(lambda i: i["0"].reverse()), "item '0' must be .*got '<c_7>' at level 0"),
    "two spellings": (
        "*.index.json",
        lambda s: s.replace("<b_1>", "<|b_1|>"),
        r"item '1' .*got '<\|b_1\|>' at level 1",
    ),
    "a level less": ("*.index.json", index_of(lambda i: i["1"].pop(0)), "item '1' must be .*got '<b_1>' at level 0"),
    "prefix": ("*.index.json", index_of(lambda i: i["2"].append("<d_0>") or i["0"].pop()), "must not be the beginning"),
    "item without sid": ("*.index.json", index_of(lambda i: i.pop("3")), r"item\.json: item '3' has no semantic ID"),
    "row without sid": ("*.index.json", index_of(lambda i: i.pop("2")), r"train\.inter, row 1 .*: item '2' has no"),
    "no object": ("*.item.json", lambda s: '{"0": "Pen"}', "item '0' must have an object with a title, got Pen"),
    "no text": ("*.item.json", lambda s: '{"0": {"title": 5}}', "`title` of item '0' must be text, got 5"),
    "unknown target": ("*test*", lambda s: s.replace("\t3", "\t9"), r"test\.inter, row 0 .*: item '9' has no semantic"),
    "unknown history": ("*test*", lambda s: s.replace("2 0", "2 x"), "row 0 .*: item 'x' has no semantic ID"),
    "no history": ("*test*", lambda s: s.replace("2 0", ""), "row 0 .*the history is empty; leave out rows"),
    "no user": ("*test*", lambda s: s.replace("A2", ""), "row 0 .*`user_id` is empty"),
    "a column less": ("*test*", lambda s: s.replace("item_id_list", "list"), "has no column `item_id_list`"),
    "ragged file": ("*test*", lambda s: s + "A2\n", "is malformed"),
    "no lines": ("*test*", lambda s: s.splitlines()[0] + "\n", "holds no rows"),
}
BAD_CSV = {
    "not a list": (lambda s: s.replace('"[2, 0]"', "7"), "`history_item_id` must be a list of items .*got '7'"),
    "code": (lambda s: s.replace('"[2, 0]"', "open('x')"), r"must be a list of items such as \[3, 17\], got \"open"),
    "half": (lambda s: s.replace('"[2, 0]"', '"[2, 0"'), "must be a list of items"),
    "deep": (lambda s: s.replace('"[2, 0]"', "[" * 9999), "must be a list of items"),
    "nested": (lambda s: s.replace('"[2, 0]"', '"[[2], 0]"'), "must be a list of items"),
    "fraction": (lambda s: s.replace('"[2, 0]"', '"[2, 0.0]"'), "must be a list of items"),
    "empty": (lambda s: s.replace('"[2, 0]"', "[]"), "the history is empty"),
    "unknown": (lambda s: s.replace('"[2, 0]"', "[8]"), "item '8' has no semantic ID"),
    "another sid": (lambda s: s.replace(']",<a_3>', ']",<a_2>'), "`item_sid` is '<a_2>.* but index.json says '<a_3>"),
    "a column less": (lambda s: s.replace("item_sid", "sid"), "has no column `item_sid`"),
}


def refused(folder, out, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        migrate(MigrateConfig(folder, out))
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("case", BAD)
def test_bad_files(folder, tmp_path, case):
    write_ugr(folder, CODES, TEXTS, SPLITS)
    pattern, change, message = BAD[case]
    (path,) = folder.rglob(pattern)
    path.unlink() if change is None else edited(path, change)
    refused(folder, tmp_path / "out", message)


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_files(folder, tmp_path, case):
    write_minionerec(folder, CODES, TEXTS, SPLITS)
    change, message = BAD_CSV[case]
    path = folder / "test" / f"{NAME}_5_2016-10-2018-11.csv"
    before = path.read_text()
    edited(path, change)
    assert path.read_text() != before
    refused(folder, tmp_path / "out", message)


def test_a_missing_csv_is_not_made_up_for_by_another_layout(folder, tmp_path):
    write_ugr(folder, CODES, TEXTS, SPLITS)
    write_minionerec(folder, CODES, TEXTS, SPLITS)
    for path in [*(folder / "index").iterdir(), *(folder / "test").iterdir()]:
        path.unlink()
    refused(
        folder, tmp_path / "out", r"must hold test/Office_Products\.csv or test/Office_Products_\*\.csv at some depth"
    )


def test_a_list_is_read_and_not_run(folder, tmp_path):
    write_minionerec(folder, CODES, TEXTS, SPLITS)
    mark = tmp_path / "mark"
    edited(folder / "test" / f"{NAME}_5_2016-10-2018-11.csv", lambda s: s.replace('"[2, 0]"', f"open('{mark}'; 'w')"))
    refused(folder, tmp_path / "out", "must be a list of items")
    assert not mark.exists()


def test_the_command_line(folder, tmp_path):
    missing = call("migrate", "--folder", folder, "--out", tmp_path / "out")
    assert missing.code == 2
    assert missing.err == f"ugr-fast: `folder` {folder} does not exist\n"
    write_ugr(folder, CODES, TEXTS, SPLITS)
    done = call("migrate", "--folder", folder, "--out", tmp_path / "out", "--name", NAME)
    assert (done.code, json.loads(done.out)["items"]) == (0, 4)
    before = snapshot(tmp_path)
    again = call("migrate", "--folder", folder, "--out", tmp_path / "out")
    assert again.code == 2
    assert "`out` must be a new or empty folder" in again.err
    assert snapshot(tmp_path) == before


# ---- real size and the whole way


def walks(root):
    """Codes, texts and rows of users who walk round clusters, split 8:1:1 by time as theirs are."""
    write_events(root)
    lines = [line.split(",") for line in (root / "events.csv").read_text().splitlines()[1:]]
    events: dict[str, list[str]] = {}
    for user, item, _ in lines:
        events.setdefault(user, []).append(item[1:])
    rows = [
        (time, user, items[max(0, time - 10) : time], items[time])
        for user, items in events.items()
        for time in range(1, 12)
    ]
    rows = [row[1:] for row in sorted(rows, key=lambda row: row[0])]
    n = len(rows)
    splits = {"train": rows[: n * 8 // 10], "valid": rows[n * 8 // 10 : n * 9 // 10], "test": rows[n * 9 // 10 :]}
    codes = {str(item): (item // 8, item % 8 // 2) for item in range(40)}  # two items share each
    return codes, {str(item): {"title": f"Film {item}"} for item in range(40)}, splits


@each_layout
def test_from_their_folder_to_an_evaluated_policy(tmp_path, layout):
    pytest.importorskip("torch")
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    LAYOUTS[layout](theirs, *walks(tmp_path))
    told_apart = ["sids", "--data", out / "data", "--source", "file", "--file", out / "sids" / "sids.parquet"]
    commands = [
        ["migrate", "--folder", theirs, "--out", out],
        [*told_apart, "--out", out / "own"],
        ["sft", "--data", out / "data", "--sids", out / "sids", "--out", out / "sft", *SFT],
        ["rl", "--run", out / "sft", "--data", out / "data", "--out", out / "rl", *RL, "--reward", "ranking"],
        ["eval", "--run", out / "rl", "--data", out / "data", "--num-beams", 10, "--threads", 1],
    ]
    for command in commands:
        done = call(*command)
        assert done.code == 0, done.err
    ranking = json.loads((out / "rl" / "eval-test.json").read_text())["ranking"]
    assert 0 <= ranking["ndcg@10"] <= ranking["sid_ndcg@10"]  # items share semantic IDs, as published ones do
    assert sids.collisions(sids.load_codes(out / "own")) == {"groups": 0, "items": 0}


@pytest.mark.data
@each_layout
def test_the_industrial_set(data_dir, tmp_path, layout):
    """At real size: what is written in their layout comes back as it was."""
    read = pa.parquet.read_table
    items = read(data_dir / "industrial" / "items.parquet").sort_by("item").to_pydict()
    codes = {
        str(i): sid for i, sid in zip(items["item"], zip(*(items[f"sid_{c}"] for c in "abc"), strict=True), strict=True)
    }
    codes = {item: tuple(int(str(token).strip("<>abc_")) for token in sid) for item, sid in codes.items()}
    texts = {
        str(i): {"title": t, "description": d}
        for i, t, d in zip(items["item"], items["title"], items["description"], strict=True)
    }
    splits = {}
    for split in data.SPLITS:
        rows = read(data_dir / "industrial" / f"{split}.parquet").to_pydict()
        named = [[*map(str, history)] for history in rows["history"]]
        splits[split] = [(f"A{u}", h, str(i)) for u, h, i in zip(rows["user"], named, rows["item"], strict=True)]
    LAYOUTS[layout](tmp_path / "theirs", codes, texts, splits)
    counts, found, kept = migrated(tmp_path / "theirs", tmp_path / "out")
    assert (counts["items"], counts["items_that_share_a_sid"], counts["test_rows"]) == (3686, 31, 4533)
    assert [tuple(sid) for sid in kept.tolist()] == [*codes.values()]
    assert [[*map(str, found.test.history(i))] for i in range(len(found.test))] == [row[1] for row in splits["test"]]


# ---- their vocabulary


def trained_tokenizer(folder, codes, bars=""):
    """A tiny language model that gained semantic IDs as their training adds them: sorted as text."""
    import tiny
    import transformers

    model, _ = tiny.language_model(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(sorted({token for sid in codes.values() for token in spelled(sid, bars)}))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    return model.double().eval(), tokenizer


def their_beams(model, prompt, ids, num_beams, end=None):
    """What `generate` finds after prompts of three tokens with a prefix function; `end` follows a whole semantic ID."""
    import torch

    def allowed(_, tokens):
        prefix = tokens.tolist()[3:]
        inside = [row for row in ids.tolist() if row[: len(prefix)] == prefix and len(prefix) < len(row)]
        return sorted({row[len(prefix)] for row in inside}) or [end]

    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=end,
    )


@pytest.mark.parametrize("bars", ["", "|"])
def test_a_trie_over_the_tokens_of_their_model(folder, tmp_path, bars):
    torch = pytest.importorskip("torch")
    from ugr_fast.decode import beam_search

    rng = np.random.default_rng(0)
    codes = {str(item): tuple(map(int, rng.integers(0, 12, 3))) for item in range(40)}
    write_items(folder, codes, {}, bars)
    model, tokenizer = trained_tokenizer(tmp_path / "model", codes, bars)
    ids = token_ids(folder, tokenizer)
    assert [tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()] == [
        spelled(sid, bars) for sid in codes.values()
    ]
    prompt = torch.tensor([[1, 4, 5], [1, 6, 9]])
    found = beam_search(model, prompt, torch.ones_like(prompt), SidTrie.build(ids), num_beams=6)
    theirs = their_beams(model, prompt, ids, 6)
    assert found.tokens.reshape(12, 3).tolist() == theirs.sequences[:, 3:].tolist()
    assert torch.allclose(found.scores.flatten() / 3, theirs.sequences_scores.double(), atol=1e-5)


def test_a_tokenizer_without_their_tokens(folder, tmp_path):
    pytest.importorskip("torch")
    write_items(folder, CODES, {})
    _, tokenizer = trained_tokenizer(tmp_path / "model", {"0": (3, 0, 7)})
    with pytest.raises(
        ValueError, match=r"`tokenizer` must hold the tokens of .*index.json, but lacks '<b_1>'; load it"
    ):
        token_ids(folder, tokenizer)
    with pytest.raises(FileNotFoundError, match=r"must hold Toys\.index\.json"):
        token_ids(folder, tokenizer, "Toys")


# ---- their rewards


@st.composite
def rollouts(draw):
    """Codes (B, G, L) of candidates that may repeat, and targets (B, L)."""
    size, length = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    sid = st.lists(st.integers(0, 2), min_size=length, max_size=length)
    groups = st.lists(st.tuples(sid, st.lists(sid, min_size=size, max_size=size)), min_size=1, max_size=4)
    targets, candidates = zip(*draw(groups), strict=True)
    return np.array(candidates), np.array(targets)


def strings(candidates, targets):
    """Flat, as their trainers see them; a target is a line of its file."""
    texts = ["".join(spelled(sid)) for group in candidates.tolist() for sid in group]
    wanted = ["".join(spelled(sid)) for sid in targets.tolist() for _ in range(candidates.shape[1])]
    return texts, wanted


@given(rollouts())
def test_rule_ranking_only_and_ranking_of_minionerec(rollout):
    candidates, targets = rollout
    texts, wanted = strings(*rollout)
    lines = [f"{text}\n" for text in wanted]
    hits = rewards.match(candidates, targets)
    rule = np.float32(reference.rule_of_strings(texts, lines)).reshape(hits.shape)
    penalty = np.float32(reference.ndcg_of_strings(texts, lines, hits.shape[1])).reshape(hits.shape)
    np.testing.assert_array_equal(hits, rule)
    np.testing.assert_array_equal(rewards.ndcg(hits), penalty)
    np.testing.assert_array_equal(rewards.ranking(hits), rule + penalty)


def test_what_minionerec_makes_of_blanks_and_of_a_group_cut_short():
    """Held to a trie no answer has blanks, and a rollout gives whole groups: two cases that cannot arise here."""
    texts, lines = ["<a_1> ", "<a_0>"], ["<a_1>\n"] * 2
    assert reference.rule_of_strings(texts, lines) == [1.0, 0.0]
    assert reference.ndcg_of_strings(texts, lines, 2) == [0.0, 0.0]  # no hit: the miss goes without its penalty
    assert reference.ndcg_of_strings(["<a_0>"] * 5, lines[:1] * 5, 2) == [0.0] * 4


@given(rollouts(), st.data())
def test_uncertainty_weighted_of_the_released_code(rollout, draw):
    """Their score is the mean over the semantic ID and the end token after it."""
    candidates, targets = rollout
    shape, length = candidates.shape[:2], candidates.shape[2]
    score = st.lists(st.floats(-30, 0), min_size=math.prod(shape), max_size=math.prod(shape))
    sums, end = (np.array(draw.draw(score)).reshape(shape) for _ in range(2))
    hits = rewards.match(candidates, targets)
    released = lambda total: np.reshape(  # noqa: E731
        reference.uncertainty_of_strings(*strings(*rollout), (total / (length + 1)).ravel().tolist(), shape[1]), shape
    )
    found = rewards.uncertainty_weighted(hits, sums + end, lengths=np.full(shape, length + 1))
    np.testing.assert_allclose(found, released(sums + end), atol=1e-12)
    # a run here has no end token; to one that is certain it is a matter of temperature
    lengths = np.full(shape, length)
    found = rewards.uncertainty_weighted(hits, sums, lengths=lengths, temperature=(length + 1) / length)
    np.testing.assert_allclose(found, released(sums), atol=1e-12)


def test_forbidden_misses_are_nan_there_and_nothing_here():
    hits, scores = np.array([[True, False, False]]), np.array([[-1.0, -math.inf, -math.inf]])
    theirs = reference.uncertainty_of_strings(["x", "y", "z"], ["x"] * 3, scores[0].tolist(), 3)
    np.testing.assert_array_equal(theirs, [1.0, math.nan, math.nan])
    np.testing.assert_array_equal(rewards.uncertainty_weighted(hits, scores, score="sum"), [[1.0, 0.0, 0.0]])


def test_more_beams_than_semantic_ids(folder, tmp_path):
    """transformers fills the group with copies, which the released rewards count; here they are absent."""
    torch = pytest.importorskip("torch")
    from ugr_fast.decode import beam_search

    write_items(folder, {"0": (0, 0), "1": (0, 1), "2": (1, 0)}, {})
    model, tokenizer = trained_tokenizer(tmp_path / "model", {"0": (0, 0), "1": (1, 1)})
    ids, end = token_ids(folder, tokenizer), 2
    prompt = torch.tensor([[1, 4, 5]])
    theirs = their_beams(model, prompt, ids, 5, end)
    texts = ["".join(tokenizer.convert_ids_to_tokens(row)) for row in theirs.sequences[:, 3:5].tolist()]
    assert len(texts) == 5
    assert len(set(texts)) == 3
    copied = next(text for text in texts if texts.count(text) > 1)
    scores = theirs.sequences_scores.tolist()
    released = reference.uncertainty_of_strings(texts, [copied] * 5, scores, 5)
    assert released.count(1.0) == texts.count(copied) > 1

    # the three that exist have the mean log-prob over semantic ID and end; a copy has next to none
    found = beam_search(model, prompt, torch.ones_like(prompt), SidTrie.build(ids), num_beams=5)
    assert found.tokens[0, 3:].tolist() == [[-1, -1]] * 2
    for place, sid in enumerate(found.tokens[0, :3].tolist()):
        row = torch.tensor([[*prompt[0].tolist(), *sid]])
        mean = (found.scores[0, place] + torch.log_softmax(model(row).logits[0, -1], -1)[end]) / 3
        assert any(abs(mean - score) < 1e-5 for score in scores)
    assert min(scores) < -1e6
    hits = rewards.match(found.tokens, torch.from_numpy(ids[:1]))
    reward = rewards.ranking(hits, mask=found.tokens[..., 0] >= 0)
    assert int(hits.sum()) == 1
    assert reward[0, 3:].isnan().all()
    assert not reward[0, :3].isnan().any()
