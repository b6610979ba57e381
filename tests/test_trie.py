"""`SidTrie` against sets of tuples, and against files and arrays that lie."""

from __future__ import annotations

import errno
import gc
import json
import os
import pickle
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import BeamSearch, SidTrie
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
    inner = [prefix for prefix in order if len(prefix) < trie.depth]
    children = [len(reference.trie_children(sids, prefix)) for prefix in inner]
    assert np.diff(arrays["first_child"].astype(int)).tolist() == children
    assert [order[node] for node in arrays["ends"]] == [prefix for prefix in inner if prefix in sids]


@given(catalogues())
def test_ranks_and_items_are_lexicographic(catalogue):
    sids, items = catalogue
    arrays = SidTrie.build(sids, items).arrays()
    in_order = sorted(set(sids))
    of_nodes = sorted(set(sids), key=lambda sid: (len(sid), sid))
    ragged = len(set(map(len, sids))) > 1
    assert arrays["ranks"].tolist() == ([in_order.index(sid) for sid in of_nodes] if ragged else [])
    groups = [reference.trie_items(sids, items, sid) for sid in in_order]
    starts = np.cumsum([0, *map(len, groups)]).tolist()
    assert arrays["item_offsets"].tolist() == (starts if len(groups) < len(items) else [])
    assert arrays["items"].tolist() == [item for group in groups for item in group]


@pytest.mark.parametrize("extra", [0, 1])
def test_arrays_are_as_narrow_as_they_can_be(extra):
    arrays = SidTrie.build([[65535 + extra], [0]], [2**32 - 1 + extra, 0]).arrays()
    assert arrays["tokens"].dtype == (np.uint32 if extra else np.uint16)
    assert arrays["items"].dtype == (np.int64 if extra else np.uint32)
    assert {str(arrays[name].dtype) for name in ("first_child", "ends", "ranks", "item_offsets")} == {"uint32"}
    assert SidTrie.from_arrays(**arrays).items_at([65535 + extra]).tolist() == [2**32 - 1 + extra]
    assert SidTrie.from_arrays(**arrays).arrays()["items"].dtype == arrays["items"].dtype


def test_the_number_of_threads_does_not_matter():
    rng = np.random.default_rng(3)
    sids = rng.integers(0, 300, (70_000, 3))
    sids[rng.random(len(sids)) < 0.1, 2] = -1
    items = rng.permutation(len(sids))
    alone = SidTrie.build(sids, items)
    for num_threads in (2, 3):
        assert same(SidTrie.build(sids, items, num_threads=num_threads), alone)
    with pytest.raises(ValueError, match="`num_threads` must be at least 1, got 0"):
        SidTrie.build(sids, items, num_threads=0)


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
    for made in (trie, trie.add([[5]], [9]), SidTrie.from_arrays(**trie.arrays()), pickle.loads(pickle.dumps(trie))):
        for array in made.arrays().values():
            assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            made.arrays()["tokens"][:] = 9


# ---- arrays that lie


def even_arrays():
    return SidTrie.build([[4, 7], [4, 9], [6, 7], [6, 7]], [3, 1, 2, 0]).arrays()


def ragged_arrays():
    return SidTrie.build([[4], [4, 7], [6, 7], [8]], [3, 1, 2, 0]).arrays()


def test_the_arrays_to_damage_are_what_the_damages_below_assume():
    even, ragged = ({name: a.tolist() for name, a in arrays().items()} for arrays in (even_arrays, ragged_arrays))
    assert even["tokens"] == [0, 4, 6, 7, 9, 7]
    assert even["first_child"] == [1, 3, 5, 6]
    assert (even["ends"], even["ranks"]) == ([], [])
    assert (even["item_offsets"], even["items"]) == ([0, 1, 2, 4], [3, 1, 0, 2])
    assert ragged["tokens"] == [0, 4, 6, 8, 7, 7]
    assert ragged["first_child"] == [1, 4, 5, 6, 6]
    assert (ragged["ends"], ragged["ranks"]) == ([1, 3], [0, 3, 1, 2])
    assert (ragged["item_offsets"], ragged["items"]) == ([], [3, 1, 2, 0])


EVEN_DAMAGES = [
    ("tokens", [], "`tokens` must hold the root"),
    ("tokens", [0], "`tokens` must hold the root"),
    ("tokens", [1, 4, 6, 7, 9, 7], "0 at the root"),
    ("tokens", [0, 6, 4, 7, 9, 7], r"ascending among siblings; got \[6, 4\] at index 1"),
    ("tokens", [0, 4, 4, 7, 9, 7], "ascending among siblings"),
    ("tokens", [0, 4, 2**32 - 1, 7, 9, 7], "at most"),
    ("tokens", [0, 4, -1, 7, 9, 7], "`tokens` must fit in uint32"),
    ("tokens", [0, 4, 6, 7, 9], "must end with the number of nodes; got 6 at index 3"),
    ("first_child", [], "`first_child` must not be empty"),
    ("first_child", [6], "`first_child` must not be empty"),
    ("first_child", [0, 3, 5, 6], "must start with 1"),
    ("first_child", [1, 3, 5, 7], "must end with the number of nodes"),
    ("first_child", [1, 3, 5, 2**32 - 1], "must end with the number of nodes"),
    ("first_child", [1, 3, 2, 6], "must never decrease; got 2 at index 2"),
    ("first_child", [1, 1, 5, 6], "must lie behind its node; got 1 at index 1"),
    ("first_child", [1, 3, 6], "an entry for every node above the last level, and the end; got 3 entries"),
    ("first_child", [1, 3, 5, 6, 6], "an entry for every node above the last level, and the end; got 5 entries"),
    ("first_child", [1, 3, 5, 6, 6, 6, 6], "`first_child` must be at most 6, got 7"),
    ("ends", [1], "`ranks` must have length 4, got 0"),
    ("ranks", [0, 1, 2], "`ranks` must have length 0, got 3"),
    ("item_offsets", [], "`items` must have length 3, got 4"),
    ("item_offsets", [0, 1, 2], "`item_offsets` must have length 4, got 3"),
    ("item_offsets", [1, 2, 3, 4], "start with 0"),
    ("item_offsets", [0, 2, 2, 4], "strictly ascending"),
    ("item_offsets", [0, 1, 2, 5], "`items` must have length 5, got 4"),
    ("item_offsets", [0, 1, 2, 3], "`items` must have length 3, got 4"),
    ("items", [3, 1, 2, 0], r"ascending within a SID; got \[2, 0\] at index 2"),
    ("items", [3, 1, 0, 3], "unique"),
    ("items", [3, 1, 0, -2], "must be >= 0"),
]
RAGGED_DAMAGES = [
    ("first_child", [1, 4, 5, 5, 6], "every node without children above the last level; got no 2"),
    ("ends", [1], "every node without children above the last level; got no 3"),
    ("ends", [3, 1], "strictly ascending"),
    ("ends", [1, 3, 3], "strictly ascending"),
    ("ends", [0, 1, 3], "nodes after the root and above the last level; got 0 at index 0"),
    ("ends", [1, 3, 4], "nodes after the root and above the last level; got 4 at index 2"),
    ("ends", [1, 2, 3], "`ranks` must have length 5, got 4"),
    ("ranks", [], "`ranks` must have length 4, got 0"),
    ("ranks", [0, 3, 2, 1], "the place of each SID in lexicographic order; got 2 at index 2"),
    ("item_offsets", [0, 1, 2, 3, 4], "must be empty if every SID has one item"),
    ("items", [3, 1, 2], "`items` must have length 4, got 3"),
]


@pytest.mark.parametrize(
    ("arrays", "name", "values", "message"),
    [(even_arrays, *damage) for damage in EVEN_DAMAGES] + [(ragged_arrays, *damage) for damage in RAGGED_DAMAGES],
)
def test_from_arrays_refuses(arrays, name, values, message):
    with pytest.raises(ValueError, match=message):
        SidTrie.from_arrays(**{**arrays(), name: np.array(values, np.int64)})


def test_from_arrays_refuses_a_chain_longer_than_any_sid():
    n = 5000
    with pytest.raises(ValueError, match="`depth` must be at most 1024, got 1025"):
        SidTrie.from_arrays(np.r_[0, np.ones(n - 1, int)], np.arange(1, n + 1), [], [], [], [0])


words = st.one_of(st.integers(0, 8), st.sampled_from([2**31, 2**32 - 2, 2**32 - 1]))


@settings(max_examples=150)
@given(st.data(), catalogues())
def test_hostile_arrays_are_refused_or_are_a_trie(data, catalogue):
    arrays = {name: array.astype(np.int64) for name, array in SidTrie.build(*catalogue).arrays().items()}
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(list(arrays)))
        array = arrays[name]
        edit = data.draw(st.sampled_from(["set", "drop", "append"]))
        if edit == "append":
            array = np.append(array, data.draw(words))
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


CATALOGUES = {
    "even": ([[4, 7], [4, 9], [6, 7], [6, 7]], [3, 1, 2, 0]),
    "ragged": ([[4], [4, 7], [6, 7], [8]], [3, 1, 2, 0]),
    "wide": ([[4, 2**31], [4, 9], [70000, 7]], [2**40, 1, 2]),
}


@pytest.fixture(scope="module", params=CATALOGUES)
def whole_file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("trie") / "items.safetensors"
    SidTrie.build(*CATALOGUES[request.param]).save(path)
    return path.read_bytes()


def load(content: bytes, **settings):
    """The trie in a file with this content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x")
        path.write_bytes(content)
        return SidTrie.load(path, **settings)


def refused(content: bytes, **settings):
    with pytest.raises(ValueError, match=r"`path` must be a whole trie file, got .*save it again"):
        load(content, **settings)


def cut(content: bytes):
    """The header of a file as a dict, and its data."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def joined(header, data: bytes, spaces: int = 0) -> bytes:
    text = json.dumps(header).encode() + b" " * spaces
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("check", [False, True])
def test_every_truncation_is_refused(whole_file, mmap, check):
    for length in {*range(0, len(whole_file), 7), len(whole_file) - 1}:
        refused(whole_file[:length], mmap=mmap, check=check)
    refused(whole_file + b"\0", mmap=mmap, check=check)


def test_every_flipped_bit_is_refused_or_harmless(whole_file):
    expected = load(whole_file)
    header = len(whole_file) - len(cut(whole_file)[1])
    for position in range(len(whole_file)):
        content = bytearray(whole_file)
        content[position] ^= 1 << position % 8
        try:
            loaded = load(bytes(content))
        except ValueError:
            continue
        assert position < header, "every byte of the arrays is under the checksum"
        assert same(loaded, expected)


def test_arrays_at_any_place_are_read(whole_file):
    header, data = cut(whole_file)
    for spaces in range(8):
        for mmap in (False, True):
            loaded = load(joined(header, data, spaces), mmap=mmap)
            assert same(loaded, load(whole_file))
            assert all(array.flags.aligned and not array.flags.writeable for array in loaded.arrays().values())


flips = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4)
odd = st.one_of(
    st.integers(-3, 200),
    st.sampled_from([2**31, 2**32, 2**63 - 1, 2**64, 10**400, -(2**63)]),
    st.floats(),
    st.integers(0, 200).map(float),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.sampled_from(["U16", "U32", "I64", "F32", "U8"]),
)
odd_values = st.one_of(odd, st.lists(odd, max_size=3), st.dictionaries(st.text(max_size=3), odd, max_size=2))


@st.composite
def damaged_files(draw, content):
    """A file with flipped bytes, or with odd values in its header."""
    header, data = cut(content)
    if draw(st.booleans()):
        damaged = bytearray(content if draw(st.booleans()) else joined(header, data))
        for position, value in draw(flips):
            damaged[position % len(damaged)] = value
        return bytes(damaged)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(header)))
        if not isinstance(header[name], dict) or not header[name] or draw(st.integers(0, 5)) == 0:
            header[name] = draw(odd_values)
            continue
        field = draw(st.sampled_from(sorted(header[name])))
        value = header[name][field]
        if isinstance(value, list) and value and draw(st.booleans()):
            value[draw(st.integers(0, len(value) - 1))] = draw(odd)
        else:
            header[name][field] = draw(odd_values)
    return joined(header, data)


@given(st.data(), st.booleans())
def test_a_damaged_file_is_refused_or_harmless(whole_file, data, mmap):
    try:
        loaded = load(data.draw(damaged_files(whole_file)), mmap=mmap)
    except ValueError:
        return
    assert same(loaded, load(whole_file))


def answers(trie):
    """Ask everything; each question has an answer or a `ValueError`."""
    questions = [
        lambda: repr(trie),
        lambda: trie.children([]),
        lambda: trie.children([4]),
        lambda: trie.lookup([[4, 7], [6, 7], [70000, 7], [8, -1]]),
        lambda: trie.items_at([4, 7]),
        lambda: trie.allowed(np.arange(-1, trie.num_nodes)),
        lambda: trie.sids(),
        lambda: trie.max_token,
        lambda: trie.filter(deny=[0, 1, 2]),
        lambda: search(trie),
        lambda: search(trie, filter=trie.filter(allow=[0, 1, 2**40])),
        lambda: answers_of_changes(trie),
        lambda: pickle.loads(pickle.dumps(trie)),
    ]
    for question in questions:
        try:
            question()
        except ValueError:
            continue


def search(trie, **settings):
    found = BeamSearch(trie, 2, 3, **settings)
    while not found.done:
        assert found.depth <= trie.num_nodes
        found.step(np.zeros(found.candidates.shape), over="candidates")
    result = found.result()
    result.expand_items(4)
    found = BeamSearch(trie, 1, 2, **settings)
    found.step(np.zeros((1, 12), np.float32))


def answers_of_changes(trie):
    changed = trie.remove(trie.sids()[1][:1]).add([[4, 5], [9]], [50, 51])
    changed.children([])
    search(changed, filter=changed.filter(deny=[1, 50]))
    changed.compact()


@settings(max_examples=150)
@given(st.data(), st.booleans())
def test_a_damaged_file_that_is_trusted_is_refused_or_answers(whole_file, data, mmap):
    content = data.draw(damaged_files(whole_file))
    try:
        loaded = load(content, check=False, mmap=mmap)
    except ValueError:
        return
    answers(loaded)


@settings(max_examples=150)
@given(st.data())
def test_arrays_that_nobody_checked_answer(whole_file, data):
    header, content = cut(whole_file)
    content = bytearray(content)
    for position, value in data.draw(flips):
        content[position % len(content)] = data.draw(st.sampled_from([value, 0, 1, 2, 3, 255]))
    answers(load(joined(header, bytes(content)), check=False))


def test_a_declared_size_allocates_nothing(whole_file):
    header, data = cut(whole_file)
    for size in (2**30, 2**62, 2**64, 10**30):
        for name in header.keys() - {"__metadata__"}:
            start = header[name]["data_offsets"][0]
            width = {"U16": 2, "U32": 4, "I64": 8}[header[name]["dtype"]]
            lie = {"dtype": header[name]["dtype"], "shape": [size], "data_offsets": [start, start + size * width]}
            refused(joined(header | {name: lie}, data), check=False)
    for size in (len(whole_file), 2**31, 2**63, 2**64 - 1):
        refused(size.to_bytes(8, "little") + whole_file[8:], check=False)


@pytest.mark.parametrize("depth", [*range(900, 1000, 3), 40_000])
@pytest.mark.parametrize("place", ["__metadata__", "tokens"])
def test_a_deep_header_is_refused(whole_file, place, depth):
    header, data = cut(whole_file)
    del header[place]
    deep = b'{"' + place.encode() + b'":{"a":' + b"[" * depth + b"]" * depth + b"}," + json.dumps(header)[1:].encode()
    refused(len(deep).to_bytes(8, "little") + deep + data)


def in_a_file(array) -> bool:
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = getattr(array, "base", None)
    return False


def test_a_mapped_trie_stays_in_its_file(tmp_path):
    path = tmp_path / "items.safetensors"
    sids = np.random.default_rng(0).integers(0, 9, (50, 3))
    trie = SidTrie.build(sids)
    trie.save(path)
    mapped = SidTrie.load(path, mmap=True)
    assert all(in_a_file(array) for array in mapped.arrays().values())
    assert not any(in_a_file(array) for array in SidTrie.load(path).arrays().values())
    SidTrie.build([[1]]).save(path)  # replaces the file; the old one stays as long as it is mapped
    gc.collect()
    assert same(mapped, trie)
    assert SidTrie.load(path, mmap=True).num_items == 1
    changed = mapped.add([[9, 9, 9]], [777]).remove([0])
    del mapped
    gc.collect()
    assert changed.items_at([9, 9, 9]).tolist() == [777]
    assert same(changed, SidTrie.build([*sids[1:], [9, 9, 9]], [*range(1, 50), 777]))
    mapped = SidTrie.load(path, mmap=True)
    mapped.save(path)  # onto its own file
    assert same(SidTrie.load(path), mapped)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("mmap", [False, True])
def test_a_trie_works_after_a_fork(tmp_path, mmap):
    path = tmp_path / "items.safetensors"
    SidTrie.build([[4, 7], [4, 9], [6, 7]], num_threads=2).save(path)
    trie = SidTrie.load(path, mmap=mmap)
    trie.filter(deny=[0])
    child = os.fork()
    if child == 0:
        kept = trie.filter(deny=[0])
        found = BeamSearch(trie, 2, 2, filter=kept, num_threads=2).candidates.tolist()
        os._exit(0 if trie.lookup([[4, 9]]) == 1 and found == [[4, 6]] * 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert trie.lookup([[6, 7]]).tolist() == [2]


def write(path: Path, arrays, **metadata):
    from safetensors.numpy import save_file

    known = {"format": "ugr-fast.sid-trie", "version": "2", "checksum": _checksum(arrays)}
    save_file(arrays, path, {key: value for key, value in (known | metadata).items() if value})


@pytest.mark.parametrize(
    ("edit", "metadata", "message"),
    [
        ({}, {"format": "another"}, "its metadata must say ugr-fast.sid-trie version 2"),
        ({}, {"format": ""}, "its metadata must say"),
        ({}, {"version": "1"}, "its metadata must say"),
        ({}, {"checksum": ""}, "checksum"),
        ({"tokens": [0, 6, 4, 7, 9, 7]}, {}, "ascending among siblings"),
        ({"first_child": [1, 1, 5, 6]}, {}, "must lie behind its node"),
        ({"ends": [60]}, {}, "nodes after the root"),
        ({"items": [[3, 1, 0, 2]]}, {}, "type, length and place of `items`"),
    ],
)
def test_load_refuses_a_whole_file_that_is_not_a_trie(tmp_path, edit, metadata, message):
    arrays = even_arrays()
    arrays |= {name: np.array(values, arrays[name].dtype) for name, values in edit.items()}
    write(tmp_path / "x", arrays, **metadata)
    with pytest.raises(ValueError, match=f"got .*x: .*{message}"):
        SidTrie.load(tmp_path / "x")


def test_load_refuses_other_types_and_names(tmp_path):
    arrays = even_arrays()
    write(tmp_path / "x", {**arrays, "items": arrays["items"].astype(np.float64)})
    with pytest.raises(ValueError, match=r"type, length and place of `items`, got .*'F64'"):
        SidTrie.load(tmp_path / "x")
    write(tmp_path / "x", {**arrays, "tokens": arrays["tokens"].astype(np.int64)})
    with pytest.raises(ValueError, match=r"`tokens` must be a whole array of uint32 or narrower, got .*'I64'"):
        SidTrie.load(tmp_path / "x")
    write(tmp_path / "x", {**arrays, "more": arrays["items"]})
    with pytest.raises(ValueError, match=r"it must hold \['ends', .*, got .*'more'"):
        SidTrie.load(tmp_path / "x")


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


def test_threads_may_save_to_one_path(tmp_path):
    path = tmp_path / "items.safetensors"
    tries = [SidTrie.build([[token, 1], [token, 2]]) for token in range(4)]

    def save(trie):
        for _ in range(10):
            trie.save(path)

    threads = [threading.Thread(target=save, args=(trie,)) for trie in tries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert SidTrie.load(path).num_items == 2
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
