"""`BeamSearch` against a full sort of all expansions, order for order, ties included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import BeamSearch, SidTrie, beam_search

NUM_TOKENS = 5
END = NUM_TOKENS
sids = st.lists(st.integers(0, NUM_TOKENS - 1), min_size=1, max_size=4).map(tuple)


@st.composite
def catalogues(draw):
    """SIDs of one length, or of several lengths closed by an end token; some shared by items."""
    rows = draw(st.lists(sids, min_size=1, max_size=25))
    if draw(st.booleans()):
        depth = min(map(len, rows))
        rows, end = [row[:depth] for row in rows], None
    else:
        end = END
    items = draw(st.lists(st.integers(0, 1000), min_size=len(rows), max_size=len(rows), unique=True))
    return SidTrie.build(rows, items, end=end), [(*row, end) if end else row for row in rows], items


# Coarse values force ties; -inf forbids; tenths make sums round.
values = st.sampled_from([-math.inf, -2.0, -1.0, -1.0, -0.5, 0.0, -0.0, -0.1, -0.7, 3.0])


@st.composite
def scorers(draw):
    """A function of the prefix, as a language model is: row `hash(prefix)` of a table of scores."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    size = 7
    table = draw(st.lists(values, min_size=size * (END + 1), max_size=size * (END + 1)))
    table = np.array(table, dtype).reshape(size, END + 1)
    return table, lambda prefix: table[hash(tuple(prefix)) % size]


def scores_for(search, score):
    """(num_rows, V) log-probabilities; NaN for dead rows, which must not be read."""
    beams = search.tokens.reshape(search.num_rows, search.depth).tolist()
    scores = np.array([score([token for token in beam if token >= 0]) for beam in beams])
    scores[search.nodes.ravel() < 0] = np.nan
    return scores


def check_result(result, row, expected, dtype):
    for beam, truth in enumerate(expected):
        tokens = [int(token) for token in result.tokens[row, beam] if token >= 0]
        logprobs = result.logprobs[row, beam]
        if truth is None:
            assert tokens == []
            assert result.scores[row, beam] == -math.inf
            assert result.items[row, beam] == -1
            assert not logprobs.any()
            continue
        path, path_logprobs, score, item = truth
        assert tuple(tokens) == path
        assert result.tokens[row, beam, len(path) :].tolist() == [-1] * (len(logprobs) - len(path))
        np.testing.assert_array_equal(logprobs[: len(path)], np.array(path_logprobs, dtype))
        assert result.scores[row, beam] == score
        assert result.items[row, beam] == item


@settings(max_examples=300)
@given(catalogues(), scorers(), st.integers(1, 8), st.booleans())
def test_search_equals_the_full_sort(catalogue, scorer, num_beams, over_candidates):
    trie, rows, items = catalogue
    table, score = scorer
    search = BeamSearch(trie, 1, num_beams)
    while not search.done:
        scores = scores_for(search, score)
        if over_candidates:
            allowed = search.candidates
            scores = np.where(allowed < 0, np.nan, np.take_along_axis(scores, np.maximum(allowed, 0), 1))
            search.step(scores, over="candidates")
        else:
            search.step(scores)
    result = search.result()
    assert result.scores.dtype == result.logprobs.dtype == table.dtype

    def step_fn(prefixes):
        return [score(prefix) if prefix is not None else None for prefix in prefixes]

    expected = reference.beam_search(rows, items, step_fn, num_beams, table.dtype.type(0))
    expected += [None] * (num_beams - len(expected))
    check_result(result, 0, expected, table.dtype)


@given(catalogues(), st.lists(scorers(), min_size=2, max_size=3), st.integers(1, 5))
def test_rows_of_a_batch_do_not_meet(catalogue, scorers, num_beams):
    trie, _, _ = catalogue
    dtype = scorers[0][0].dtype
    batch = BeamSearch(trie, len(scorers), num_beams)
    alone = [BeamSearch(trie, 1, num_beams) for _ in scorers]
    while not batch.done:
        rows = [scores_for(one, score).astype(dtype) for one, (_, score) in zip(alone, scorers, strict=True)]
        batch.step(np.concatenate(rows))
        for one, scores in zip(alone, rows, strict=True):
            if not one.done:
                one.step(scores)
    result = batch.result()
    for row, one in enumerate(alone):
        for name in ("tokens", "scores", "logprobs", "items"):
            np.testing.assert_array_equal(getattr(result, name)[row], getattr(one.result(), name)[0])


@given(catalogues(), scorers(), st.integers(1, 8))
def test_no_item_comes_twice_and_all_are_valid(catalogue, scorer, num_beams):
    trie, rows, _ = catalogue
    _, score = scorer
    search = BeamSearch(trie, 1, num_beams)
    while not search.done:
        search.step(scores_for(search, score))
        alive = search.nodes[0] >= 0
        paths, nodes = search.tokens[0][alive], search.nodes[0][alive]
        assert len(set(map(tuple, paths.tolist()))) == len(paths)
        assert trie.walk(paths).tolist() == nodes.tolist()
    found = search.result().items[0]
    found = found[found >= 0]
    assert len(set(found.tolist())) == len(found)
    assert set(found.tolist()) <= {min(trie.items_at(row).tolist()) for row in rows}


@given(catalogues(), scorers())
def test_a_beam_as_wide_as_the_catalogue_ranks_all_of_it(catalogue, scorer):
    trie, rows, _ = catalogue
    _, score = scorer
    search = BeamSearch(trie, 1, len(rows))
    while not search.done:
        search.step(scores_for(search, score))
    best = max(total_score(row, score) for row in rows)
    assert search.result().scores[0, 0] == best


def total_score(sid, score):
    return sum((score(sid[:depth])[token] for depth, token in enumerate(sid)), score(()).dtype.type(0))


def test_properties_follow_the_search():
    trie = SidTrie.build([[1], [2, 3], [2, 4]], items=[7, 8, 9])
    search = BeamSearch(trie, batch_size=1, num_beams=3)
    assert (search.width, search.num_rows, search.depth, search.done) == (1, 1, 0, False)
    assert search.tokens.shape == (1, 1, 0)
    assert search.candidates.tolist() == [[1, 2]]
    assert search.last_tokens.tolist() == [[-1]]
    search.step(np.array([[0.0, -1.0, -0.5, 0, 0]]))
    assert (search.width, search.num_rows, search.depth, search.done) == (3, 3, 1, False)
    assert search.tokens.tolist() == [[[2], [1], [-1]]]
    assert search.last_tokens.tolist() == [[2, 1, -1]]
    assert search.parents.tolist() == [[0, 0, -1]]
    assert search.live.tolist() == [[True, False, False]]
    assert search.nodes.tolist() == [[2, 1, -1]]
    assert search.candidates.tolist() == [[3, 4], [-1, -1], [-1, -1]]
    search.step(np.full((3, 5), -0.5))
    assert search.done
    # All three have score -1: parent 0 first, its tokens ascending, then the carried beam.
    result = search.result()
    assert result.tokens.tolist() == [[[2, 3], [2, 4], [1, -1]]]
    assert result.logprobs.tolist() == [[[-0.5, -0.5], [-0.5, -0.5], [-1.0, 0.0]]]
    assert result.items.tolist() == [[8, 9, 7]]
    assert search.parents.tolist() == [[0, 0, 1]]
    assert search.last_tokens.tolist() == [[3, 4, -1]]


def test_all_forbidden_ends_in_padding():
    result = beam_search(SidTrie.build([[1, 2]]), lambda t: np.full((len(t), 3), -np.inf), num_beams=2)
    assert result.items.tolist() == [[-1, -1]]
    assert result.scores.tolist() == [[-math.inf, -math.inf]]
    assert result.tokens.tolist() == [[[-1, -1], [-1, -1]]]


def test_float32_sums_are_made_in_float32():
    first, second = np.float32(-1e8), np.float32(-1.0)
    trie = SidTrie.build([[0, 0], [0, 1]])
    steps = iter([np.array([[first]]), np.array([[second, 0]] * 2, np.float32)])
    search = BeamSearch(trie, 1, 2)
    search.step(next(steps))
    search.step(next(steps))
    assert search.result().scores.tolist() == [[-1e8, -1e8]]  # a tie in float32, so by token
    assert search.result().items.tolist() == [[0, 1]]


def test_beam_search_gives_the_step_function_the_prefixes():
    seen = []

    def step_fn(tokens):
        seen.append(tokens.tolist())
        return np.log(np.tile([[0.2, 0.5, 0.3]], (len(tokens), 1)))

    result = beam_search(SidTrie.build([[0, 1], [1, 0], [2, 2]]), step_fn, num_beams=2, batch_size=2)
    assert seen == [[[], []], [[1], [2], [1], [2]]]
    assert result.items.tolist() == [[1, 2], [1, 2]]  # 0.5 * 0.2 and 0.3 * 0.3
    np.testing.assert_allclose(result.scores, np.log([[0.1, 0.09]] * 2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_inf_are_refused_where_a_token_is_allowed(value, dtype):
    trie = SidTrie.build([[1], [2]])
    scores = np.array([[value, 0, value, value]] * 2, dtype)
    scores[0] = [value, 0, 0, value]
    with pytest.raises(ValueError, match=r"`scores` must be finite or -inf .* in row 1, column 2"):
        BeamSearch(trie, 2, 1).step(scores)
    BeamSearch(trie, 1, 1).step(scores[:1])
    with pytest.raises(ValueError, match="in row 0, column 0"):
        BeamSearch(trie, 1, 1).step(scores[1:, 2:], over="candidates")


def test_a_sum_that_overflows_is_refused():
    search = BeamSearch(SidTrie.build([[0, 0]]), 1, 1)
    search.step(np.full((1, 1), 3e38, np.float32))
    with pytest.raises(ValueError, match="`scores` must be finite"):
        search.step(np.full((1, 1), 3e38, np.float32))


def test_wrong_calls_are_refused():
    trie = SidTrie.build([[1, 1], [2, 1]])
    with pytest.raises(ValueError, match=r"`trie` must have no SID .* `end=`"):
        BeamSearch(SidTrie.build([[1], [1, 2]]), 1, 1)
    for sizes in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            BeamSearch(trie, *sizes)
    search = BeamSearch(trie, 2, 2)
    with pytest.raises(RuntimeError, match="`result` needs a search that is done"):
        search.result()
    with pytest.raises(ValueError, match=r"`scores` must have shape \(2, columns\), got \(1, 3\)"):
        search.step(np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"`scores` must have shape \(2, columns\), got \(2,\)"):
        search.step(np.zeros(2))
    with pytest.raises(ValueError, match="at least 3 columns for the allowed tokens, got 2"):
        search.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="`scores` must have at least 2 columns"):
        search.step(np.zeros((2, 1)), over="candidates")
    with pytest.raises(ValueError, match='`over` must be "vocabulary" or "candidates", got \'all\''):
        search.step(np.zeros((2, 3)), over="all")
    with pytest.raises(TypeError, match="`scores` must be float32 or float64, got float16"):
        search.step(np.zeros((2, 3), np.float16))
    search.step(np.zeros((2, 3)))
    with pytest.raises(TypeError, match="`scores` must be float64, got float32"):
        search.step(np.zeros((4, 3), np.float32))
    search.step(np.zeros((4, 3))[:, ::-1])
    with pytest.raises(RuntimeError, match="the search is done"):
        search.step(np.zeros((4, 3)))


def test_more_beams_than_memory_or_numbers_are_refused():
    trie = SidTrie.build([[1]])
    with pytest.raises(MemoryError, match="no memory for a result of 18014398509481984 bytes"):
        BeamSearch(trie, 2**20, 2**31).step(np.zeros((2**20, 2), np.float32))
    with pytest.raises(ValueError, match="`num_beams` must be at most 4294967295"):
        BeamSearch(trie, 1, 2**32).step(np.zeros((1, 2)))
