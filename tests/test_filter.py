"""Filters against the search of a catalogue from which the denied items are gone, order for order, ties included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import BeamSearch, SidTrie

NUM_TOKENS = 4
END = NUM_TOKENS
BATCH = 2
sids = st.lists(st.integers(0, NUM_TOKENS - 1), min_size=1, max_size=4).map(tuple)


@st.composite
def catalogues(draw, max_size=25):
    """A trie with its SIDs and items: of one length, or of several closed by an end token; some shared by items."""
    rows = draw(st.lists(sids, min_size=1, max_size=max_size))
    if draw(st.booleans()):
        depth = min(map(len, rows))
        rows, end = [row[:depth] for row in rows], None
    else:
        end = END
    items = draw(st.lists(st.integers(0, 40), min_size=len(rows), max_size=len(rows), unique=True))
    trie = SidTrie.build(rows, items, end=end)
    return trie, [(*row, end) if end else row for row in rows], items


@st.composite
def changed_catalogues(draw):
    """As `catalogues`, after items went and others came."""
    trie, rows, items = draw(catalogues())
    gone = draw(st.lists(st.sampled_from(items), unique=True, max_size=len(items) - 1))
    trie = trie.remove(gone)
    rows, items = reference.kept_rows(rows, items, set(items) - set(gone))
    new = draw(st.lists(sids, min_size=1, max_size=6))
    if all(END in row for row in rows):
        new = [(*row, END) for row in new]
    else:
        depth = len(rows[0])
        new = [(row * depth)[:depth] for row in new]
    new_items = draw(st.lists(st.integers(41, 60), min_size=len(new), max_size=len(new), unique=True))
    return trie.add(new, new_items), rows + new, items + new_items


ids = st.lists(st.one_of(st.integers(-1, 61), st.sampled_from([-1, 10**12, 2**63 - 1])), max_size=40)
lists = st.one_of(st.none(), ids, st.lists(ids, min_size=BATCH, max_size=BATCH), st.lists(ids, min_size=1, max_size=1))

# Coarse values force ties; -inf forbids.
values = st.sampled_from([-math.inf, -2.0, -1.0, -1.0, -0.5, 0.0, -0.1])
tables = st.lists(values, min_size=7 * (END + 1), max_size=7 * (END + 1)).map(lambda x: np.reshape(x, (7, END + 1)))


def scores_for(search, table):
    """(num_rows, V) scores of each beam's prefix; NaN for dead rows, which must not be read."""
    beams = search.tokens.reshape(search.num_rows, search.depth).tolist()
    scores = np.array([table[hash(tuple(token for token in beam if token >= 0)) % 7] for beam in beams])
    scores[search.nodes.ravel() < 0] = np.nan
    return scores


def run(search, table):
    while not search.done:
        search.step(scores_for(search, table))
    return search.result()


def kept_by(items, allow, deny):
    """The items left to each row of the batch."""
    allowed, denied = ([reference.list_of_row(x, row) for row in range(BATCH)] for x in (allow, deny))
    return [reference.kept_items(items, *pair) for pair in zip(allowed, denied, strict=True)]


@settings(max_examples=200)
@given(st.one_of(catalogues(), changed_catalogues()), lists, lists, tables, st.integers(1, 8))
def test_a_filtered_search_is_that_of_the_catalogue_without_the_denied_items(catalogue, allow, deny, table, num_beams):
    trie, rows, items = catalogue
    search = BeamSearch(trie, BATCH, num_beams, filter=trie.filter(allow, deny))
    kept = kept_by(items, allow, deny)
    while not search.done:
        candidates = iter(search.candidates)
        for row in range(BATCH):
            for beam, node in zip(search.tokens[row].tolist(), search.nodes[row], strict=True):
                prefix, found = tuple(token for token in beam if token >= 0), next(candidates)
                live = reference.trie_children(reference.kept_rows(rows, items, kept[row])[0], prefix)
                assert found[found >= 0].tolist() == (live if node >= 0 else [])
        search.step(scores_for(search, table))
    assert (search.candidates == -1).all()
    check(search.result(), rows, items, kept, table)


def check(result, rows, items, kept, table):
    ranking = result.expand_items(9)
    for row in range(BATCH):
        left = reference.kept_rows(rows, items, kept[row])
        num_beams = result.items.shape[1]

        def logprobs_of(prefix):
            return dict(enumerate(table[hash(prefix) % 7]))

        beams = reference.beam_search(left[0], logprobs_of, num_beams, np.float64(0))
        expected = [(beam.tokens, beam.logprobs, beam.score) for beam in beams]
        expected += [((), (), -math.inf)] * (num_beams - len(expected))
        for beam, (path, logprobs, score) in enumerate(expected):
            item = reference.trie_items(*left, path)[0] if path else -1
            padding = (-1,) * (result.tokens.shape[2] - len(path))
            assert tuple(result.tokens[row, beam].tolist()) == path + padding
            assert result.logprobs[row, beam, : len(path)].tolist() == list(logprobs)
            assert (result.scores[row, beam], result.items[row, beam]) == (score, item)
        found = [beam.tokens for beam in beams]
        assert ranking[row].tolist() == reference.item_ranking(*left, found, 9)


SETTINGS = [
    {},
    {"normalize": "allowed", "temperature": 0.5},
    {"normalize": "full", "length_penalty": 0.7},
    {"num_groups": 2, "diversity": 0.5},
    {"method": "stochastic", "seed": 5},
    {"method": "sample", "seed": 5},
]


@given(st.one_of(catalogues(), changed_catalogues()), st.lists(ids, max_size=2), tables, st.sampled_from(SETTINGS))
def test_every_search_is_that_of_the_trie_without_the_denied_items(catalogue, deny, table, setting):
    trie, rows, items = catalogue
    denied = [item for row in deny for item in row]
    kept = reference.kept_items(items, None, denied)
    found = run(BeamSearch(trie, 2, 4, filter=trie.filter(deny=denied), **setting), table)
    if not kept:
        assert (found.items == -1).all()
        return
    without = SidTrie.build(*reference.kept_rows(rows, items, kept))
    expected = run(BeamSearch(without, 2, 4, **setting), table)
    for name in ("scores", "items", "perturbed", "threshold", "inclusion"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.expand_items(7), expected.expand_items(7))
    for name, padding in (("tokens", -1), ("logprobs", 0)):
        mine, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(mine[:, :, : without.depth], other)
        assert (mine[:, :, without.depth :] == padding).all()


@st.composite
def intervals(draw, num_items):
    """Row numbers: a few long intervals, found by runs, or many that lie apart, found by children."""
    if draw(st.booleans()):
        starts = draw(st.lists(st.integers(0, num_items - 1), max_size=4))
        spans = [range(start, min(num_items, start + draw(st.integers(1, 400)))) for start in starts]
        return sorted({row for span in spans for row in span})
    return list(range(draw(st.integers(0, 4)), num_items, draw(st.integers(2, 5))))


@settings(max_examples=60)
@given(st.data(), st.integers(1, 3), st.booleans())
def test_hundreds_of_children_are_pruned_by_runs_and_by_children(data, shared, change):
    rng = np.random.default_rng(data.draw(st.integers(0, 5)))
    rows = sorted({(int(a), int(b)) for a, b in rng.integers(0, (3, 500), (900, 2))} | {(7, b) for b in range(300)})
    rows = [row for row in rows for _ in range(1 + row[1] % shared)]
    items = rng.permutation(len(rows)).tolist()
    trie = SidTrie.build(rows, items)
    if change:
        trie = trie.remove(items[:5]).add([(0, 1), (9, 9)], [2000, 2001])
        rows, items = [*rows[5:], (0, 1), (9, 9)], [*items[5:], 2000, 2001]
    listed = [items[row] for row in data.draw(intervals(len(rows)))]
    deny = trie.filter(deny=[*listed, -1, 5000])
    allow = trie.filter(allow=[-1, *set(items) - set(listed)])
    kept = {row for row, item in zip(rows, items, strict=True) if item not in set(listed)}
    for prefix in [(), (0,), (1,), (2,), (7,)]:
        expected = sorted({row[len(prefix)] for row in kept if row[: len(prefix)] == prefix})
        if prefix and not expected:
            continue  # no search gets there
        node = trie.walk([prefix])[:, None]
        for made in (deny, allow):
            found = trie._inner.allowed(node, made._inner)[0]
            assert found[found >= 0].tolist() == expected


def test_what_a_row_of_lists_may_be():
    trie = SidTrie.build([[0], [1], [2], [3]])

    def left(batch_size, allow=None, deny=None):
        candidates = BeamSearch(trie, batch_size, 1, filter=trie.filter(allow, deny)).candidates
        return [row[row >= 0].tolist() for row in candidates]

    for one in ([0, 2], (0, 2), np.array([0, 2]), [[0, 2]], np.array([[0, -1, 2]], np.int32), [np.array([2, 0, 0])]):
        assert left(1, deny=one) == [[1, 3]]
        assert left(3, deny=one) == [[1, 3]] * 3
        assert left(3, allow=one) == [[0, 2]] * 3
    for two in ([[0], []], [np.array([0]), ()], np.array([[0, -1], [-1, -1]]), [[0, 0, 99], [-1]]):
        assert left(2, deny=two) == [[1, 2, 3], [0, 1, 2, 3]]
        assert left(2, allow=two) == [[0], []]
        assert left(2, allow=[0, 1], deny=two) == [[1], [0, 1]]
        assert left(2, allow=two, deny=[[1, 0]]) == [[], []]
    assert left(2) == [[0, 1, 2, 3]] * 2
    for nothing in ([], [[]], np.empty(0), np.empty((1, 0), np.int64)):
        assert left(2, deny=nothing) == [[0, 1, 2, 3]] * 2
        assert left(2, allow=nothing) == [[]] * 2
    assert left(1, deny=range(4)) == [[]]


def test_a_filter_says_what_it_is_for():
    trie = SidTrie.build([[0], [1]])
    assert repr(trie.filter(deny=[[0], []])).startswith("Filter(num_rows=2, trie=SidTrie(num_items=2")
    assert trie.filter().num_rows == 1


@pytest.mark.parametrize(
    ("allow", "deny", "error", "message"),
    [
        ([[0], [1]], [[0], [1], []], ValueError, "`allow` must have length 3, got 2"),
        (None, [0.5], TypeError, "`deny` must hold"),
        ([["a"]], None, TypeError, "`allow` must hold integers"),
        (None, [True], TypeError, "`deny` must hold integers, got bool"),
        (3, None, TypeError, "`allow` must be item ids or lists of them, got int"),
        ("ab", None, TypeError, "`allow` must be item ids or lists of them, got str"),
        (None, {1, 2}, TypeError, "`deny` must be item ids or lists of them, got set"),
        (None, [1, [2]], TypeError, "`deny` must hold sequences of ints, got int"),
        (None, np.zeros((1, 1, 1), int), ValueError, "`deny` must have 2 dimensions"),
        (None, np.array([2**63], np.uint64), ValueError, "`deny` must fit in int64"),
    ],
)
def test_wrong_lists_are_refused(allow, deny, error, message):
    with pytest.raises(error, match=message):
        SidTrie.build([[0], [1]]).filter(allow, deny)


def test_wrong_uses_are_refused():
    trie, other = SidTrie.build([[0], [1]]), SidTrie.build([[0], [1]])
    with pytest.raises(ValueError, match="`filter` must be made by the trie that is searched"):
        BeamSearch(other, 1, 1, filter=trie.filter(deny=[0]))
    with pytest.raises(ValueError, match="`filter` must be made by the trie that is searched"):
        BeamSearch(trie.remove([0]), 1, 1, filter=trie.filter(deny=[0]))
    for rows in ([[0], [1]], np.empty((0, 2), int)):
        with pytest.raises(ValueError, match="`filter` must have 1 row or `batch_size` 3, got"):
            BeamSearch(trie, 3, 1, filter=trie.filter(deny=rows))
    with pytest.raises(ValueError, match=r"`trie` must have no SID that is a prefix of another.*`end=`"):
        SidTrie.build([[0], [0, 1]]).filter(deny=[0])
