"""Rewards and the difficulty weight, against plain loops."""

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast import group_advantages
from ugr_fast.rewards import difficulty_weight, match, ranking, uncertainty_weighted

SCORE = st.floats(-20, 0) | st.sampled_from([-1.0, -2.0, float("-inf")])


@st.composite
def groups(draw, score=SCORE):
    """Hits, scores and a mask, (B, G) each."""
    rows, size = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    table = lambda cell: np.array(  # noqa: E731
        draw(st.lists(st.lists(cell, min_size=size, max_size=size), min_size=rows, max_size=rows))
    )
    return table(st.booleans()), table(score), table(st.booleans())


@given(groups(), st.floats(0.1, 10), st.floats(0, 1))
def test_equal_the_reference(group, temperature, alpha_min):
    hits, scores, mask = group
    reward = uncertainty_weighted(hits, scores, score="sum", temperature=temperature, mask=mask)
    weight = difficulty_weight(hits, scores, alpha_min=alpha_min, mask=mask)
    assert np.isnan(reward[~mask]).all()
    for b, kept in enumerate(mask):
        h, s = hits[b, kept].tolist(), scores[b, kept].tolist()
        np.testing.assert_allclose(reward[b, kept], reference.uncertainty_weighted(h, s, temperature), atol=1e-12)
        np.testing.assert_allclose(weight[b], reference.difficulty_weight(h, s, alpha_min), atol=1e-15)


@given(groups())
def test_reward_sums(group):
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


@given(groups(st.floats(-20, 0)))
def test_the_weight_follows_the_order_of_the_scores_only(group):
    hits, scores, mask = group
    ranks = np.argsort(np.argsort(scores, axis=1, kind="stable"), axis=1).astype(float)
    ties = [len(set(row)) < len(row) for row in scores.tolist()]
    same = difficulty_weight(hits, scores, mask=mask) == difficulty_weight(hits, ranks - 100, mask=mask)
    assert (same | ties).all()


def test_the_weight_at_its_ends():
    scores = np.array([[-1.0, -2.0, -3.0]])
    weights = [difficulty_weight(np.eye(3)[[k]], scores, alpha_min=0.2)[0] for k in range(3)]
    np.testing.assert_allclose(weights, [0.2, 0.6, 1.0])
    assert difficulty_weight(np.zeros((1, 3)), scores, alpha_min=0.2).tolist() == [1.0]
    assert difficulty_weight(np.ones((1, 1)), scores[:, :1], alpha_min=0.2).tolist() == [0.2]


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


HIT, S = np.array([[True, False]]), np.array([[-1.0, -2.0]])


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
            "`lengths` must be >= 1",
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
        (lambda: match(np.zeros((1, 2, 3)), np.zeros((1, 2))), ValueError, "`target`"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call()
