"""Rewards, the difficulty weight and the call that does it all, against plain loops."""

from dataclasses import astuple

import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ugr_fast import group_advantages
from ugr_fast.rewards import (
    difficulty_weight,
    match,
    ndcg,
    prefix_match,
    ranking,
    similarity,
    ugr,
    uncertainty_weighted,
    weighted_sum,
)

SCORE = st.floats(-20, 0) | st.sampled_from([-1.0, -2.0, float("-inf")])
KINDS = ["rank", "discount", "probability"]


@st.composite
def groups(draw, score=SCORE):
    """Hits, scores and a mask, (B, G) each."""
    rows, size = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    table = lambda cell: np.array(  # noqa: E731
        draw(st.lists(st.lists(cell, min_size=size, max_size=size), min_size=rows, max_size=rows))
    )
    return table(st.booleans()), table(score), table(st.booleans())


@given(groups(), st.floats(0.1, 10), st.floats(0, 1), st.sampled_from(KINDS))
def test_equal_the_reference(group, temperature, alpha_min, kind):
    hits, scores, mask = group
    reward = uncertainty_weighted(hits, scores, score="sum", temperature=temperature, mask=mask)
    weight = difficulty_weight(hits, scores, alpha_min=alpha_min, kind=kind, mask=mask)
    assert np.isnan(reward[~mask]).all()
    for b, kept in enumerate(mask):
        h, s = hits[b, kept].tolist(), scores[b, kept].tolist()
        np.testing.assert_allclose(reward[b, kept], reference.uncertainty_weighted(h, s, temperature), atol=1e-12)
        np.testing.assert_allclose(weight[b], reference.difficulty_weight(h, s, alpha_min, kind), atol=1e-15)


@given(groups(st.floats(-20, 0, width=32)))
def test_single_precision_rounds_only_the_result(group):
    hits, scores, mask = group
    single = scores.astype(np.float32)
    for call in (
        lambda s: uncertainty_weighted(hits, s, score="sum", mask=mask),
        lambda s: difficulty_weight(hits, s, kind="probability", mask=mask),
    ):
        assert call(single).dtype == np.float32
        np.testing.assert_array_equal(call(single), call(scores).astype(np.float32))


@given(groups())
def test_reward_sums(group):
    """C72."""
    hits, scores, _ = group
    reward = uncertainty_weighted(hits, scores, score="sum")
    none = ~hits.any(1)
    assert not reward[none].any()
    assert not np.signbit(reward[none]).any()
    penalised = hits.any(1) & (~hits & np.isfinite(scores)).any(1)
    np.testing.assert_allclose(reward.sum(1), np.where(none, 0, hits.sum(1) - penalised), atol=1e-12)
    assert ((reward == 1) | (np.abs(reward + 0.5) <= 0.5)).all()


@given(groups(st.floats(-20, 0)), st.floats(-1e4, 1e4), st.randoms(use_true_random=False))
def test_shift_permutation_and_monotony(group, shift, random):
    """C73."""
    hits, scores, _ = group
    order = random.sample(range(hits.shape[1]), hits.shape[1])
    reward = uncertainty_weighted(hits, scores, score="sum")
    np.testing.assert_allclose(uncertainty_weighted(hits, scores + shift, score="sum"), reward, atol=1e-9)
    permuted = uncertainty_weighted(hits[:, order], scores[:, order], score="sum")
    np.testing.assert_allclose(permuted, reward[:, order], atol=1e-12)
    for h, s, r in zip(hits, scores, reward, strict=True):
        assert (np.diff(r[~h][np.argsort(s[~h], kind="stable")]) <= 0).all()


def test_uniform_misses_reproduce_the_plain_reward():
    hits = np.arange(16)[None] == 3
    reward = uncertainty_weighted(hits, np.full((1, 16), -5.0), lengths=np.full((1, 16), 4))
    advantages = group_advantages(reward)
    np.testing.assert_allclose(np.unique(advantages.round(3)), [-0.25, 3.749])
    np.testing.assert_allclose(reward.sum(), 0, atol=1e-12)


def test_mean_divides_by_the_lengths():
    hits, scores, lengths = np.array([[1, 0, 0]]), np.array([[-1.0, -2.0, -8.0]]), np.array([[1, 2, 4]])
    by_mean = uncertainty_weighted(hits, scores, lengths=lengths)
    np.testing.assert_allclose(by_mean, uncertainty_weighted(hits, scores / lengths, score="sum"))


def test_low_temperature_blames_the_most_likely_miss():
    hits, scores = np.array([[0, 1, 0, 0]]), np.array([[-3.0, -1.0, -2.0, -9.0]])
    assert uncertainty_weighted(hits, scores, score="sum", temperature=1e-320).tolist() == [[0, 1, -1, 0]]


def test_forbidden_misses_cost_nothing():
    """C74."""
    hits = np.array([[False, True, False]])
    one, all_ = np.array([[-np.inf, -2.0, -3.0]]), np.array([[-np.inf, -2.0, -np.inf]])
    assert uncertainty_weighted(hits, one, score="sum").tolist() == [[0.0, 1.0, -1.0]]
    assert uncertainty_weighted(hits, all_, score="sum").tolist() == [[0.0, 1.0, 0.0]]
    assert not np.signbit(uncertainty_weighted(hits, all_, score="sum")).any()
    alone = np.ones((1, 1), bool), np.array([[-3.0]])
    assert uncertainty_weighted(*alone, score="sum").tolist() == [[1.0]]
    assert [difficulty_weight(*alone, alpha_min=0.2, kind=kind).tolist() for kind in KINDS] == [[0.2]] * 3


@given(groups(st.floats(-20, 0)))
def test_the_weight_follows_the_order_of_the_scores_only(group):
    """C75, of the kinds that look at ranks."""
    hits, scores, mask = group
    _, ranks = np.unique(scores, return_inverse=True)  # equal scores, equal ranks
    ranks = ranks.reshape(scores.shape) - 100.0
    for kind in ("rank", "discount"):
        weight = difficulty_weight(hits, scores, kind=kind, mask=mask)
        np.testing.assert_array_equal(weight, difficulty_weight(hits, ranks, kind=kind, mask=mask))


@pytest.mark.parametrize("kind", ["rank", "discount"])
@given(st.integers(2, 70), st.floats(0, 1))
def test_the_weight_rises_from_its_least_to_one(kind, size, alpha_min):
    """C75."""
    scores = np.tile(-np.arange(size, dtype=float), (size, 1))
    weight = difficulty_weight(np.eye(size), scores, alpha_min=alpha_min, kind=kind)  # a group for each rank
    assert (weight[0], weight[-1]) == (alpha_min, 1.0)
    assert (np.diff(weight) >= 0).all()
    equal = difficulty_weight(np.eye(size), np.zeros((size, size)), alpha_min=alpha_min, kind=kind)
    np.testing.assert_array_equal(equal, weight)  # ties stand in the order of the beams


@given(groups(), st.floats(0, 1), st.floats(-100, 100))
def test_the_weight_by_probability(group, alpha_min, shift):
    """C75, where it applies: bounds, and only differences of scores count; the rank does not."""
    hits, scores, mask = group
    weight = difficulty_weight(hits, scores, alpha_min=alpha_min, kind="probability", mask=mask)
    assert ((alpha_min <= weight) & (weight <= 1)).all()
    shifted = difficulty_weight(hits, scores + shift, alpha_min=alpha_min, kind="probability", mask=mask)
    np.testing.assert_allclose(shifted, weight, atol=1e-12)
    likelier = np.where(hits, scores + 1, scores)
    assert (difficulty_weight(hits, likelier, alpha_min=alpha_min, kind="probability", mask=mask) <= weight).all()


def test_the_weight_at_its_ends():
    scores = np.array([[-1.0, -2.0, -3.0]])
    weights = [difficulty_weight(np.eye(3)[[k]], scores, alpha_min=0.2)[0] for k in range(3)]
    np.testing.assert_allclose(weights, [0.2, 0.6, 1.0])
    drop = (1 - 1 / np.log2(3)) / (1 - 1 / 2)
    discount = [difficulty_weight(np.eye(3)[[k]], scores, kind="discount")[0] for k in range(3)]
    np.testing.assert_allclose(discount, [0, drop, 1])
    share = np.exp(scores[0]) / np.exp(scores[0]).sum()
    probability = [difficulty_weight(np.eye(3)[[k]], scores, kind="probability")[0] for k in range(3)]
    np.testing.assert_allclose(probability, 1 - share)
    for kind in KINDS:
        assert difficulty_weight(np.zeros((1, 3)), scores, alpha_min=0.2, kind=kind).tolist() == [1.0]
    certain = np.array([[-1.0, -np.inf, -np.inf]])
    hits = np.array([[True, False, False], [False, True, False]])
    assert difficulty_weight(hits[:1], certain, alpha_min=0.2, kind="probability").tolist() == [0.2]
    assert difficulty_weight(hits[1:], certain, alpha_min=0.2, kind="probability").tolist() == [1.0]


@given(groups())
def test_ranking_penalties_add_up(group):
    hits, _, mask = group
    reward = ranking(hits, mask=mask)
    assert reward.dtype == np.float32
    for r, hit, kept in zip(reward, hits, mask, strict=True):
        discount = 1 / np.log2(np.arange(kept.sum()) + 2)
        h = hit[kept]
        expected = np.where(h, 1, -discount / discount.sum()) if h.any() else np.zeros(len(h))
        np.testing.assert_allclose(r[kept], expected, atol=1e-6)
        assert np.isnan(r[~kept]).all()


@given(groups())
def test_ranking_is_match_plus_ndcg(group):
    """C78: and the penalties of a group with a hit sum to what the hits leave of 1."""
    hits, _, mask = group
    penalty = ndcg(hits, mask=mask)
    np.testing.assert_array_equal(ranking(hits, mask=mask), hits.astype(np.float32) + penalty)
    for p, hit, kept in zip(penalty, hits, mask, strict=True):
        np.testing.assert_allclose(p[kept], reference.ndcg(hit[kept].tolist()), atol=1e-7)
        assert not np.signbit(p[kept & (p == 0)]).any()
        discount = 1 / np.log2(np.arange(kept.sum()) + 2)
        left = 1 - discount[hit[kept]].sum() / discount.sum() if hit[kept].any() else 0.0
        np.testing.assert_allclose(p[kept].sum(dtype=float), -left, atol=1e-6)


SID = st.lists(st.integers(0, 2), max_size=4).map(tuple)


def padded(sids, depth=4):
    """Right-padded with -1."""
    return np.array([[*sid, *[-1] * (depth - len(sid))] for sid in sids], np.int64).reshape(len(sids), depth)


@given(st.lists(SID, min_size=1, max_size=6), SID.filter(len))
def test_match_is_equality_of_the_decoded_strings(candidates, target):
    """C78: MiniOneRec compares the strings, stripped of newlines, quotes and spaces."""

    def decoded(sid):
        return "".join(f"<{level}_{token}>" for level, token in zip("abcd", sid, strict=False)) + "\n"

    hits = match(padded(candidates)[None], padded([target]))[0]
    assert hits.tolist() == [decoded(sid).strip('\n" ') == decoded(target).strip('\n" ') for sid in candidates]


@given(st.lists(SID, min_size=1, max_size=6), SID)
def test_prefix_match(candidates, target):
    tokens, goal = padded(candidates)[None], padded([target])
    share = prefix_match(tokens, goal)
    assert share.dtype == np.float32
    expected = [reference.prefix_match(sid, target) for sid in candidates]
    np.testing.assert_array_equal(share[0], np.array(expected, np.float32))
    np.testing.assert_array_equal(share == 1, match(tokens, goal) == 1)


@given(hnp.arrays(np.float64, (5, 3), elements=st.floats(-1e150, 1e150)), st.data())
def test_similarity(embeddings, data):
    assume(np.abs(embeddings).max(1).min() > 0)
    items = data.draw(hnp.arrays(np.int64, (2, 4), elements=st.integers(-1, 4)))
    target = data.draw(hnp.arrays(np.int64, 2, elements=st.integers(0, 4)))
    got = similarity(items, target, embeddings)
    unit = embeddings / np.abs(embeddings).max(1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for b, row in enumerate(items):
        expected = [np.nan if item < 0 else unit[item] @ unit[target[b]] for item in row]
        np.testing.assert_allclose(got[b], expected, atol=1e-15)
        np.testing.assert_allclose(got[b, row == target[b]], 1, atol=1e-15)
    assert not (np.abs(got) > 1).any()


def test_similarity_looks_only_at_what_is_asked_for():
    embeddings = np.array([[0, 0], [1, 0], [np.nan, 1], [1, 1]], np.float32)
    got = similarity(np.array([[1, 3, -1]]), np.array([1]), embeddings)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[1, 0.5**0.5, np.nan]], rtol=1e-6)
    for item in (0, 2):
        with pytest.raises(ValueError, match=f"row {item} is zero or not finite"):
            similarity(np.array([[1, item]]), np.array([1]), embeddings)
        with pytest.raises(ValueError, match=f"row {item} is zero or not finite"):
            similarity(np.array([[1]]), np.array([item]), embeddings)


COMPONENTS = st.integers(1, 4).flatmap(
    lambda k: st.tuples(
        hnp.arrays(np.float64, (k, 2, 3), elements=st.floats(-2, 2) | st.just(float("nan"))),
        st.lists(st.floats(0, 2) | st.just(0.0), min_size=k, max_size=k),
    )
)


@given(COMPONENTS, st.sampled_from(["zero", "renormalise"]))
def test_weighted_sum(components, missing):
    """C66."""
    rewards, weights = components
    assume(any(weights))
    got = weighted_sum(list(rewards), weights, missing=missing)
    expected = [[reference.weighted_sum(rewards[:, b, g], weights, missing) for g in range(3)] for b in range(2)]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    if not np.isnan(rewards).any():
        np.testing.assert_allclose(got, weighted_sum(list(rewards), weights), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("missing", ["zero", "renormalise"])
def test_a_reward_of_weight_zero_has_no_influence(missing):
    """C66."""
    rewards, junk = np.array([[1.0, 0.5]], np.float32), np.array([[np.nan, np.inf]])
    got = weighted_sum([rewards, junk], [2, 0], missing=missing)
    assert (got.tolist(), got.dtype) == ([[2.0, 1.0]], np.float32)


@given(
    st.lists(
        st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=3, max_size=3),
        min_size=1,
        max_size=3,
    )
)
def test_match(tokens):
    table = np.array(tokens)
    hits = match(table, table[:, 0])
    for b, row in enumerate(tokens):
        assert hits[b].tolist() == [float(c == row[0] and c != [-1, -1]) for c in row]


# ---- the call that does it all


@st.composite
def rollouts(draw):
    """Tokens, target, scores and mask; the target is often among the candidates."""
    rows, size, depth = draw(st.integers(0, 3)), draw(st.integers(0, 9)), draw(st.integers(1, 6))
    target = [draw(st.lists(st.integers(0, 2), min_size=1, max_size=depth)) for _ in range(rows)]
    sid = st.lists(st.integers(0, 2), max_size=depth)
    candidates = [[draw(st.just(goal) | sid) for _ in range(size)] for goal in target]
    tokens = np.stack([padded(c, depth) for c in candidates]) if rows else np.empty((0, size, depth), np.int64)
    scores = draw(hnp.arrays(np.float64, (rows, size), elements=SCORE))
    return tokens, padded(target, depth), scores, draw(hnp.arrays(bool, (rows, size)))


def one_by_one(tokens, target, scores, score, temperature, alpha_min, kind, scale, mask):
    """What `ugr` does, by the separate calls."""
    present = (tokens >= 0).any(2) & mask
    hits = match(tokens, target).astype(bool) & present
    lengths = (tokens >= 0).sum(2)
    rewards = uncertainty_weighted(hits, scores, score=score, lengths=lengths, temperature=temperature, mask=present)
    weight = difficulty_weight(hits, scores, alpha_min=alpha_min, kind=kind, mask=present)
    return hits, rewards, weight, group_advantages(rewards, scale=scale)


@given(
    rollouts(),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from(["mean", "sum"]),
    st.floats(0.1, 10),
    st.floats(0, 1),
    st.sampled_from(KINDS),
    st.sampled_from(["std", "none", "leave_one_out", "batch"]),
)
def test_one_call_is_the_four(rollout, dtype, score, temperature, alpha_min, kind, scale):
    """C79, C80: bit for bit, for any shape."""
    tokens, target, scores, mask = rollout
    scores = scores.astype(dtype)
    options = {"score": score, "temperature": temperature, "alpha_min": alpha_min, "kind": kind, "scale": scale}
    got = ugr(tokens, target, scores, mask=mask, **options)
    expected = one_by_one(tokens, target, scores, mask=mask, **options)
    for ours, theirs in zip(astuple(got), expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()


@given(rollouts(), st.sampled_from(["mean", "sum"]))
def test_one_call_equals_plain_loops(rollout, score):
    """C79."""
    tokens, target, scores, mask = rollout
    got = ugr(tokens, target, scores, score=score, temperature=0.5, mask=mask)
    for b in range(len(tokens)):
        sids = [tuple(t for t in sid if t >= 0) for sid in tokens[b].tolist()]
        kept = [i for i, sid in enumerate(sids) if sid and mask[b, i]]
        hits = [sids[i] == tuple(t for t in target[b].tolist() if t >= 0) for i in kept]
        s = [scores[b, i] / (len(sids[i]) if score == "mean" else 1) for i in kept]
        rewards = reference.uncertainty_weighted(hits, s, 0.5)
        assert got.hits[b, kept].tolist() == hits
        np.testing.assert_allclose(got.rewards[b, kept], rewards, atol=1e-12)
        np.testing.assert_allclose(got.weight[b], reference.difficulty_weight(hits, scores[b, kept].tolist()))
        np.testing.assert_allclose(got.advantages[b, kept], reference.advantages(rewards), rtol=1e-6, atol=1e-6)
        away = np.setdiff1d(np.arange(len(sids)), kept)
        assert np.isnan(got.rewards[b, away]).all()
        assert not got.hits[b, away].any()
        assert not got.advantages[b, away].any()


def test_one_call_takes_any_layout_and_leaves_it_alone():
    random = np.random.default_rng(0)
    tokens, target = random.integers(0, 3, (4, 6, 5, 2)), random.integers(0, 3, (5, 2)).astype(np.int32)
    scores = -random.random((5, 6)).astype(np.float16)
    view = tokens[::2, :, :, 1].transpose(2, 1, 0)  # (5, 6, 2), strided
    before = view.copy(), scores.copy()
    got = ugr(view, target, scores)
    assert [x.dtype for x in astuple(got)] == [bool, *[np.float16] * 3]
    expected = ugr(np.ascontiguousarray(view), target.astype(np.int64), scores)
    for ours, theirs in zip(astuple(got), astuple(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(view, before[0])
    np.testing.assert_array_equal(scores, before[1])


def test_absent_candidates_may_hold_anything():
    tokens, target = np.array([[[1, 2], [1, 1], [-1, -1], [1, 0]]]), np.array([[1, 2]])
    mask = np.array([[True, True, True, False]])
    got = ugr(tokens, target, np.array([[-1.0, -2.0, np.nan, np.inf]]), mask=mask)
    np.testing.assert_array_equal(got.rewards, [[1, -1, np.nan, np.nan]])
    with pytest.raises(ValueError, match=r"`scores` must be finite or -inf, got inf at \(0, 3\)"):
        ugr(tokens, target, np.array([[-1.0, -2.0, np.nan, np.inf]]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_one_call_on_tensors(dtype):
    torch = pytest.importorskip("torch")
    scores = torch.tensor([[-1.0, -2.0]], dtype=getattr(torch, dtype), requires_grad=True)
    got = ugr(torch.tensor([[[1, 2], [3, 4]]]), torch.tensor([[3, 4]]), scores)
    kinds = [torch.bool, *[scores.dtype] * 3]
    assert [x.dtype for x in (got.hits, got.rewards, got.weight, got.advantages)] == kinds
    assert (got.hits.tolist(), got.rewards.tolist(), got.weight.tolist()) == ([[False, True]], [[-1, 1]], [1])


def test_tensors_in_tensors_out():
    torch = pytest.importorskip("torch")
    hits, scores = (
        match(torch.tensor([[[1, 2], [3, 4]]]), torch.tensor([[3, 4]])),
        torch.tensor([[-1.0, -2.0]]),
    )
    assert hits.tolist() == [[0.0, 1.0]]
    for reward in (
        ranking(hits),
        uncertainty_weighted(hits, scores, score="sum"),
        difficulty_weight(hits, scores),
    ):
        assert reward.dtype == torch.float32
    assert torch.isnan(ranking(hits > 0, mask=hits == 0)[0, 1])
    assert prefix_match(torch.tensor([[[3, 2], [3, 4]]]), torch.tensor([[3, 4]])).tolist() == [[0.5, 1.0]]
    close = similarity(torch.tensor([[0, 1]]), torch.tensor([1]), torch.eye(2))
    total = weighted_sum([hits, close.double()], [1, 2])
    assert (close.tolist(), total.tolist(), total.dtype) == ([[0.0, 1.0]], [[0.0, 3.0]], torch.float32)


HIT, S = np.array([[True, False]]), np.array([[-1.0, -2.0]])
IDS, TOKENS = np.array([[0, 1]]), np.array([[[1, 2], [3, 4]]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_log_probabilities(bad):
    scores = np.array([[-1.0, bad]])
    with pytest.raises(ValueError, match=r"`scores` must be finite or -inf, got (nan|inf) at \(0, 1\)"):
        uncertainty_weighted(HIT, scores, score="sum")
    with pytest.raises(ValueError, match="`scores`"):
        difficulty_weight(HIT, scores)
    mask = np.array([[True, False]])  # absent candidates may hold anything
    assert difficulty_weight(HIT, scores, mask=mask).tolist() == [0.0]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: uncertainty_weighted(HIT, S), ValueError, "`lengths` must be given"),
        (
            lambda: uncertainty_weighted(HIT, S, lengths=np.array([[1, 0]])),
            ValueError,
            "`lengths` must be finite and >= 1",
        ),
        (
            lambda: uncertainty_weighted(HIT, S, lengths=np.array([1, 1])),
            ValueError,
            "`lengths` must have the shape",
        ),
        (lambda: uncertainty_weighted(HIT, S, score="max"), ValueError, '"mean" or "sum"'),
        (lambda: uncertainty_weighted(HIT, S, score="sum", temperature=0), ValueError, "`temperature`"),
        (
            lambda: uncertainty_weighted(HIT, S[:, :1], score="sum"),
            ValueError,
            "`scores` must have the shape",
        ),
        (
            lambda: uncertainty_weighted(HIT, S.astype(int), score="sum"),
            TypeError,
            "`scores` must be floating",
        ),
        (lambda: ranking(HIT * 0.5), ValueError, "`hits` must hold booleans.*got 0.5"),
        (lambda: ranking(HIT[0]), ValueError, r"`hits` must have shape \(B, G\)"),
        (lambda: ranking(HIT, mask=HIT[:, :1]), ValueError, "`mask` must have shape"),
        (lambda: difficulty_weight(HIT, S, alpha_min=2), ValueError, "`alpha_min`"),
        (lambda: difficulty_weight(HIT, S, kind="size"), ValueError, '`kind` must be "rank", "discount"'),
        (lambda: match(np.zeros((1, 2, 3)), np.zeros((1, 2))), ValueError, "`target`"),
        (lambda: prefix_match(np.zeros((1, 2)), np.zeros((1, 2))), ValueError, "`tokens`"),
        (lambda: similarity(IDS, IDS, np.eye(2)), ValueError, r"shapes \(B, G\), \(B,\), \(N, D\)"),
        (lambda: similarity(IDS, IDS[0, :1], np.eye(2, dtype=int)), TypeError, "`embeddings` must be floating"),
        (lambda: similarity(IDS * 1.0, IDS[0, :1], np.eye(2)), TypeError, "`items` must hold integer ids"),
        (lambda: similarity(IDS + 1, IDS[0, :1], np.eye(2)), ValueError, r"`items` must lie in -1 .. 1.*got 2"),
        (lambda: similarity(IDS, IDS[0, :1] - 1, np.eye(2)), ValueError, r"`target_items` must lie in 0 .. 1.*got -1"),
        (lambda: weighted_sum([S, S], [1.0]), ValueError, "`weights` must hold one finite weight"),
        (lambda: weighted_sum([S], [0.0]), ValueError, "not all 0"),
        (lambda: weighted_sum([], []), ValueError, "not all 0"),
        (lambda: weighted_sum([S], [float("nan")]), ValueError, "finite"),
        (lambda: weighted_sum([S, S], [1, -1], missing="renormalise"), ValueError, "none negative"),
        (lambda: weighted_sum([S], [1], missing="skip"), ValueError, '`missing` must be "zero"'),
        (lambda: weighted_sum([S, S[0]], [1, 1]), ValueError, "`rewards` must have one shape"),
        (lambda: weighted_sum([HIT], [1]), TypeError, r"`rewards\[0\]` must be floating, got bool"),
        (lambda: weighted_sum([S * np.inf], [1]), ValueError, r"`rewards\[0\]` must be finite"),
        (lambda: ugr(TOKENS, TOKENS[:, 0], S, score="max"), ValueError, '"mean" or "sum"'),
        (lambda: ugr(TOKENS, TOKENS[:, 0], S, temperature=-1), ValueError, "`temperature`"),
        (lambda: ugr(TOKENS, TOKENS[:, 0], S, alpha_min=-1), ValueError, "`alpha_min`"),
        (lambda: ugr(TOKENS, TOKENS[:, 0], S, scale="mean"), ValueError, '`scale` must be "std"'),
        (lambda: ugr(TOKENS, TOKENS[:, 0], S, kind="size"), ValueError, "`kind`"),
        (lambda: ugr(TOKENS, TOKENS[:, 0], S, eps=-1), ValueError, "`eps`"),
        (lambda: ugr(TOKENS, TOKENS[:, 0], S[0]), ValueError, "`scores` must have the shape of the candidates"),
        (lambda: ugr(TOKENS, TOKENS[:, 0], S, mask=HIT[0]), ValueError, "`mask` must have shape"),
        (lambda: ugr(TOKENS, TOKENS[:, 0, :1], S), ValueError, "`target`"),
        (lambda: match(TOKENS * 1.0, TOKENS[:, 0]), TypeError, "`tokens` must hold integer ids, got float64"),
        (lambda: ugr(TOKENS * 1.0, TOKENS[:, 0], S), TypeError, "`tokens` must hold integer ids, got float64"),
        (lambda: ugr(TOKENS, TOKENS[:, 0], TOKENS[..., 0]), TypeError, "`scores` must be floating"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call()
