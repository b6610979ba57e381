"""The laws of the draws: "sample", with replacement, and "stochastic", without.

Seeds are fixed. Were they not, a test of a correct kernel would fail with a probability below `ERROR` per table of
frequencies or curve (bounds of Chernoff and of Dvoretzky, Kiefer, Wolfowitz and Massart, which hold for every number
of draws), and of about `ERROR` per mean (five standard errors).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import BeamSearch, SidTrie, beam_search

ERROR = 1e-6
NUM_ROWS = 20_000
SIDS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 3), (2,), (3,)]  # a SID of one token beside SIDs of two
TRIE = SidTrie.build([*SIDS, (1, 3)])  # items 4 and 7 share a SID
LOGITS = np.random.default_rng(7).normal(0, 1.2, (TRIE.num_nodes, 4))  # of a node; any policy of the prefix will do
DENIED = [1, 3, 5]  # a child of each kind of node, and all of (1, 0)
CASES = {
    "plain": {},
    "warm": {"temperature": 2.5},
    "filtered": {"filter": TRIE.filter(deny=DENIED)},
    "filtered and cold": {"filter": TRIE.filter(deny=[2, 6]), "temperature": 0.6},
}


def logits(search, logits_of=LOGITS):
    """(num_rows, V): those of the node that a beam has reached; NaN where there is nothing to choose."""
    scores = logits_of[search.nodes.ravel()]
    scores[~search.live.ravel()] = np.nan
    return scores


def draw(method, num_beams, *, batch_size=NUM_ROWS, trie=TRIE, logits_of=LOGITS, **chosen):
    search = BeamSearch(trie, batch_size, num_beams, method=method, **chosen)
    while not search.done:
        search.step(logits(search, logits_of))
    return search.result()


def live_sids(denied=()):
    return [sid for item, sid in enumerate(SIDS) if item not in denied]


def law(denied=(), temperature=1.0, logits_of=LOGITS):
    """{SID: probability} under the policy normalised over what is not denied."""
    sids = live_sids(denied)

    def logprobs_of(prefix):
        row = logits_of[TRIE.walk([list(prefix)])[0]]
        return reference.log_softmax(row, reference.trie_children(sids, prefix), temperature)

    return reference.sid_probabilities(sids, logprobs_of)


def law_of(case):
    denied = {"filtered": DENIED, "filtered and cold": [2, 6]}.get(case, ())
    return law(denied, CASES[case].get("temperature", 1.0))


def names(tokens):
    """(...,) the place of each SID in SIDS, -1 for padding."""
    return TRIE.lookup(tokens.reshape(-1, tokens.shape[-1])).reshape(tokens.shape[:-1])


def check_frequencies(outcomes, expected):
    """Outcomes (N, n) follow {outcome: probability}. Chernoff: P(frequency as far off as q) <= 2 exp(-N KL(q, p))."""
    assert math.isclose(math.fsum(expected.values()), 1)
    counts = dict.fromkeys(expected, 0)
    values, seen = np.unique(outcomes, axis=0, return_counts=True)
    counts |= dict(zip(map(tuple, values.tolist()), seen.tolist(), strict=True))
    assert counts.keys() == expected.keys()
    for outcome, p in expected.items():
        q = counts[outcome] / len(outcomes)
        divergence = sum(a * math.log(a / b) for a, b in ((q, p), (1 - q, 1 - p)) if a > 0)
        assert len(outcomes) * divergence < math.log(2 * len(expected) / ERROR), (outcome, q, p)


def check_distribution(values, probability_below):
    """The values' distribution function is this one. DKW: P(sup |F_N - F| > e) <= 2 exp(-2 N e^2)."""
    expected = probability_below(np.sort(values))
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(steps[1:] - expected).max(), np.abs(steps[:-1] - expected).max())
    assert distance < math.sqrt(math.log(2 / ERROR) / (2 * len(values)))


def check_mean(values, expected):
    assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(len(values))


def place(sid):
    return SIDS.index(sid)


# ---- with replacement


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_samples_follow_the_policy(case, dtype):
    result = draw("sample", 2, logits_of=LOGITS.astype(dtype), **CASES[case])
    singles = law_of(case)
    pairs = {(place(a), place(b)): singles[a] * singles[b] for a, b in itertools.product(singles, repeat=2)}
    # Ties keep the order of the draws, so sorted pairs are what a result shows.
    found = np.sort(names(result.tokens), axis=1)  # (B, 2)
    check_frequencies(found, folded(pairs))


def folded(pairs):
    """The law of a pair of which the order is forgotten."""
    sums = {}
    for pair, p in pairs.items():
        key = tuple(sorted(pair))
        sums[key] = sums.get(key, 0) + p
    return sums


def test_draws_of_a_row_are_independent_in_their_order():
    """The beams of a search of one step are its draws, in order; `result` sorts them."""
    search = BeamSearch(SidTrie.build([[0], [1], [2]]), NUM_ROWS, 3, method="sample")
    search.step(np.tile([0.0, 1.0, -1.0], (NUM_ROWS, 1)))
    p = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    triples = {draws: math.prod(p[list(draws)]) for draws in itertools.product(range(3), repeat=3)}
    check_frequencies(search.last_tokens, triples)


def test_samples_of_neighbouring_rows_are_independent():
    found = names(draw("sample", 1, batch_size=2 * NUM_ROWS).tokens).reshape(NUM_ROWS, 2)
    singles = law()
    check_frequencies(
        found, {(place(a), place(b)): singles[a] * singles[b] for a, b in itertools.product(singles, repeat=2)}
    )


@pytest.mark.parametrize("method", ["sample", "stochastic"])
def test_rows_obey_their_own_filter(method):
    denied = [[0], [2, 4, 7]]
    rows = TRIE.filter(deny=denied * (NUM_ROWS // 2))
    found = names(draw(method, 1, filter=rows).tokens)  # (B, 1)
    for row, items in enumerate(denied):
        check_frequencies(found[row::2], {(place(sid),): p for sid, p in law(items).items()})


# ---- without replacement


def by_key(result):
    """Places of the found SIDs (B, K) and their perturbed log-probabilities, in the order of the draws."""
    order = np.argsort(-result.perturbed, axis=1)
    return np.take_along_axis(names(result.tokens), order, 1), np.take_along_axis(result.perturbed, order, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_beams", [1, 2, 3])
def test_perturbed_order_is_that_of_drawing_without_replacement(case, dtype, num_beams):
    result = draw("stochastic", num_beams, logits_of=LOGITS.astype(dtype), **CASES[case])
    probabilities = law_of(case)
    orders = {
        tuple(map(place, order)): reference.draw_order_probability(order, probabilities)
        for order in itertools.permutations(probabilities, num_beams)
    }
    check_frequencies(by_key(result)[0], orders)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbouring_rows_are_independent(dtype):
    found = by_key(draw("stochastic", 2, batch_size=2 * NUM_ROWS, logits_of=LOGITS.astype(dtype)))[0]
    singles = law()
    pairs = {(place(a), place(b)): singles[a] * singles[b] for a, b in itertools.product(singles, repeat=2)}
    check_frequencies(found[:, 0].reshape(NUM_ROWS, 2), pairs)


@pytest.mark.parametrize("case", CASES)
def test_perturbed_log_probabilities_are_independent_gumbels(case):
    """exp(-key) of all SIDs are arrivals: exponential waits at rate 1, then at what the first ones leave of it."""
    result = draw("stochastic", 3, **CASES[case])
    found, keys = by_key(result)
    probabilities = np.zeros(len(SIDS) + 1)
    for sid, p in law_of(case).items():
        probabilities[place(sid)] = p
    check_distribution(keys[:, 0], lambda key: np.exp(-np.exp(-key)))  # Gumbel(0), whatever was found
    arrivals = np.exp(-np.concatenate([keys, result.threshold[:, None]], 1))  # (B, K + 1)
    rate = 1 - np.concatenate([np.zeros((NUM_ROWS, 1)), np.cumsum(probabilities[found], 1)], 1)
    for draw_number in range(4):
        waits = np.diff(arrivals, axis=1, prepend=0)[:, draw_number] * rate[:, draw_number]
        check_distribution(waits, lambda wait: -np.expm1(-wait))
        # Who comes does not tell when.
        first = found[:, 0] == place((0, 0))
        check_distribution(waits[first], lambda wait: -np.expm1(-wait))


@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_weighted_sums_are_unbiased(case, num_beams):
    """E[sum over found of p / q * f] = sum over all of p * f; with enough beams, in every search."""
    result = draw("stochastic", num_beams, **CASES[case])
    value = np.random.default_rng(3).normal(0, 1, len(SIDS))
    probabilities = law_of(case)
    exact = sum(p * value[place(sid)] for sid, p in probabilities.items())
    found = names(result.tokens)
    weight = np.exp(result.scores) / np.where(found < 0, 1, result.inclusion)  # (B, K)
    enough = num_beams >= len(probabilities)
    for f, expected in ((value[found], exact), (np.ones_like(weight), 1.0)):
        if enough:
            np.testing.assert_allclose((weight * f).sum(1), expected, rtol=1e-12)
        else:
            check_mean((weight * f).sum(1), expected)


def test_enough_beams_find_all():
    result = draw("stochastic", 10, batch_size=50)
    probabilities = law()
    exact = sum(p * place(sid) for sid, p in probabilities.items())
    assert (np.sort(result.items, axis=1) == [*[-1] * 3, *range(7)]).all()
    assert (result.threshold == -np.inf).all()
    assert (result.inclusion == (result.items >= 0)).all()
    assert (result.perturbed[:, 7:] == -np.inf).all()
    np.testing.assert_allclose((np.exp(result.scores) * names(result.tokens)).sum(1), exact, rtol=1e-12)


def test_a_root_without_noise_would_bias_the_weighted_sum():
    """Kool et al. give the root the key 0. Of two equally likely SIDs, one beam, 1 would be estimated as 0.769.

    A key of 0 leaves the waits between arrivals as they are and puts the first arrival at exp(-0) = 1.
    """
    trie = SidTrie.build([[0], [1]])
    result = draw("stochastic", 1, trie=trie, logits_of=np.zeros((3, 2)))
    check_mean(0.5 / result.inclusion[:, 0], 1.0)
    arrival = 1 + np.exp(-result.threshold) - np.exp(-result.perturbed[:, 0])
    inclusion = -np.expm1(-0.5 * arrival)  # exp(log p - threshold) = p * arrival
    check_mean(0.5 / inclusion, -math.sqrt(math.e) / 2 * math.log1p(-1 / math.sqrt(math.e)))


# ---- what a result depends on, and what holds for all of them

FIELDS = ("tokens", "scores", "logprobs", "items", "perturbed", "threshold")


def same(a, b, rows=slice(None)):
    fields = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    return all(x is y or np.array_equal(x[rows], y[rows]) for x, y in fields)


@pytest.mark.parametrize("method", ["sample", "stochastic"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_seed_decides_everything(method, dtype):
    table = LOGITS.astype(dtype)
    first = draw(method, 3, batch_size=300, seed=5, logits_of=table)
    for num_threads in (1, 2, 7, 1000):
        assert same(first, draw(method, 3, batch_size=300, seed=5, logits_of=table, num_threads=num_threads))
    default = draw(method, 3, batch_size=300, logits_of=table)
    assert same(default, draw(method, 3, batch_size=300, seed=0, logits_of=table))
    seeds = [5, 0, 1, 2**32, 2**63, 2**64 - 1]
    found = [tuple(draw(method, 3, batch_size=300, seed=seed).items.ravel().tolist()) for seed in seeds]
    assert len(set(found)) == len(seeds)
    rows = set(map(tuple, np.sort(draw(method, 3, batch_size=300, seed=5).items, 1).tolist()))
    assert len(rows) > 20


@pytest.mark.parametrize("method", ["sample", "stochastic"])
def test_different_seeds_draw_independently(method):
    singles = law()
    pairs = {(place(a), place(b)): singles[a] * singles[b] for a, b in itertools.product(singles, repeat=2)}
    found = [names(draw(method, 1, seed=seed).tokens)[:, 0] for seed in (0, 1)]
    check_frequencies(np.stack(found, 1), pairs)


@pytest.mark.parametrize("method", ["sample", "stochastic"])
def test_a_row_depends_on_its_place_and_not_on_the_others(method):
    """On the seed, its place in the batch, its scores and its filter; not on how many rows there are."""
    few, many = draw(method, 3, batch_size=5), draw(method, 3, batch_size=80)
    assert same(few, many, slice(5))
    deny = [[], [1], [], [3, 5], []]
    assert same(few, draw(method, 3, batch_size=5, filter=TRIE.filter(deny=deny)), slice(0, 5, 2))


@pytest.mark.parametrize("method", ["sample", "stochastic"])
def test_a_part_of_a_batch_draws_what_the_whole_does(method):
    whole = draw(method, 3, batch_size=9, seed=5)
    for first_row, batch_size in ((0, 4), (4, 3), (8, 1)):
        part = draw(method, 3, batch_size=batch_size, seed=5, first_row=first_row)
        rows = slice(first_row, first_row + batch_size)
        fields = [(getattr(part, name), getattr(whole, name)) for name in FIELDS]
        assert all(x is y or np.array_equal(x, y[rows]) for x, y in fields)
    with pytest.raises(ValueError, match=r"`first_row` must lie in 0 \.\. 2\*\*31 - 1, got -1"):
        draw(method, 3, first_row=-1)


@pytest.mark.parametrize("method", ["sample", "stochastic"])
@pytest.mark.parametrize("case", CASES)
def test_columns_of_candidates_give_the_same_draws(method, case):
    search = BeamSearch(TRIE, 64, 3, method=method, **CASES[case])
    while not search.done:
        allowed = search.candidates
        scores = np.take_along_axis(logits(search), np.maximum(allowed, 0), 1)
        search.step(np.where(allowed < 0, np.nan, scores), over="candidates")
    assert same(search.result(), draw(method, 3, batch_size=64, **CASES[case]))


@st.composite
def drawn(draw):
    """A catalogue, what is denied, its policy, and a search of it that is not done."""
    sids = draw(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=20))
    trie = SidTrie.build(sids, end=5)
    rows = [(*sid, 5) for sid in sids]
    denied = draw(st.lists(st.integers(0, len(rows) - 1)))
    values = st.sampled_from([-math.inf, -3.0, 0.0, 0.0, 2.5])
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    table = np.array(draw(st.lists(values, min_size=7 * 6, max_size=7 * 6)), dtype).reshape(7, 6)
    method, num_beams = draw(st.sampled_from(["sample", "stochastic"])), draw(st.integers(1, 6))
    chosen = {"method": method, "seed": draw(st.integers(0, 2**64 - 1)), "temperature": draw(st.sampled_from([1, 0.7]))}
    live = [row for item, row in enumerate(rows) if item not in denied]
    return trie, live, table, BeamSearch(trie, 3, num_beams, filter=trie.filter(deny=denied), **chosen)


def finished(search, table):
    while not search.done:
        scores = table[search.nodes.ravel() % 7]
        scores[~search.live.ravel()] = np.nan
        search.step(scores)
    return search.result()


@settings(max_examples=200)
@given(drawn())
def test_all_that_is_found_is_alive_and_adds_up(case):
    trie, live, table, search = case
    result = finished(search, table)
    assert all(getattr(result, name) is None for name in FIELDS[4:]) == (search.method == "sample")
    for row in range(3):
        found = [tuple(sid[sid >= 0].tolist()) for sid in result.tokens[row]]
        assert [item >= 0 for item in result.items[row]] == [sid != () for sid in found]
        assert {sid for sid in found if sid} <= set(live)
        for rank, sid in enumerate(found):
            logprobs = result.logprobs[row, rank].tolist()
            assert not any(logprobs[len(sid) :])
            if not sid:
                assert result.scores[row, rank] == -math.inf
                continue
            total, nodes = table.dtype.type(0), trie.walk([list(sid[:depth]) for depth in range(len(sid))])
            for depth, (node, token) in enumerate(zip(nodes, sid, strict=True)):
                columns = reference.trie_children(live, sid[:depth])
                exact = reference.log_softmax(table[node % 7], columns, search._temperature)[token]
                assert logprobs[depth] == pytest.approx(exact, abs=1e-5 if table.dtype == np.float32 else 1e-13)
                total += result.logprobs[row, rank, depth]
            assert result.scores[row, rank] == total
    assert (np.diff(np.where(result.scores == -np.inf, -1e30, result.scores), axis=1) <= 0).all()
    if search.method == "stochastic":
        check_stochastic(result)


def check_stochastic(result):
    padding = result.items < 0
    assert (result.perturbed[padding] == -np.inf).all()
    assert (result.perturbed >= result.threshold[:, None]).all()
    assert (result.inclusion[padding] == 0).all()
    for row, rank in zip(*np.nonzero(~padding), strict=True):
        score, threshold = float(result.scores[row, rank]), float(result.threshold[row])
        q = 1.0 if threshold == -math.inf else -math.expm1(-math.exp(min(score - threshold, 700)))
        assert result.inclusion[row, rank] == pytest.approx(q, rel=1e-12)
    for items in result.items:
        found = items[items >= 0]
        assert len(set(found.tolist())) == len(found)


def test_equal_scores_keep_the_order_of_the_draws():
    search = BeamSearch(SidTrie.build([[0], [1], [2], [3]]), 200, 4, method="sample")
    search.step(np.zeros((200, 4)))
    assert search.result().tokens[..., 0].tolist() == search.last_tokens.tolist()
    search = BeamSearch(SidTrie.build([[0], [1], [2], [3]]), 200, 2, method="stochastic")
    search.step(np.zeros((200, 4)))
    result = search.result()
    assert result.tokens[..., 0].tolist() == search.last_tokens[:, :2].tolist()
    assert (np.diff(result.perturbed, axis=1) <= 0).all()


def test_a_stochastic_search_has_one_beam_more():
    """It ends as the threshold."""
    search = BeamSearch(TRIE, 2, 3, method="stochastic")
    assert search.width == 1
    search.step(logits(search))
    assert search.width == 4
    search.step(logits(search))
    assert search.result().tokens.shape == (2, 3, 2)
    assert search.result().perturbed.shape == (2, 3)
    assert search.result().threshold.shape == (2,)


def test_one_sid_is_certain():
    result = beam_search(
        SidTrie.build([[1, 2]]), lambda t: np.full((len(t), 3), 7.0), num_beams=2, batch_size=3, method="stochastic"
    )
    assert result.items.tolist() == [[0, -1]] * 3
    assert result.scores.tolist() == [[0.0, -math.inf]] * 3
    assert result.inclusion.tolist() == [[1.0, 0.0]] * 3
    result = beam_search(
        SidTrie.build([[1, 2]]), lambda t: np.full((len(t), 3), 7.0), num_beams=2, batch_size=3, method="sample"
    )
    assert result.items.tolist() == [[0, 0]] * 3  # drawn twice


def test_a_forbidden_sid_is_never_drawn():
    table = LOGITS.copy()
    table[0, 3] = table[1, 1] = -np.inf  # SIDs (3,) and (0, 1)
    assert TRIE.walk([[0]])[0] == 1
    for method in ("sample", "stochastic"):
        found = names(draw(method, 7, batch_size=500, logits_of=table).tokens)
        assert set(found.ravel().tolist()) - {-1} == {0, 2, 3, 4, 5}
    check_frequencies(
        names(draw("stochastic", 1, logits_of=table).tokens),
        {(place(sid),): p for sid, p in law((1, 6), logits_of=table).items()},
    )


def test_nothing_left_to_draw_is_padding():
    nothing = TRIE.filter(allow=[])
    for method in ("sample", "stochastic"):
        result = draw(method, 2, batch_size=2, filter=nothing)
        assert result.items.tolist() == [[-1, -1]] * 2
        assert result.scores.tolist() == [[-math.inf] * 2] * 2
        assert result.expand_items(2).tolist() == [[-1, -1]] * 2
    assert result.threshold.tolist() == [-math.inf] * 2
    assert result.inclusion.tolist() == [[0.0, 0.0]] * 2
