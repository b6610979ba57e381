"""`SidTrie` against sets of tuples, and against files and arrays that lie."""

from __future__ import annotations

import errno
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import SidTrie
from ugr_fast.trie import _checksum

MAX_TOKEN = 2**32 - 2
tokens = st.one_of(st.integers(0, 3), st.sampled_from([0, 1, 2**31, MAX_TOKEN - 1, MAX_TOKEN]))
sid_lists = st.lists(st.lists(tokens, min_size=1, max_size=5).map(tuple), min_size=1, max_size=30)


@st.composite
def catalogues(draw):
    sids = draw(sid_lists)
    items = draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(sids), max_size=len(sids), unique=True))
    return sids, items


def prefixes_of(sids):
    return sorted({sid[:d] for sid in sids for d in range(len(sid) + 1)})


def breadth_first(sids):
    return sorted(prefixes_of(sids), key=lambda prefix: (len(prefix), prefix))


def same(one, other):
    a, b = one.arrays(), other.arrays()
    return all(np.array_equal(a[name], b[name]) for name in b)


def padded(rows):
    table = np.full((len(rows), max(map(len, rows), default=0)), -1)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table


@given(catalogues())
def test_every_question_has_the_slow_answer(catalogue):
    sids, items = catalogue
    trie = SidTrie.build(sids, items)
    assert (trie.num_items, trie.num_sids) == (len(items), len(set(sids)))
    assert trie.num_nodes == len(prefixes_of(sids))
    assert trie.depth == max(map(len, sids))
    assert trie.max_token == max(map(max, sids))
    assert trie.prefix_free == (not any(reference.trie_children(sids, sid) for sid in sids))
    for prefix in prefixes_of(sids):
        assert trie.children(prefix).tolist() == reference.trie_children(sids, prefix)
        assert trie.items_at(prefix).tolist() == reference.trie_items(sids, items, prefix)
    lowest = [min(reference.trie_items(sids, items, sid)) for sid in sids]
    assert trie.lookup(sids).tolist() == lowest


@given(sid_lists, sid_lists)
def test_walk_leaves_the_trie_where_the_set_of_prefixes_ends(sids, others):
    trie, inside = SidTrie.build(sids), prefixes_of(sids)
    nodes = trie.walk([(), *others])
    assert nodes[0] == 0
    assert [node >= 0 for node in nodes[1:]] == [other in inside for other in others]
    assert len(set(trie.walk(inside).tolist())) == len(inside)


@given(catalogues())
def test_layout_is_breadth_first_with_sorted_siblings(catalogue):
    sids, items = catalogue
    trie = SidTrie.build(sids, items)
    order = breadth_first(sids)
    assert trie.walk(order).tolist() == list(range(trie.num_nodes))
    arrays = trie.arrays()
    assert arrays["tokens"].tolist() == [prefix[-1] if prefix else 0 for prefix in order]
    assert [order[node] for node in arrays["terminals"]] == [prefix for prefix in order if prefix in sids]


@given(catalogues())
def test_allowed_rows_are_the_children(catalogue):
    sids, _ = catalogue
    trie = SidTrie.build(sids)
    nodes = np.arange(-1, trie.num_nodes)
    table = trie.allowed(nodes)
    rows = [[], *(reference.trie_children(sids, prefix) for prefix in breadth_first(sids))]
    assert table.shape == (len(nodes), max(1, *map(len, rows)))
    assert [row[row >= 0].tolist() for row in table] == rows
    assert trie.allowed([-1, -1]).tolist() == [[-1], [-1]]
    assert trie.allowed(np.empty(0, np.int64)).shape == (0, 1)


@given(catalogues())
def test_build_does_not_depend_on_the_order_or_kind_of_its_rows(catalogue):
    sids, items = catalogue
    order = np.random.default_rng(0).permutation(len(sids))
    shuffled = SidTrie.build(padded([sids[i] for i in order]), np.array(items)[order])
    assert same(shuffled, SidTrie.build(sids, items))


@given(catalogues())
def test_sids_are_the_inverse_of_build(catalogue):
    sids, items = catalogue
    table, ids = SidTrie.build(sids, items).sids()
    expected = sorted(zip(items, sids, strict=True))
    assert ids.tolist() == [item for item, _ in expected]
    np.testing.assert_array_equal(table, padded([sid for _, sid in expected]))


@given(catalogues())
def test_end_makes_every_trie_prefix_free(catalogue):
    sids, items = catalogue
    end = 77
    trie = SidTrie.build(sids, items, end=end)
    assert trie.prefix_free
    assert same(trie, SidTrie.build([(*sid, end) for sid in sids], items))


@given(catalogues())
def test_arrays_and_pickle_round_trip(catalogue):
    trie = SidTrie.build(*catalogue)
    for copy in (SidTrie.from_arrays(**trie.arrays()), pickle.loads(pickle.dumps(trie))):
        assert same(copy, trie)
        assert repr(copy) == repr(trie)
        assert (copy.max_token, copy.prefix_free) == (trie.max_token, trie.prefix_free)


def test_rows_may_come_from_anywhere():
    expected = SidTrie.build([[4, 7], [6]])
    assert same(SidTrie.build(np.array([4, 7][:n]) + 2 * (n < 2) for n in (2, 1)), expected)
    assert same(SidTrie.build(np.array([[4, 6], [7, -1]]).T), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.uint64, np.int64])
def test_every_integer_type_builds_the_same(dtype):
    sids = np.array([[4, 7], [6, 7]], dtype)
    assert SidTrie.build(sids[:, ::-1], np.array([1, 2], dtype)).lookup([(7, 6)]).tolist() == [2]


def test_long_sids_of_large_tokens_need_several_sort_keys():
    rng = np.random.default_rng(1)
    sids = np.unique(rng.choice([0, 5, 2**31, MAX_TOKEN], (500, 9)), axis=0)
    trie = SidTrie.build(rng.permutation(sids))
    np.testing.assert_array_equal(trie.lookup(sids) >= 0, True)
    assert trie.children([]).tolist() == [0, 5, 2**31, MAX_TOKEN]
    rebuilt, items = trie.sids()
    np.testing.assert_array_equal(rebuilt[trie.lookup(sids)], sids)
    assert items.tolist() == list(range(len(sids)))


@pytest.mark.parametrize(
    ("sids", "items", "message"),
    [
        ([], None, "`sids` must hold at least one SID"),
        (np.empty((0, 3), int), None, "`sids` must hold at least one SID"),
        ([[1], []], None, "`sids` must have at least one token per SID; got an empty row at index 1"),
        ([[-1, -1]], None, "at least one token"),
        ([[1, -2]], None, "right-padded with -1; got -2 at index 1"),
        ([[1, -1, 2]], None, "right-padded with -1; got 2 at index 2"),
        ([[1, 2**32 - 1]], None, r"tokens in 0 .. 2\*\*32 - 2; got 4294967295 at index 1"),
        (np.array([[2**63]], np.uint64), None, "`sids` must fit in int64, got 9223372036854775808"),
        ([[1] * 1025], None, "`depth` must be at most 1024, got 1025"),
        ([[1], [2]], [3], "`items` must have one id per SID, 2, got 1"),
        ([[1], [2]], [3, -1], "`items` must be >= 0; got -1 at index 1"),
        ([[1], [2]], [3, 3], "`items` must be unique, one SID per item; drop the .*; got 3 at index 1"),
        ([[1], [1]], [3, 3], "`items` must be unique"),
        ([[1], [2]], [[3, 4]], "`items` must have 1 dimension, got shape"),
        (np.ones(3, int), None, "`sids` must have 2 dimensions, got shape"),
    ],
)
def test_build_refuses(sids, items, message):
    with pytest.raises(ValueError, match=message):
        SidTrie.build(sids, items)


@pytest.mark.parametrize("end", [-1, 2**32 - 1, 2])
def test_build_refuses_an_end_that_is_no_unused_token(end):
    with pytest.raises(ValueError, match="`end`"):
        SidTrie.build([[1, 2]], end=end)


@pytest.mark.parametrize("sids", [[[1.5]], np.ones((2, 2)), [["a"]], "ab", 3, ["ab"], [3], [[2**70]]])
def test_build_refuses_what_is_not_integers(sids):
    with pytest.raises(TypeError, match="`sids` must"):
        SidTrie.build(sids)


def test_questions_refuse_what_is_outside():
    trie = SidTrie.build([[4, 7]])
    with pytest.raises(ValueError, match=r"`prefix` must be the start of a SID, got \[5\]"):
        trie.children([5])
    with pytest.raises(ValueError, match="`nodes` must be -1 or a node of the trie; got 3 at index 1"):
        trie.allowed([0, 3])
    with pytest.raises(ValueError, match="`nodes`"):
        trie.allowed([-2])
    with pytest.raises(ValueError, match="`prefixes` must be tokens >= 0"):
        trie.walk([[-3]])
    assert trie.items_at([9]).tolist() == []
    assert trie.items_at([]).tolist() == []
    assert trie.lookup([[2**40, 1], [4, -1]]).tolist() == [-1, -1]


def test_it_is_immutable_and_has_no_constructor():
    trie = SidTrie.build([[4, 7]])
    with pytest.raises(AttributeError, match="immutable"):
        trie.depth = 3
    with pytest.raises(TypeError, match="build"):
        SidTrie()
    trie.arrays()["tokens"][:] = 9
    assert trie.children([]).tolist() == [4]


# ---- arrays that lie


def good_arrays():
    return SidTrie.build([[4, 7], [4, 9], [6, 7], [6, 7]], [3, 1, 2, 0]).arrays()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tokens", [], "`tokens` must hold the root"),
        ("tokens", [0], "`tokens` must hold the root"),
        ("tokens", [1, 4, 6, 7, 9, 7], "0 at the root"),
        ("tokens", [0, 6, 4, 7, 9, 7], "ascending among siblings; got 4 at index 2"),
        ("tokens", [0, 4, 4, 7, 9, 7], "ascending among siblings"),
        ("tokens", [0, 4, 2**32 - 1, 7, 9, 7], "at most"),
        ("tokens", [0, 4, -1, 7, 9, 7], "`tokens` must fit in uint32"),
        ("tokens", [0, 4, 6, 7, 9], "`first_child` must have length 6, got 7"),
        ("first_child", [0, 3, 5, 6, 6, 6, 6], "must start with 1"),
        ("first_child", [1, 3, 5, 6, 6, 6, 7], "must end with the number of nodes"),
        ("first_child", [1, 3, 5, 6, 6, 6, 2**32 - 1], "must end with the number of nodes"),
        ("first_child", [1, 3, 2, 6, 6, 6, 6], "must never decrease; got 2 at index 2"),
        ("first_child", [1, 1, 3, 6, 6, 6, 6], "must lie behind its node; got 1 at index 1"),
        ("first_child", [1, 3, 3, 3, 6, 6, 6], "must lie behind its node; got 3 at index 3"),
        ("first_child", [1, 3, 5, 6], "must have length 7, got 4"),
        ("terminals", [3, 4], "every node without children; got no 5"),
        ("terminals", [3, 5, 4], "strictly ascending"),
        ("terminals", [3, 4, 5, 5], "strictly ascending"),
        ("terminals", [0, 3, 4, 5], "nodes after the root"),
        ("terminals", [3, 4, 6], "nodes after the root"),
        ("terminals", [2, 3, 4, 5], "`item_offsets` must have length 5, got 4"),
        ("item_offsets", [0, 1, 2], "`item_offsets` must have length 4, got 3"),
        ("item_offsets", [1, 2, 3, 4], "start with 0"),
        ("item_offsets", [0, 2, 2, 4], "strictly ascending"),
        ("item_offsets", [0, 1, 2, 5], "`items` must have length 5, got 4"),
        ("item_offsets", [0, 1, 2, 3], "`items` must have length 3, got 4"),
        ("items", [3, 1, 2, 0], "ascending within a terminal; got 0 at index 3"),
        ("items", [3, 1, 0, 3], "unique"),
        ("items", [3, 1, 0, -2], "must be >= 0"),
    ],
)
def test_from_arrays_refuses(name, values, message):
    with pytest.raises(ValueError, match=message):
        SidTrie.from_arrays(**{**good_arrays(), name: np.array(values, np.int64)})


def test_from_arrays_refuses_a_chain_longer_than_any_sid():
    n = 5000
    first_child = np.append(np.arange(1, n + 1), n)
    with pytest.raises(ValueError, match="`depth` must be at most 1024, got 4999"):
        SidTrie.from_arrays(np.r_[0, np.ones(n - 1, int)], first_child, [n - 1], [0, 1], [0])


words = st.one_of(st.integers(0, 8), st.sampled_from([2**31, 2**32 - 2, 2**32 - 1]))


@settings(max_examples=300)
@given(st.data(), catalogues())
def test_hostile_arrays_are_refused_or_are_a_trie(data, catalogue):
    arrays = SidTrie.build(*catalogue).arrays()
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(list(arrays)))
        array = arrays[name].copy()
        edit = data.draw(st.sampled_from(["set", "drop", "append"]))
        if edit == "append":
            array = np.append(array, array.dtype.type(data.draw(words)))
        elif edit == "drop":
            array = array[: data.draw(st.integers(0, len(array)))]
        elif len(array):
            array[data.draw(st.integers(0, len(array) - 1))] = data.draw(words)
        arrays[name] = array
    try:
        trie = SidTrie.from_arrays(**arrays)
    except ValueError:
        return
    sids, items = trie.sids()
    assert same(SidTrie.build(sids, items), trie)


# ---- files


def test_save_and_load(tmp_path):
    trie = SidTrie.build([[4, 7], [4, 9], [6]], [3, 1, 2])
    path = tmp_path / "items.safetensors"
    trie.save(path)
    trie.save(str(path))
    assert same(SidTrie.load(path), trie)
    assert os.listdir(tmp_path) == [path.name]


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("trie") / "items.safetensors"
    SidTrie.build([[4, 7], [4, 9], [6, 7]], [3, 1, 2]).save(path)
    return path.read_bytes()


def refused(path: Path, content: bytes):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"`path` must be a whole trie file, got .*save it again"):
        SidTrie.load(path)


def test_every_truncation_is_refused(tmp_path, whole_file):
    for length in range(0, len(whole_file), 7):
        refused(tmp_path / "cut", whole_file[:length])
    refused(tmp_path / "longer", whole_file + b"\0")


def test_every_flipped_bit_is_refused_or_harmless(tmp_path, whole_file):
    path = tmp_path / "flipped"
    expected = SidTrie.build([[4, 7], [4, 9], [6, 7]], [3, 1, 2])
    header = 8 + struct.unpack("<Q", whole_file[:8])[0]
    for position in range(len(whole_file)):
        content = bytearray(whole_file)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        try:
            loaded = SidTrie.load(path)
        except ValueError:
            continue
        assert position < header, "every byte of the arrays is under the checksum"
        assert same(loaded, expected)


def write(path: Path, arrays, **metadata):
    from safetensors.numpy import save_file

    known = {"format": "ugr-fast.sid-trie", "version": "1", "checksum": _checksum(arrays)}
    save_file(arrays, path, {key: value for key, value in (known | metadata).items() if value})


@pytest.mark.parametrize(
    ("edit", "metadata", "message"),
    [
        ({}, {"format": "another"}, "its metadata must say ugr-fast.sid-trie version 1"),
        ({}, {"format": ""}, "its metadata must say"),
        ({}, {"version": "2"}, "its metadata must say"),
        ({}, {"checksum": ""}, "checksum"),
        ({"tokens": [0, 6, 4, 7, 9, 7]}, {}, "ascending among siblings"),
        ({"first_child": [1, 1, 3, 6, 6, 6, 6]}, {}, "must lie behind its node"),
        ({"terminals": [3, 4, 60]}, {}, "nodes after the root"),
        ({"items": [[3, 1, 0, 2]]}, {}, "must have 1 dimension"),
    ],
)
def test_load_refuses_a_whole_file_that_is_not_a_trie(tmp_path, edit, metadata, message):
    arrays = good_arrays()
    arrays |= {name: np.array(values, arrays[name].dtype) for name, values in edit.items()}
    write(tmp_path / "x", arrays, **metadata)
    with pytest.raises(ValueError, match=f"got .*x: .*{message}"):
        SidTrie.load(tmp_path / "x")


def test_load_refuses_other_types_and_names(tmp_path):
    arrays = good_arrays()
    write(tmp_path / "x", {**arrays, "items": arrays["items"].astype(np.float64)})
    with pytest.raises(ValueError, match=r"it must hold .*'items': 'I64'.*, got .*'items': 'F64'"):
        SidTrie.load(tmp_path / "x")
    write(tmp_path / "y", {**arrays, "more": arrays["items"]})
    with pytest.raises(ValueError, match=r"it must hold .*, got .*'more': 'I64'"):
        SidTrie.load(tmp_path / "y")


def test_load_of_nothing_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        SidTrie.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        SidTrie.load(tmp_path)


def test_save_into_a_missing_folder_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        SidTrie.build([[1]]).save(tmp_path / "missing" / "x")
    assert os.listdir(tmp_path) == []


def test_save_onto_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "items.safetensors"
    SidTrie.build([[1]]).save(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the kernel stops the write half way
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            SidTrie.build(np.arange(4000)[:, None]).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == [path.name]
    assert SidTrie.load(path).num_items == 1
