"""A trie after `add` and `remove` against one that is built of the resulting catalogue."""

from __future__ import annotations

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

tokens = st.one_of(st.integers(0, 3), st.sampled_from([0xFFFF, 0x10000, 2**32 - 2]))
sids = st.lists(tokens, min_size=1, max_size=4).map(tuple)
items = st.one_of(st.integers(0, 25), st.sampled_from([2**32, 2**63 - 1]))


@st.composite
def histories(draw):
    """A catalogue {item: sid}, an end token or None, and changes to it that are all in order."""
    end = draw(st.sampled_from([None, 9]))
    rows = st.dictionaries(items, sids, min_size=1, max_size=12)
    catalogue = closed(draw(rows), end)
    start, changes = catalogue, []
    for _ in range(draw(st.integers(1, 4))):
        change = draw(removals(catalogue) if draw(st.booleans()) else additions(catalogue, end))
        if change[1]:
            changes.append(change)
            catalogue = reference.changed_catalogue(catalogue, change)
    return start, end, changes


def closed(catalogue, end):
    return {item: sid if end is None else (*sid, end) for item, sid in catalogue.items()}


def removals(catalogue):
    """Some of the items, at times all but one."""
    some = st.lists(st.sampled_from(sorted(catalogue)), unique=True, max_size=len(catalogue) - 1)
    all_but_one = st.permutations(sorted(catalogue)).map(lambda order: order[1:])
    return st.tuples(st.just("remove"), st.one_of(some, some, all_but_one))


def additions(catalogue, end):
    """New items at SIDs of any kind: new, there already, the start of one that is there, or one that goes on."""
    old = st.sampled_from(sorted({sid if end is None else sid[:-1] for sid in catalogue.values()}))
    starts = st.tuples(old, st.integers(1, 4)).map(lambda pair: pair[0][: pair[1]])
    longer = st.tuples(old, sids).map(lambda pair: pair[0] + pair[1])
    rows = st.dictionaries(items, st.one_of(sids, old, starts, longer), max_size=6)
    new = rows.map(lambda rows: closed({i: sid for i, sid in rows.items() if i not in catalogue}, end))
    return st.tuples(st.just("add"), new)


def build(catalogue):
    return SidTrie.build(list(catalogue.values()), list(catalogue))


def apply(trie, change, end):
    kind, what = change
    if kind == "remove":
        return trie.remove(what)
    rows = [sid if end is None else sid[:-1] for sid in what.values()]
    return trie.add(rows, list(what), end=end)


def identical(trie, other):
    mine, others = trie.arrays(), other.arrays()
    for name, array in others.items():
        assert (mine[name].dtype, mine[name].tolist()) == (array.dtype, array.tolist())


def check_equal(trie, catalogue, probes):
    """All questions, against the trie that is built of the catalogue."""
    other = build(catalogue)
    for name in ("num_items", "num_sids", "depth", "prefix_free"):
        assert getattr(trie, name) == getattr(other, name)
    (low, high), (other_low, other_high) = trie.token_span, other.token_span
    assert low <= other_low < other_high <= high  # as wide as both tries need, not wider after `compact`
    assert trie.compact().token_span == other.token_span
    rows = {sid[:n] for sid in [*catalogue.values(), *probes] for n in range(len(sid) + 1)}
    rows = sorted(rows, key=lambda row: (len(row), row))
    nodes, others = trie.walk(rows), other.walk(rows)
    assert (nodes >= 0).tolist() == (others >= 0).tolist()
    assert nodes[0] == 0
    there = nodes >= 0
    assert len(set(nodes[there].tolist())) == there.sum()
    np.testing.assert_array_equal(trie.allowed(nodes), other.allowed(others))
    assert trie.lookup(rows).tolist() == other.lookup(rows).tolist()
    for row, inside in zip(rows, there, strict=True):
        assert trie.items_at(row).tolist() == other.items_at(row).tolist()
        if inside:
            assert trie.children(row).tolist() == other.children(row).tolist()
    assert trie.allowed(np.arange(-1, trie.num_nodes)).shape[0] == trie.num_nodes + 1
    for mine, theirs in zip(trie.sids(), other.sids(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    identical(trie, other)
    identical(trie.compact(), other)
    assert trie.compact().num_changed_nodes == 0


def check_searches(trie, catalogue):
    other = build(catalogue)
    if not other.prefix_free:
        for one in (trie, other):
            with pytest.raises(ValueError, match="prefix of another"):
                one.filter(deny=[0])
            with pytest.raises(ValueError, match="prefix of another"):
                BeamSearch(one, 1, 1)
        return
    denied = [sorted(catalogue)[::2], [0, 5, 77]]
    for deny in (None, denied):
        found, expected = (search(one, deny) for one in (trie, other))
        for name in ("tokens", "scores", "logprobs", "items"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        np.testing.assert_array_equal(found.expand_items(9), expected.expand_items(9))


def search(trie, deny):
    """Beams by scores that hang on prefix and token, with many ties."""
    found = BeamSearch(trie, 2, 3, filter=deny and trie.filter(deny=deny))
    while not found.done:
        candidates = found.candidates
        sums = np.maximum(found.tokens, 0).reshape(found.num_rows, -1).sum(1)
        found.step(-1.0 - ((candidates + sums[:, None]) % 3), over="candidates")
    return found.result()


@settings(max_examples=150)
@given(histories(), st.lists(sids, max_size=4))
def test_a_changed_trie_is_the_one_that_is_built_of_the_result(history, probes):
    catalogue, end, changes = history
    trie = build(catalogue)
    past = [(trie, catalogue)]
    for change in changes:
        catalogue = reference.changed_catalogue(catalogue, change)
        trie = apply(trie, change, end)
        check_equal(trie, catalogue, probes)
        check_searches(trie, catalogue)
        assert trie.num_changed_nodes > 0
        past.append((trie, catalogue))
    for old, what in past:
        identical(old, build(what))


@given(histories())
def test_a_changed_trie_can_be_copied_and_kept(history):
    catalogue, end, changes = history
    trie = build(catalogue)
    for change in changes:
        trie = apply(trie, change, end)
        catalogue = reference.changed_catalogue(catalogue, change)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "items.safetensors")
        trie.save(path)
        loaded = [SidTrie.load(path), SidTrie.load(path, check=False, mmap=True)]
    for copy in [*loaded, pickle.loads(pickle.dumps(trie)), SidTrie.from_arrays(**trie.arrays())]:
        identical(copy, build(catalogue))
        assert copy.num_changed_nodes == 0


@given(histories())
def test_a_mapped_trie_takes_changes_too(history):
    catalogue, end, changes = history
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "items.safetensors")
        build(catalogue).save(path)
        trie = SidTrie.load(path, mmap=True)
    for change in changes:
        trie = apply(trie, change, end)
        catalogue = reference.changed_catalogue(catalogue, change)
    identical(trie, build(catalogue))


def test_an_item_that_went_may_come_back_elsewhere_and_go_again():
    trie = SidTrie.build([[1, 2], [3, 4]], items=[7, 8])
    away = trie.remove([7])
    assert away.lookup([[1, 2], [3, 4]]).tolist() == [-1, 8]
    back = away.add([[3, 4]], [7])
    assert back.items_at([3, 4]).tolist() == [7, 8]
    assert back.filter(deny=[7])._inner.num_rows == 1
    assert search(back, [[7], [8]]).items[:, 0].tolist() == [8, 7]
    again = back.remove([7])
    identical(again, away)
    identical(again.add([[1, 2]], [7]), trie)
    identical(trie, SidTrie.build([[1, 2], [3, 4]], items=[7, 8]))


def test_many_changes_in_one_call_and_one_by_one():
    rng = np.random.default_rng(2)
    sids = rng.integers(0, 30, (3000, 3))
    trie = SidTrie.build(sids[:2000])
    gone = rng.permutation(2000)[:500]
    at_once = trie.remove(gone).add(sids[2000:], np.arange(2000, 3000))
    kept = np.setdiff1d(np.arange(3000), gone)
    identical(at_once, SidTrie.build(sids[kept], kept))
    little = trie
    for start in range(0, 500, 125):
        little = little.remove(gone[start : start + 125])
        new = np.arange(2000 + 2 * start, 2250 + 2 * start)
        little = little.add(sids[new], new)
    identical(little, at_once)
    one = SidTrie.build(sids).remove(np.arange(1, 3000))
    identical(one, SidTrie.build(sids[:1]))


REFUSED = [
    (lambda trie: trie.add([[5]], [7]), "`items` must be >= 0, unique and new .*; got 7 at index 0"),
    (lambda trie: trie.add([[5], [6]], [20, 20]), "`items` must be .*unique.*; got 20 at index 1"),
    (lambda trie: trie.add([[5], [6]], [20, -1]), "`items` must be >= 0.*; got -1 at index 1"),
    (lambda trie: trie.add([[5]], [20, 21]), "`items` must have one id per SID, 1, got 2"),
    (lambda trie: trie.add([], [1]), "`items` must have one id per SID, 0, got 1"),
    (lambda trie: trie.add([[5], []], [20, 21]), "`sids` must have at least one token per SID"),
    (lambda trie: trie.add([[5, -2]], [20]), "`sids` must be tokens >= 0, right-padded with -1; got -2"),
    (lambda trie: trie.add([[2**32 - 1]], [20]), r"`sids` must be tokens in 0 .. 2\*\*32 - 2"),
    (lambda trie: trie.add([[1] * 1025], [20]), "`depth` must be at most 1024"),
    (lambda trie: trie.add([[5, 9]], [20], end=9), "`sids` must not contain the token `end`"),
    (lambda trie: trie.add([[5]], [20], end=-1), "`end` must be a token"),
    (lambda trie: trie.remove([99]), "`items` must name items of the catalogue, each once; got 99 at index 0"),
    (lambda trie: trie.remove([7, 7]), "`items` must name items of the catalogue, each once; got 7 at index 1"),
    (lambda trie: trie.remove([-1]), "`items` must name items of the catalogue"),
    (lambda trie: trie.remove([[7]]), "`items` must have 1 dimension"),
    (lambda trie: trie.remove(trie.sids()[1]), "`items` must leave at least one item in the catalogue"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_is_refused_leaves_the_trie_as_it_is(change, message):
    base = SidTrie.build([[1, 2], [1, 3], [4]], items=[7, 8, 9])
    changed = base.add([[4], [5, 5]], [10, 11]).remove([8])
    for trie in (base, changed):
        before = trie.sids()
        with pytest.raises(ValueError, match=message):
            change(trie)
        for one, other in zip(trie.sids(), before, strict=True):
            np.testing.assert_array_equal(one, other)
        assert trie.add([[6]], [30]).remove([7]).items_at([6]).tolist() == [30]


def test_items_that_are_no_integers_are_refused():
    trie = SidTrie.build([[1], [2]])
    with pytest.raises(TypeError, match="`items` must hold integers, got float64"):
        trie.remove([0.5])
    with pytest.raises(TypeError, match="`items` must hold integers, got float64"):
        trie.add([[3]], [0.5])
    assert trie.remove([]) is trie.add([], []) is trie


def test_other_threads_search_the_old_trie_meanwhile():
    rng = np.random.default_rng(4)
    sids = rng.integers(0, 20, (2000, 3))
    trie = SidTrie.build(sids)
    expected = search(trie, [[3], [5, 6]])
    stop, wrong, counts = threading.Event(), [], [0] * 3

    def decode(i):
        while not stop.is_set():
            counts[i] += 1
            found = search(trie, [[3], [5, 6]])
            if not (found.items == expected.items).all() or not (found.tokens == expected.tokens).all():
                wrong.append(found)

    threads = [threading.Thread(target=decode, args=[i]) for i in range(3)]
    for thread in threads:
        thread.start()
    live, kept = trie, set(range(2000))
    try:
        for step in range(250):
            gone = [2 * step, 2 * step + 1]
            live = live.remove(gone).add(sids[gone], [3000 + item for item in gone])
            kept = kept.difference(gone).union(3000 + item for item in gone)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert min(counts) > 0
    ids = np.array(sorted(kept))
    identical(live, SidTrie.build(sids[ids % 3000], ids))
