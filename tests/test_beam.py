"""`BeamSearch` against a full sort of all expansions, order for order, ties included."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import BeamSearch, SidTrie, beam_search

NUM_TOKENS = 5
END = NUM_TOKENS
NUM_COLUMNS = END + 3  # two more than there are tokens
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


@st.composite
def filtered(draw):
    """A catalogue, a filter or None, and the SIDs and items that it leaves."""
    trie, rows, items = draw(catalogues())
    denied = draw(st.none() | st.sets(st.sampled_from(items)))
    if denied is None:
        return trie, None, rows, items
    live = [(row, item) for row, item in zip(rows, items, strict=True) if item not in denied]
    rows, items = [row for row, _ in live], [item for _, item in live]
    return trie, draw(st.sampled_from([trie.filter(deny=sorted(denied)), trie.filter(allow=items)])), rows, items


# Coarse values force ties; -inf forbids; tenths make sums round.
values = st.sampled_from([-math.inf, -2.0, -1.0, -1.0, -0.5, 0.0, -0.0, -0.1, -0.7, 3.0])


@st.composite
def scorers(draw):
    """A function of the prefix, as a language model is: row `hash(prefix)` of a table of scores."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    size = 7
    table = draw(st.lists(values, min_size=size * NUM_COLUMNS, max_size=size * NUM_COLUMNS))
    table = np.array(table, dtype).reshape(size, NUM_COLUMNS)
    return table, lambda prefix: table[hash(tuple(prefix)) % size]


@st.composite
def rules(draw):
    """Settings of a search that chooses the best, and its number of beams."""
    normalize = draw(st.sampled_from([None, "full", "allowed", (0, NUM_COLUMNS - 1)]))
    num_groups = draw(st.integers(1, 3))
    chosen = {
        "normalize": normalize,
        "temperature": 1.0 if normalize is None else draw(st.sampled_from([1.0, 0.3, 4.0])),
        "length_penalty": draw(st.sampled_from([0.0, 0.0, 1.0, 0.7, -0.5])),
        "num_groups": num_groups,
        "diversity": draw(st.sampled_from([0.0, 0.5, 10.0])),
    }
    return chosen, num_groups * draw(st.integers(1, 4))


def scores_for(search, score, row=0):
    """(width, V) scores of a row of the batch; NaN in all that must not be read."""
    beams = slice(row * search.width, (row + 1) * search.width)
    prefixes = search.tokens.reshape(search.num_rows, search.depth)[beams].tolist()
    scores = np.array([score([token for token in prefix if token >= 0]) for prefix in prefixes])  # (width, V)
    if search.normalize in (None, "allowed"):
        read = np.zeros(scores.shape, np.bool_)
        for beam, allowed in zip(read, search.candidates[beams], strict=True):
            beam[allowed[allowed >= 0]] = True
    else:
        low, high = (0, NUM_COLUMNS) if search.normalize == "full" else search.normalize
        columns = np.arange(NUM_COLUMNS)
        read = np.broadcast_to((low <= columns) & (columns < high), scores.shape)
    return np.where(read & search.live[row, :, None], scores, scores.dtype.type(np.nan))


def over_candidates(search, scores):
    """The columns of `search.candidates` of (num_rows, V) scores; NaN beside them."""
    allowed = search.candidates
    return np.where(allowed < 0, scores.dtype.type(np.nan), np.take_along_axis(scores, np.maximum(allowed, 0), 1))


def measured(row, tokens, normalize, temperature):
    """The kernel's own log-probabilities of some tokens of a row, bit by bit: a search that is one step deep."""
    if normalize is None or not tokens:
        return dict(enumerate(row))
    found = beam_search(
        SidTrie.build([[token] for token in tokens]),
        lambda _: row[None],
        num_beams=len(tokens),
        normalize=normalize,
        temperature=temperature,
    )
    logprobs = dict(zip(found.tokens[0, :, 0].tolist(), found.logprobs[0, :, 0], strict=True))
    return {token: logprobs.get(token, row.dtype.type(-np.inf)) for token in tokens}


def columns_of(normalize, tokens):
    """What log-probabilities of `tokens` are normalised over."""
    if normalize == "allowed":
        return tokens
    return range(NUM_COLUMNS) if normalize == "full" else range(*normalize)


def policy(rows, score, normalize=None, temperature=1.0):
    """`logprobs_of` for the reference: the kernel's, each of them close to that of an exact sum."""

    def logprobs_of(prefix):
        row, tokens = score(prefix), reference.trie_children(rows, prefix)
        logprobs = measured(row, tokens, normalize, temperature)
        if normalize is not None:
            exact = reference.log_softmax(row, columns_of(normalize, tokens), temperature)
            tolerance = 1e-5 if row.dtype == np.float32 else 1e-13
            for token in tokens:
                assert logprobs[token] <= 0
                assert logprobs[token] == pytest.approx(exact[token], abs=tolerance)
        return logprobs

    return logprobs_of


def check_result(result, row, expected, rows, items):
    """`result` is the beams `expected`, and then padding."""
    for place in range(result.tokens.shape[1]):
        beam = expected[place] if place < len(expected) else reference.Beam((), (), -math.inf, -math.inf)
        left = result.tokens.shape[2] - len(beam.tokens)
        assert result.tokens[row, place].tolist() == [*beam.tokens, *[-1] * left]
        assert result.logprobs[row, place].tolist() == [*map(float, beam.logprobs), *[0.0] * left]
        assert result.scores[row, place] == beam.score
        assert result.items[row, place] == [*reference.trie_items(rows, items, beam.tokens), -1][0]


@settings(max_examples=300)
@given(filtered(), scorers(), rules(), st.booleans())
def test_search_equals_the_full_sort(catalogue, scorer, rule, by_candidates):
    trie, live, rows, items = catalogue
    table, score = scorer
    chosen, num_beams = rule
    search = BeamSearch(trie, 1, num_beams, filter=live, **chosen)
    by_candidates = by_candidates and search.normalize in (None, "allowed")
    while not search.done:
        scores = scores_for(search, score)
        if by_candidates:
            search.step(over_candidates(search, scores), over="candidates")
        else:
            search.step(scores)
    result = search.result()
    assert result.scores.dtype == result.logprobs.dtype == table.dtype
    assert result.perturbed is result.threshold is result.inclusion is None
    logprobs_of = policy(rows, score, chosen.pop("normalize"), chosen.pop("temperature"))
    check_result(
        result, 0, reference.beam_search(rows, logprobs_of, num_beams, table.dtype.type(0), **chosen), rows, items
    )


@pytest.mark.parametrize("normalize", ["full", "allowed", (1, 7)])
@pytest.mark.parametrize("length_penalty", [0.0, 0.8])
@pytest.mark.parametrize(("num_groups", "diversity"), [(1, 0.0), (3, 0.4)])
def test_search_equals_the_full_sort_of_exact_softmaxes(normalize, length_penalty, num_groups, diversity):
    """No two of these random sums are near one another: rounding cannot change an order."""
    rng = np.random.default_rng(0)
    rows = sorted({(*rng.integers(1, 6, rng.integers(1, 4)).tolist(), 6) for _ in range(60)})
    table = rng.normal(0, 2, (101, NUM_COLUMNS))

    def logprobs_of(prefix):
        tokens = reference.trie_children(rows, prefix)
        return reference.log_softmax(table[hash(prefix) % 101], columns_of(normalize, tokens), temperature=1.7)

    shared = {"length_penalty": length_penalty, "num_groups": num_groups, "diversity": diversity}
    expected = reference.beam_search(rows, logprobs_of, 12, 0.0, **shared)
    result = beam_search(
        SidTrie.build(rows),
        lambda prefixes: np.array([table[hash(tuple(p[p >= 0].tolist())) % 101] for p in prefixes]),
        num_beams=12,
        normalize=normalize,
        temperature=1.7,
        **shared,
    )
    found = result.tokens[0][result.items[0] >= 0]
    assert [tuple(sid[sid >= 0].tolist()) for sid in found] == [beam.tokens for beam in expected]
    np.testing.assert_allclose(result.scores[0, : len(found)], [beam.score for beam in expected], rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("normalize", [None, "full", "allowed"])
@pytest.mark.parametrize(
    "rule", [{}, {"length_penalty": 0.7}, {"length_penalty": -3.0}, {"num_groups": 2, "diversity": 0.5}]
)
def test_hundreds_of_children_are_sorted_as_well(rule, normalize, coarse, dtype):
    """Few of them can enter, many are equal, and all of that must be seen in time."""
    rng = np.random.default_rng(0)
    rows = sorted(set(map(tuple, rng.integers(0, (4, 300), (900, 2)).tolist())))
    table = rng.normal(0, 1, (5, 300))
    table = (np.round(table * 2) / 2 if coarse else table).astype(dtype)
    trie, denied = SidTrie.build(rows), set(rng.integers(0, len(rows), 80).tolist())
    temperature = 1.0 if normalize is None else 0.7
    for live, left in ((None, rows), (trie.filter(deny=list(denied)), None)):
        left = left or [row for item, row in enumerate(rows) if item not in denied]

        def logprobs_of(prefix, left=left):
            return measured(
                table[len(prefix) and prefix[0] + 1], reference.trie_children(left, prefix), normalize, temperature
            )

        expected = reference.beam_search(left, logprobs_of, 6, dtype(0), **rule)
        result = beam_search(
            trie,
            lambda prefixes: table[prefixes[:, 0] + 1] if prefixes.size else table[:1],
            num_beams=6,
            filter=live,
            normalize=normalize,
            temperature=temperature,
            **rule,
        )
        check_result(result, 0, expected, rows, list(range(len(rows))))


@settings(max_examples=200)
@given(catalogues(), st.lists(scorers(), min_size=2, max_size=5), rules(), st.integers(1, 4), st.data())
def test_rows_of_a_batch_do_not_meet(catalogue, scorers, rule, num_threads, data):
    trie, _, items = catalogue
    chosen, num_beams = rule
    dtype = scorers[0][0].dtype
    denied = [data.draw(st.lists(st.sampled_from(items), max_size=3)) for _ in scorers]
    batch = BeamSearch(
        trie, len(scorers), num_beams, filter=trie.filter(deny=denied), num_threads=num_threads, **chosen
    )
    alone = [BeamSearch(trie, 1, num_beams, filter=trie.filter(deny=row), **chosen) for row in denied]
    while not batch.done:
        rows = [scores_for(batch, score, row).astype(dtype) for row, (_, score) in enumerate(scorers)]
        batch.step(np.concatenate(rows))
        for one, scores in zip(alone, rows, strict=True):
            if not one.done:
                one.step(scores)
    result = batch.result()
    for row, one in enumerate(alone):
        for name in ("tokens", "scores", "logprobs", "items"):
            np.testing.assert_array_equal(getattr(result, name)[row], getattr(one.result(), name)[0])
        assert result.expand_items(9)[row].tolist() == one.result().expand_items(9)[0].tolist()


@pytest.mark.parametrize("num_beams", [4, 300])  # kept in order, kept in a buffer
@pytest.mark.parametrize("normalize", [None, "full", "allowed"])
@pytest.mark.parametrize("over", ["vocabulary", "candidates"])
def test_threads_change_nothing(num_beams, normalize, over):
    if normalize == "full" and over == "candidates":
        return
    rng = np.random.default_rng(1)
    trie = SidTrie.build(rng.integers(0, 40, (2000, 3)))
    table = np.log(rng.dirichlet(np.ones(40), (61, trie.num_nodes // 61 + 1))).reshape(-1, 40).astype(np.float32)
    shared = {"filter": trie.filter(deny=rng.integers(0, 2000, (61, 50))), "normalize": normalize}
    shared |= {"num_groups": 2, "diversity": 0.3, "length_penalty": 0.5}
    results = []
    for num_threads in (1, 2, 3, 61, 1000):
        search = BeamSearch(trie, 61, num_beams, num_threads=num_threads, **shared)
        while not search.done:
            scores = table[(search.nodes + np.arange(61)[:, None]).ravel() % len(table)]
            search.step(over_candidates(search, scores) if over == "candidates" else scores, over)
        results.append(search.result())
    for result in results[1:]:
        for name in ("tokens", "scores", "logprobs", "items"):
            assert getattr(result, name).tobytes() == getattr(results[0], name).tobytes()


@given(catalogues(), scorers(), st.integers(1, 5))
def test_a_row_that_cannot_matter_is_not_read(catalogue, scorer, num_beams):
    """What the docstring of `step` says: a beam no better than the K-th best before it. All others are read."""
    trie, rows, _ = catalogue
    _, score = scorer
    logprobs_of = policy(rows, score, "allowed")
    search = BeamSearch(trie, 1, num_beams, normalize="allowed")
    beams = [reference.Beam((), (), score(()).dtype.type(0), score(()).dtype.type(0))]
    while not search.done:
        scores, before = scores_for(search, score), []
        for place, beam in enumerate(beams):
            if beam is None:
                continue
            pruned = len(before) >= num_beams and beam.score <= sorted(before)[-num_beams]
            if beam.tokens not in rows:
                column = reference.trie_children(rows, beam.tokens)[0]
                spoilt = scores.copy()
                spoilt[place, column] = np.nan
                if pruned:
                    scores = spoilt
                else:
                    with pytest.raises(ValueError, match=f"got NaN in row {place}, column {column},"):
                        search.step(spoilt)
            before += [grown.score for _, grown in reference.expansions(rows, beam, logprobs_of, 1)]
        search.step(scores)
        beams = reference.beam_step(rows, beams, logprobs_of, num_beams, 1, 1, 0)
        assert search.tokens[0].tolist() == [
            [*beam.tokens, *[-1] * (search.depth - len(beam.tokens))] if beam else [-1] * search.depth for beam in beams
        ]


def test_one_dominant_beam_leaves_the_others_unread():
    trie = SidTrie.build([[a, b] for a in range(4) for b in range(4)])
    for dtype in (np.float32, np.float64):
        search = BeamSearch(trie, 1, 3, normalize="allowed")
        search.step(np.array([[9, 0, 0, -1]], dtype))
        search.step(np.array([[1, 1, 1, 1], [np.nan] * 4, [np.nan] * 4], dtype))
        assert search.result().tokens.tolist() == [[[0, 0], [0, 1], [0, 2]]]
        # Log-probabilities may be above 0 as far as the search knows: all of them are read.
        search = BeamSearch(trie, 1, 3)
        search.step(np.array([[9, 0, 0, -1]], dtype))
        with pytest.raises(ValueError, match="got NaN in row 1, column 0"):
            search.step(np.array([[1, 1, 1, 1], [np.nan] * 4, [np.nan] * 4], dtype))


def test_a_beam_that_only_equals_the_last_one_kept_is_not_read():
    trie = SidTrie.build([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    search = BeamSearch(trie, 1, 3, normalize="allowed")
    search.step(np.zeros((1, 2)))
    search.step(np.zeros((3, 2))[: search.num_rows])  # 1/2, 1/4, 1/4
    search.step(np.array([[0, 0], [0, np.nan], [np.nan, np.nan]]))  # an only child has no second column to read
    assert search.result().items.tolist() == [[0, 1, 2]]
    assert len(set(search.result().scores.ravel().tolist())) == 1


@pytest.mark.parametrize("over", ["vocabulary", "candidates"])
@pytest.mark.parametrize("chosen", [{}, {"length_penalty": 1.0}, {"num_groups": 2}, {"filter": True}])
def test_scores_that_are_given_may_rise(chosen, over):
    """The last beam is far behind until its last token."""
    trie = SidTrie.build([[0, 0], [0, 1], [0, 2], [1, 0], [2, 0]])
    if "filter" in chosen:
        chosen = {"filter": trie.filter(deny=[2])}
    search = BeamSearch(trie, 1, 2 * chosen.get("num_groups", 1), **chosen)
    search.step(np.array([[0, -5, -np.inf]]), over)
    scores = np.full((search.num_rows, 3), -1.0)
    scores[1] = 9
    search.step(scores, over)
    assert search.result().items[0, :2].tolist() == [3, 0]


@given(filtered(), scorers(), rules())
def test_no_item_comes_twice_and_all_are_valid(catalogue, scorer, rule):
    trie, live, rows, items = catalogue
    _, score = scorer
    chosen, num_beams = rule
    search = BeamSearch(trie, 1, num_beams, filter=live, **chosen)
    while not search.done:
        search.step(scores_for(search, score))
        alive = search.nodes[0] >= 0
        paths, nodes = search.tokens[0][alive], search.nodes[0][alive]
        groups = np.repeat(np.arange(chosen["num_groups"]), num_beams // chosen["num_groups"])[alive].tolist()
        assert len({(group, *path) for group, path in zip(groups, paths.tolist(), strict=True)}) == len(paths)
        assert trie.walk(paths).tolist() == nodes.tolist()
    result = search.result()
    found = result.items[0][result.items[0] >= 0].tolist()
    assert len(set(found)) == len(found)
    assert set(found) <= {reference.trie_items(rows, items, row)[0] for row in rows}
    ranked = [item for one in found for item in reference.trie_items(rows, items, rows[items.index(one)])]
    assert result.expand_items(30).tolist() == [(ranked + [-1] * 30)[:30]]


@given(filtered(), scorers())
def test_a_beam_as_wide_as_the_catalogue_ranks_all_of_it(catalogue, scorer):
    trie, live, rows, _ = catalogue
    _, score = scorer
    search = BeamSearch(trie, 1, len(rows) + 1, filter=live)
    while not search.done:
        search.step(scores_for(search, score))
    best = max((total_score(row, score) for row in rows), default=-math.inf)
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
    for dtype in (np.float16, np.int64, ">f8"):
        with pytest.raises(TypeError, match=f"`scores` must be float32 or float64, got {np.dtype(dtype)}; convert"):
            search.step(np.zeros((2, 3), dtype))
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


BAD_SETTINGS = [
    ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
    ({"batch_size": 2**70}, f"`batch_size` must be at most 4294967295, got {2**70}"),
    ({"num_beams": 2**70}, f"`num_beams` must be at most 4294967295, got {2**70}"),
    ({"num_groups": 0}, "`num_groups` must be at least 1, got 0"),
    ({"num_groups": 3}, "`num_groups` must divide `num_beams` 4, and be 1 for draws, got 3"),
    ({"num_groups": 2, "method": "sample"}, "`num_groups` must divide `num_beams` 4, and be 1 for draws, got 2"),
    ({"num_threads": 0}, "`num_threads` must be at least 1, got 0"),
    ({"num_threads": 2**64}, "`num_threads` must be at most 4294967295"),
    ({"method": "greedy"}, '`method` must be "beam", "stochastic" or "sample", got \'greedy\''),
    ({"method": None}, '`method` must be "beam", "stochastic" or "sample", got None'),
    *[
        ({"normalize": value}, '`normalize` must be None, "full", "allowed" or (low, high) with 0 <= low < high, got')
        for value in ("sid", (3, 1), (2, 2), (-1, 3), (0, 2.5), (0, 1, 2), (), [0, 3], np.array([0, 3]))
    ],
    ({"normalize": "full", "method": "stochastic"}, "`normalize` must be \"allowed\" for draws, got 'full'"),
    ({"normalize": (0, 3), "method": "sample"}, '`normalize` must be "allowed" for draws, got (0, 3)'),
    *[
        ({"temperature": value, "normalize": "full"}, f"`temperature` must lie in 1e-30 .. 1e30, got {value}")
        for value in (0, -1.0, math.nan, math.inf, 1e-40, 1e40)
    ],
    ({"temperature": 2.0}, "`temperature` must be 1 for log-probabilities; give `normalize` as well, got 2.0"),
    *[
        ({"length_penalty": value}, f"`length_penalty` must lie in -55 .. 55 for SIDs of 2 tokens, got {value}")
        for value in (math.nan, math.inf, -math.inf, 1e6, -1e6)
    ],
    ({"length_penalty": 1.0, "method": "sample"}, "`length_penalty` must be 0 for draws, got 1.0"),
    *[
        ({"diversity": value}, f"`diversity` must lie in 0 .. 1e20, got {value}")
        for value in (-0.1, math.nan, math.inf, 1e39)
    ],
    ({"seed": -1}, "`seed` must lie in 0 .. 2**64 - 1, got -1"),
    ({"seed": 2**64}, "`seed` must lie in 0 .. 2**64 - 1, got 18446744073709551616"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_SETTINGS)
def test_bad_settings_are_refused(bad, message):
    trie = SidTrie.build([[1, 1], [2, 1]])
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        BeamSearch(trie, **{"batch_size": 2, "num_beams": 4} | bad)


def test_extreme_settings_work():
    trie = SidTrie.build([[1, 1], [2, 1], [2, 2]])
    extremes = [
        {"temperature": 1e-30, "normalize": "full"},
        {"temperature": 1e30, "normalize": "allowed"},
        {"length_penalty": 54.0},
        {"length_penalty": -54.0, "normalize": "allowed"},
        {"num_groups": 2, "diversity": 1e20},
        {"num_threads": 2**32 - 1},
        {"seed": 2**64 - 1, "method": "sample"},
    ]
    for chosen in extremes:
        for dtype in (np.float32, np.float64):
            result = beam_search(trie, lambda t, dtype=dtype: np.full((len(t), 3), -1, dtype), num_beams=2, **chosen)
            assert np.isfinite(result.scores).all()
            assert (result.items >= 0).all()


def test_a_filter_of_something_else_is_refused():
    trie = SidTrie.build([[1, 1], [2, 1]])
    with pytest.raises(ValueError, match="`filter` must be made by the trie that is searched"):
        BeamSearch(trie.add([[3, 3]], [9]), 1, 1, filter=trie.filter(deny=[1]))
    with pytest.raises(ValueError, match=r"`filter` must have 1 row or `batch_size` 3, got 2 rows"):
        BeamSearch(trie, 3, 1, filter=trie.filter(deny=[[1], []]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("chosen", "read"),
    [
        ({"normalize": "full"}, {0, 1, 2, 3, 4, 5}),
        ({"normalize": (1, 5)}, {1, 2, 3, 4}),
        ({"normalize": "allowed"}, {2, 4}),
        ({"method": "sample"}, {2, 4}),
        ({"method": "stochastic"}, {2, 4}),
        ({"normalize": None, "length_penalty": 1.0}, {2, 4}),
        ({"normalize": None, "num_groups": 2}, {2, 4}),
        ({"normalize": "allowed", "temperature": 3.0}, {2, 4}),
    ],
)
def test_nan_and_inf_are_refused_where_they_are_read(chosen, read, value, dtype):
    trie = SidTrie.build([[2], [3], [4]])
    for column in range(6):
        search = BeamSearch(trie, 2, 2, filter=trie.filter(deny=[1]), **chosen)
        scores = np.zeros((2, 6), dtype)
        scores[1, column] = value
        if column not in read:
            search.step(scores)
            continue
        with pytest.raises(ValueError, match=f"`scores` must be finite or -inf .* in row 1, column {column},"):
            search.step(scores)
        scores[1, column] = -np.inf
        search.step(scores)  # nothing has changed


def test_columns_of_candidates_are_named_as_such():
    trie = SidTrie.build([[2], [3], [4]])
    search = BeamSearch(trie, 1, 2, filter=trie.filter(deny=[1]), normalize="allowed")
    with pytest.raises(ValueError, match="got NaN in row 0, column 1,"):
        search.step(np.array([[0, np.nan]]), over="candidates")


def test_what_temperature_makes_infinite_is_refused():
    search = BeamSearch(SidTrie.build([[0], [1]]), 1, 2, normalize="allowed", temperature=1e-30)
    for value in (1e9, -1e9):
        with pytest.raises(ValueError, match=r"finite or -inf .*, also after `temperature`; got -?1000000000 in row 0"):
            search.step(np.full((1, 2), value, np.float32))


def test_a_token_outside_the_range_may_have_a_positive_log_probability_and_wins():
    """Then a beam below the K-th candidate may still lead to the best one: pruning must not fire."""
    search = BeamSearch(SidTrie.build([[1, 1], [1, 2], [2, 0]]), 1, 2, normalize=(1, 3))
    search.step(np.array([[0.0, 5.0, 0.0]]))
    search.step(np.array([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]))
    assert search.result().tokens.tolist() == [[[2, 0], [1, 1]]]
    assert search.result().scores[0, 0] > 3


def test_the_range_of_columns_must_be_there():
    trie = SidTrie.build([[2], [3], [4]])
    with pytest.raises(ValueError, match=r"`scores` must have the columns of `normalize`, \(2, 7\), got 6"):
        BeamSearch(trie, 1, 2, normalize=(2, 7)).step(np.zeros((1, 6)))
    for columns in ("full", (2, 5)):
        with pytest.raises(ValueError, match='`over` must be "vocabulary" to normalise over more'):
            BeamSearch(trie, 1, 2, normalize=columns).step(np.zeros((1, 3)), over="candidates")


def test_a_refused_step_leaves_the_search_as_it_was():
    search = BeamSearch(SidTrie.build([[1, 1], [2, 1]]), 1, 2)
    with pytest.raises(ValueError, match="at least 3 columns"):
        search.step(np.zeros((1, 2), np.float64))
    search.step(np.zeros((1, 3), np.float32))  # the type is not chosen yet
    nodes = search.nodes.tolist()
    with pytest.raises(ValueError, match="got NaN"):
        search.step(np.full((2, 3), np.nan, np.float32))
    assert (search.depth, search.nodes.tolist()) == (1, nodes)
    search.step(np.zeros((2, 3), np.float32))
    assert search.result().items.tolist() == [[0, 1]]


@pytest.mark.parametrize("method", ["beam", "sample", "stochastic"])
def test_one_item_one_token_one_row(method):
    for trie, width in ((SidTrie.build([[3]]), 4), (SidTrie.build([[0]]), 1)):
        scores = np.zeros((1, width))
        result = beam_search(trie, lambda tokens, scores=scores: scores, num_beams=1, method=method)
        assert result.tokens.tolist() == [[[width - 1]]]
        assert result.items.tolist() == [[0]]
        assert result.scores.tolist() == [[0.0]]
        assert result.expand_items(2).tolist() == [[0, -1]]


def test_many_more_beams_than_items():
    rows = [[a, b] for a in range(3) for b in range(3)]
    for chosen in ({}, {"normalize": "full"}, {"num_groups": 50}, {"method": "stochastic"}):
        result = beam_search(SidTrie.build(rows), lambda t: np.zeros((len(t), 3)), num_beams=1000, **chosen)
        assert sorted(result.items[0, :9].tolist()) == list(range(9))
        assert (result.items[0, 9:] == -1).all()
        assert (result.scores[0, 9:] == -np.inf).all()
        assert result.expand_items(10).shape == (1, 10)


def test_groups_by_hand():
    """Group 0 takes token 0 at -1; group 1 sees it at -1.6 and takes token 1 at -1.5. Scores stay as they are."""
    trie = SidTrie.build([[0, 0], [0, 1], [1, 0], [2]])
    search = BeamSearch(trie, 1, 2, num_groups=2, diversity=0.6)
    search.step(np.array([[-1.0, -1.5, -9.0]]))
    assert search.tokens.tolist() == [[[0], [1]]]
    search.step(np.array([[-0.25, -2.0, 0.0], [-0.25, 0.0, 0.0]]))
    assert search.result().tokens.tolist() == [[[0, 0], [1, 0]]]
    assert search.result().scores.tolist() == [[-1.25, -1.75]]
    # A finished beam keeps its score, whatever it was ranked by when it was chosen.
    trie = SidTrie.build([[0], [1, 0], [1, 1]])
    search = BeamSearch(trie, 1, 4, num_groups=2, diversity=1.0)
    search.step(np.array([[-1.0, -0.5]]))
    assert search.tokens.tolist() == [[[1], [0], [1], [-1]]]  # (0,) is group 0's
    search.step(np.array([[-0.5, -4.0], [0, 0], [-0.5, -4.0], [0, 0]]))
    assert search.tokens.tolist() == [[[1, 0], [0, -1], [1, 1], [-1, -1]]]
    assert search.result().scores.tolist() == [[-1.0, -1.0, -4.5, -math.inf]]


def test_finished_beams_of_different_groups_choose_the_same():
    trie = SidTrie.build([[0], [1, 0], [2], [3, 1], [3, 2]])
    search = BeamSearch(trie, 1, 4, num_groups=2, diversity=0.5)
    search.step(np.array([[-0.1, -0.8, -1.0, -1.1]]))
    assert search.last_tokens.tolist() == [[0, 1, 2, 3]]
    search.step(np.array([[0, 0, 0], [-0.05, 0, 0], [0, 0, 0], [0, -0.1, -0.2]]))
    # (2,) is carried on at -1.0, after (0,), so that group 1 sees it at -1.5.
    assert search.last_tokens.tolist() == [[-1, 0, 1, 2]]
    assert search.result().items.tolist() == [[0, 1, 3, 4]]
