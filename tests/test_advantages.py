"""`group_advantages`: the properties that other implementations break. And advantages of draws without replacement."""

import math

import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ugr_fast import BeamSearch, SidTrie, group_advantages
from ugr_fast.advantages import importance_weighted_advantages
from ugr_fast.rewards import difficulty_weight

SCALES = ["std", "none", "leave_one_out", "batch"]
REWARD = st.floats(-2, 2, width=32) | st.sampled_from([0.0, 1.0, float("nan")])
GROUP = st.lists(REWARD, min_size=1, max_size=9)


def tables(low=-2.0, high=2.0, step=None):
    """(B, G) rewards, on a grid if `step` is given."""
    cell = st.floats(low, high) if step is None else st.integers(int(low), int(high)).map(lambda k: k * step)
    shape = st.tuples(st.integers(1, 4), st.integers(2, 9))
    return shape.flatmap(lambda s: hnp.arrays(np.float64, s, elements=cell))


@given(st.lists(GROUP, min_size=1, max_size=5), st.sampled_from(SCALES), st.integers(0, 1))
def test_equals_the_reference_on_ragged_groups(groups, scale, ddof):
    flat = np.array([r for group in groups for r in group])
    ids = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    assume(scale != "batch" or np.isfinite(flat).sum() > 1)
    expected = [a for g in groups for a in reference.advantages(g, scale, ddof=ddof, batch=flat.tolist())]
    got = group_advantages(flat, ids, scale=scale, ddof=ddof)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def constants(count):
    """float32 of random bits, within the limits of a reward."""
    bits = np.random.default_rng(0).integers(0, 2**32, 2 * count, dtype=np.uint32).view(np.float32)
    return bits[np.abs(bits) < 1e37][:count, None]


def is_plus_zero(array):
    return not array.view(f"u{array.itemsize}").any()


@pytest.mark.parametrize("scale", SCALES)
def test_a_constant_group_is_exactly_zero(scale):
    """C58."""
    for size in range(2, 66):
        assert is_plus_zero(group_advantages(np.repeat(constants(1000), size, 1), scale=scale, eps=0.0))


def test_many_constant_groups_are_exactly_zero():
    """C58, in full for the scale that divides by their deviation."""
    for size in range(2, 66):
        assert is_plus_zero(group_advantages(np.repeat(constants(100_000), size, 1), eps=0.0))


@given(tables())
def test_only_a_constant_group_is_zero(rewards):
    """C58: the advantages tell a group without a signal from all others."""
    got = group_advantages(rewards, eps=0.0)
    np.testing.assert_array_equal(got.any(1), rewards.max(1) > rewards.min(1))


@given(tables(), st.sampled_from(SCALES), st.randoms(use_true_random=False))
def test_permutation(rewards, scale, random):
    """C51, C67."""
    order = random.sample(range(rewards.shape[1]), rewards.shape[1])
    rows = random.sample(range(len(rewards)), len(rewards))
    got = group_advantages(rewards, scale=scale)
    within, across = group_advantages(rewards[:, order], scale=scale), group_advantages(rewards[rows], scale=scale)
    np.testing.assert_allclose(within, got[:, order], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        across, got[rows], rtol=1e-12 if scale == "batch" else 0, atol=1e-12 * (scale == "batch")
    )


@given(tables(-8, 8, step=1 / 8), st.integers(-1000, 1000), st.sampled_from(SCALES))
def test_an_exact_shift_changes_no_bit(rewards, shift, scale):
    """C54."""
    np.testing.assert_array_equal(
        group_advantages(rewards + shift, scale=scale), group_advantages(rewards, scale=scale)
    )


@given(tables(), st.floats(-1e4, 1e4), st.sampled_from(SCALES))
def test_a_shift_of_many_deviations(rewards, shift, scale):
    """C54."""
    spread = np.ptp(rewards, axis=1)
    assume(((spread == 0) | (spread > 1e-2)).all())
    shifted = group_advantages(rewards + shift * max(spread.min(), 1e-2), scale=scale)
    np.testing.assert_allclose(shifted, group_advantages(rewards, scale=scale), rtol=1e-6, atol=1e-6)


@given(tables(), st.sampled_from(SCALES))
def test_zero_sum_and_order(rewards, scale):
    """C53, C59."""
    got = group_advantages(rewards, scale=scale)
    centred = rewards - rewards.mean(1, keepdims=True)
    clear = np.abs(centred) > 1e-12
    np.testing.assert_array_equal(np.sign(got[clear]), np.sign(centred[clear]))
    assert (np.abs(got.sum(1)) <= 1e-9 * rewards.shape[1] * np.maximum(1, np.abs(got).max(1))).all()
    order = np.argsort(rewards, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(got, order, 1)) >= 0).all()


@given(tables(), st.floats(0, 1), st.integers(0, 1))
def test_deviation_of_the_advantages(rewards, eps, ddof):
    """C56."""
    spread = np.ptp(rewards, axis=1)
    assume(((spread == 0) | (spread > 1e-6)).all())
    deviation = rewards.std(1, ddof=ddof)
    expected = np.divide(deviation, deviation + eps, out=np.zeros_like(spread), where=spread > 0)
    got = group_advantages(rewards, eps=eps, ddof=ddof).std(1, ddof=ddof)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@given(tables(-1e6, 1e6), st.integers(0, 1))
def test_bound_even_without_eps(rewards, ddof):
    """C57."""
    # The mean of [0, 2e-313, 2e-313, 2e-313] has no float64 of 12 digits: the bound needs normal numbers.
    spread = np.ptp(rewards, axis=1)
    assume(((spread == 0) | (spread > 1e-290)).all())
    size = rewards.shape[1]
    bound = (size - 1) / np.sqrt(size) if ddof else np.sqrt(size - 1)
    got = group_advantages(rewards, eps=0.0, ddof=ddof)
    assert (np.abs(got) <= bound * (1 + 1e-12)).all()  # NaN fails this too


@given(tables(), st.floats(0.1, 10))
def test_scale(rewards, factor):
    """C55."""
    for scale in ("none", "leave_one_out"):
        plain = group_advantages(rewards, scale=scale)
        np.testing.assert_allclose(group_advantages(rewards * factor, scale=scale), plain * factor, atol=1e-12)
    scaled = group_advantages(rewards * factor, eps=factor * 1e-2)
    np.testing.assert_allclose(scaled, group_advantages(rewards, eps=1e-2), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(group_advantages(-rewards), -group_advantages(rewards))


@given(tables(), st.floats(0.05, 1))
def test_a_weight_on_the_rewards_of_a_group_cancels(rewards, alpha_min):
    """C68: the difficulty weight belongs on the loss; on the rewards it acts through eps alone."""
    hits = rewards == rewards.max(1, keepdims=True)
    weight = difficulty_weight(hits, -np.abs(rewards), alpha_min=alpha_min)[:, None]
    spread = np.ptp(rewards, axis=1)
    assume(((spread == 0) | (spread > 1e-6)).all())
    plain = group_advantages(rewards, eps=0.0)
    np.testing.assert_allclose(group_advantages(weight * rewards, eps=0.0), plain, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(np.ones_like(weight) * plain, plain)


@given(st.integers(1, 15), st.integers(1, 15))
def test_binary_closed_form(hits, misses):
    """C61."""
    size, p = hits + misses, hits / (hits + misses)
    got = group_advantages(np.array([[1.0] * hits + [0.0] * misses]))[0]
    divisor = np.sqrt(size / (size - 1) * p * (1 - p)) + 1e-4
    np.testing.assert_allclose(got, [(1 - p) / divisor] * hits + [-p / divisor] * misses, rtol=1e-12)


@given(tables())
def test_leave_one_out_subtracts_the_mean_of_the_others(rewards):
    """C60."""
    mean_of_others = (rewards.sum(1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    others = group_advantages(rewards, scale="leave_one_out")
    np.testing.assert_allclose(others, rewards - mean_of_others, atol=1e-12)
    spread = np.ptp(rewards, axis=1)
    assume((spread > 1e-6).all())
    by_own_deviation = others / others.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(group_advantages(rewards, eps=0.0), by_own_deviation, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_a_group_of_one_is_zero(scale):
    """C64."""
    rewards, ids = np.array([3.0, -2.0, 1.0, 0.0]), np.array([5, 6, 7, 7])
    got = group_advantages(rewards, ids, scale=scale)
    assert is_plus_zero(got[:2])
    assert (got[2:] != 0).all()


@given(GROUP, st.sampled_from(SCALES))
def test_unscorable_rows_are_as_if_absent(group, scale):
    """C65."""
    rewards = np.array(group)
    kept = ~np.isnan(rewards)
    got = group_advantages(rewards, len(group), scale=scale)
    assert is_plus_zero(got[~kept])
    if kept.sum() < 2:
        assert is_plus_zero(got)
    if kept.any():
        np.testing.assert_array_equal(got[kept], group_advantages(rewards[kept], int(kept.sum()), scale=scale))


@given(tables(), st.data(), st.sampled_from(SCALES))
def test_masked_rows_are_as_if_unscorable(rewards, data, scale):
    """C65, C71: whatever an absent candidate holds, and however many groups have none left."""
    mask = data.draw(hnp.arrays(bool, rewards.shape))
    junk = np.where(mask, rewards, data.draw(st.sampled_from([0.0, 1e300, np.inf, np.nan])))
    got = group_advantages(junk, scale=scale, mask=mask)
    np.testing.assert_array_equal(got, group_advantages(np.where(mask, rewards, np.nan), scale=scale))
    assert is_plus_zero(got[~mask])
    flat = group_advantages(junk.ravel(), rewards.shape[1], scale=scale, mask=mask.ravel())
    np.testing.assert_array_equal(flat.reshape(got.shape), got)


@given(tables(), st.sampled_from(SCALES), st.randoms(use_true_random=False))
def test_interleaved_ids_of_any_value(rewards, scale, random):
    """C63: ids that float64 would merge stay apart."""
    num_groups, size = rewards.shape
    ids = np.repeat(random.sample([-(2**63), -7, 0, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1], num_groups), size)
    order = np.array(random.sample(range(rewards.size), rewards.size))
    got = group_advantages(rewards.ravel()[order], ids[order], scale=scale)
    np.testing.assert_allclose(got, group_advantages(rewards, scale=scale).ravel()[order], rtol=1e-9, atol=1e-12)


@given(tables(), st.sampled_from(["std", "none", "leave_one_out"]))
def test_a_group_does_not_depend_on_the_others(rewards, scale):
    """C52, C71."""
    got = group_advantages(rewards, scale=scale)
    for b in range(len(rewards)):
        np.testing.assert_array_equal(got[b], group_advantages(rewards[b : b + 1], scale=scale)[0])


def test_a_large_offset_costs_no_digits():
    """C70."""
    small = np.array([[0.0, 0.1, 0.2, 0.3]])
    for offset in (1e3, 1e6):
        np.testing.assert_allclose(group_advantages(small + offset), group_advantages(small), rtol=1e-3)
        single = (small + offset).astype(np.float32)
        exact = [reference.advantages(single[0].tolist())]
        np.testing.assert_allclose(group_advantages(single), exact, rtol=1e-6)


def test_squares_that_underflow():
    got = group_advantages(np.array([[0.0, 1e-300]]), eps=0.0)
    np.testing.assert_allclose(got, [[-(0.5**0.5), 0.5**0.5]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors(dtype):
    torch = pytest.importorskip("torch")
    rewards = torch.tensor([[1.0, 0.0, 0.0]], dtype=getattr(torch, dtype), requires_grad=True)
    got = group_advantages(rewards)
    assert (got.dtype, got.shape, got.requires_grad) == (rewards.dtype, rewards.shape, False)
    expected = group_advantages(np.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=1e-2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_arrays_keep_their_dtype_and_are_not_changed(dtype):
    rewards = np.array([[1, 0, 0, 3]], dtype)[:, ::2]
    before = rewards.copy()
    assert group_advantages(rewards).dtype == rewards.dtype
    np.testing.assert_array_equal(rewards, before)


def test_empty():
    assert group_advantages(np.empty((0, 4))).shape == (0, 4)
    assert group_advantages(np.empty((3, 0))).shape == (3, 0)
    assert group_advantages(np.empty(0), np.empty(0, np.int64)).shape == (0,)


TWO = np.array([[1.0, 0.0]])


@pytest.mark.parametrize(
    ("rewards", "groups", "options", "error", "text"),
    [
        (np.array([[1.0, np.inf]]), None, {}, ValueError, "`rewards` must be finite.*inf at index 1"),
        (np.array([[1.0, -1e38]]), None, {}, ValueError, "at most 1e37"),
        (np.array([[1, 0]]), None, {}, TypeError, "`rewards` must be floating, got int64"),
        (TWO[0], None, {}, ValueError, r"shape \(B, G\)"),
        (TWO, 2, {}, ValueError, "flat"),
        (TWO[0], 3, {}, ValueError, "divides 2 rewards, got 3"),
        (TWO[0], 0, {}, ValueError, "got 0"),
        (TWO[0], np.array([1.0, 2.0]), {}, TypeError, "integer ids"),
        (TWO[0], np.array([1]), {}, ValueError, "one id per reward"),
        (TWO, None, {"scale": "mean"}, ValueError, '`scale` must be "std"'),
        (TWO, None, {"eps": -1.0}, ValueError, "`eps`"),
        (TWO, None, {"eps": float("nan")}, ValueError, "`eps`"),
        (TWO, None, {"ddof": 2}, ValueError, "`ddof` must be 0 or 1"),
        (TWO, None, {"ddof": -1}, ValueError, "`ddof` must be 0 or 1; got -1"),
        (TWO, None, {"mask": TWO[0]}, ValueError, "`mask` must have shape"),
        (TWO, None, {"mask": TWO * 0.5}, ValueError, "`mask` must hold booleans"),
    ],
)
def test_bad_input(rewards, groups, options, error, text):
    with pytest.raises(error, match=text):
        group_advantages(rewards, groups, **options)


# ---- draws without replacement

SIDS = [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1)]
TRIE = SidTrie.build(SIDS)
LOGITS = np.random.default_rng(3).normal(0, 1.2, (TRIE.num_nodes, 3))  # of a node
VALUES = np.array([3.0, -1.0, 0.5, 2.0, 1.0])  # the reward of each item
NUM_ROWS = 40_000


def found(num_beams, batch_size=NUM_ROWS):
    """A stochastic beam search under the policy of `LOGITS`."""
    search = BeamSearch(TRIE, batch_size, num_beams, method="stochastic", seed=1)
    while not search.done:
        scores = LOGITS[search.nodes.ravel()]
        scores[~search.live.ravel()] = np.nan
        search.step(scores)
    return search.result()


def probabilities():
    def logprobs_of(prefix):
        children = reference.trie_children(SIDS, prefix)
        return reference.log_softmax(LOGITS[TRIE.walk([list(prefix)])[0]], children)

    return np.array(list(reference.sid_probabilities(SIDS, logprobs_of).values()))


def exact_gradient(values):
    """d/d logit_k of sum_i p_i r_i, for a softmax over the SIDs: p_k (r_k - E r)."""
    p = probabilities()
    return p * (values - p @ values)


def estimated_gradients(result, values, normalize):
    """(B, SIDs): sum_i A_i grad log p_i with grad log p_i = e_i - p."""
    rewards = np.where(result.items < 0, np.nan, values[result.items])
    advantages = importance_weighted_advantages(rewards, result.scores, result.inclusion, normalize=normalize)
    placed = np.zeros((len(advantages), len(SIDS)))
    rows, columns = np.nonzero(result.items >= 0)
    placed[rows, result.items[rows, columns]] = advantages[rows, columns]
    return placed - placed.sum(1, keepdims=True) * probabilities()


def check_mean(estimates, expected):
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert (np.abs(estimates.mean(0) - expected) < 5 * error).all()
    assert np.abs(expected).max() > 20 * error.max()  # or the line above would say little


@pytest.mark.parametrize("num_beams", [2, 3, 4])
def test_the_unnormalized_estimate_is_unbiased(num_beams):
    check_mean(estimated_gradients(found(num_beams), VALUES, normalize=False), exact_gradient(VALUES))


def test_a_single_draw_has_none_to_compare_with():
    """E[sum_i A_i grad log p_i] lacks sum_i p_i^2 r_i grad log p_i, which pairs of draws would bring in."""
    p = probabilities()
    lacking = p**2 * VALUES - p * (p**2 @ VALUES)
    estimates = estimated_gradients(found(1), VALUES, normalize=False)
    check_mean(estimates, exact_gradient(VALUES) - lacking)
    assert not estimated_gradients(found(1), VALUES, normalize=True).any()


@pytest.mark.parametrize("shift", [-10, 0, 3])
def test_the_normalized_estimate_has_the_smaller_error(shift):
    """Bias included; a constant added to the rewards does not matter, and a larger group helps."""
    exact = exact_gradient(VALUES)

    def error(num_beams, normalize):
        estimates = estimated_gradients(found(num_beams, 5000), VALUES + shift, normalize)
        return ((estimates - exact) ** 2).sum(1).mean()

    assert error(3, True) < error(2, True)
    assert all(error(k, True) < error(k, False) / 1.5 for k in (2, 3))


@pytest.mark.parametrize("normalize", [True, False])
def test_both_are_exact_when_every_sid_is_found(normalize):
    result = found(len(SIDS) + 1, batch_size=20)  # one beam more than there is to find: padding
    estimates = estimated_gradients(result, VALUES, normalize)
    np.testing.assert_allclose(estimates, np.tile(exact_gradient(VALUES), (20, 1)), rtol=1e-12, atol=1e-15)


@given(st.data(), st.integers(1, 6), st.booleans())
def test_equals_the_sums_of_the_papers(data, size, normalize):
    share = hnp.arrays(np.float64, size, elements=st.floats(1e-3, 1))
    p, q = data.draw(share), data.draw(share)
    p = p / p.sum()
    r = data.draw(hnp.arrays(np.float64, size, elements=st.floats(-2, 2) | st.just(float("nan"))))
    got = importance_weighted_advantages(r[None], np.log(p)[None], q[None], normalize=normalize)[0]
    expected = reference.importance_weighted(r.tolist(), p.tolist(), q.tolist(), normalize)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


REWARD_OR_NAN = st.floats(-1e30, 1e30) | st.sampled_from([0.0, 1.0, float("nan")])


@given(st.data(), st.integers(0, 3), st.integers(0, 5), st.booleans())
def test_finite_for_whatever_can_be_found(data, rows, size, normalize):
    """C80: groups of none and of one, underflowing probabilities, padding, nothing scorable."""
    table = lambda cell: data.draw(hnp.arrays(np.float64, (rows, size), elements=cell))  # noqa: E731
    rewards, logprobs = table(REWARD_OR_NAN), table(st.floats(-1e4, 0) | st.just(-math.inf))
    inclusion, mask = table(st.floats(1e-100, 1)), data.draw(hnp.arrays(bool, (rows, size)))
    got = importance_weighted_advantages(rewards, logprobs, inclusion, normalize=normalize, mask=mask)
    assert np.isfinite(got).all()
    assert is_plus_zero(got[~mask | np.isnan(rewards) | np.isneginf(logprobs)])
    away = ~mask
    rewards[away], logprobs[away], inclusion[away] = np.inf, np.nan, -1.0  # absent candidates may hold anything
    again = importance_weighted_advantages(rewards, logprobs, inclusion, normalize=normalize, mask=mask)
    np.testing.assert_array_equal(again, got)


@given(st.floats(-1e30, 1e30), st.integers(1, 5), st.randoms(use_true_random=False))
def test_equal_rewards_teach_nothing(constant, size, random):
    logprobs = np.log([[random.uniform(0.01, 1) / size for _ in range(size)]])
    inclusion = np.array([[random.uniform(0.01, 1) for _ in range(size)]])
    rewards = np.full((1, size), constant)
    assert not importance_weighted_advantages(rewards, logprobs, inclusion).any()


def test_a_miss_that_is_not_found_does_not_count():
    """A NaN reward, a mask and a log-probability of -inf say the same."""
    rewards, logprobs = np.array([[1.0, 0.0, 5.0]]), np.log([[0.4, 0.3, 0.1]])
    inclusion = np.array([[0.9, 0.8, 0.5]])
    expected = importance_weighted_advantages(rewards[:, :2], logprobs[:, :2], inclusion[:, :2])
    masked = importance_weighted_advantages(rewards, logprobs, inclusion, mask=rewards < 5)
    unscorable = importance_weighted_advantages(np.where(rewards < 5, rewards, np.nan), logprobs, inclusion)
    padding = importance_weighted_advantages(
        rewards, np.where(rewards < 5, logprobs, -np.inf), np.where(rewards < 5, inclusion, 0.0)
    )
    for got in (masked, unscorable, padding):
        np.testing.assert_allclose(got, [[*expected[0], 0.0]], rtol=1e-15)


def test_draws_as_tensors():
    torch = pytest.importorskip("torch")
    rewards, logprobs = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16), torch.log(torch.tensor([[0.75, 0.25]]))
    got = importance_weighted_advantages(rewards, logprobs, torch.ones(1, 2, dtype=torch.float64))
    assert (got.dtype, got.tolist()) == (torch.bfloat16, [[0.1875, -0.1875]])


LOG, ONE = np.log(np.array([[0.5, 0.5]])), np.ones((1, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((np.array([[1, 0]]), LOG, ONE), TypeError, "`rewards` must be floating"),
        ((ONE * np.inf, LOG, ONE), ValueError, r"`rewards` must be finite.*got inf at \(0, 0\)"),
        ((TWO[0], LOG[0], ONE[0]), ValueError, r"shape \(B, G\)"),
        ((TWO, LOG[:, :1], ONE), ValueError, "`logprobs` the same"),
        ((TWO, LOG, ONE[0]), ValueError, "`inclusion` the same"),
        ((TWO, np.exp(LOG), ONE), ValueError, r"`logprobs` must be log-probabilities, at most 0; got 0.5 at \(0, 0\)"),
        ((TWO, LOG * np.nan, ONE), ValueError, "`logprobs`.*got nan"),
        ((TWO, LOG, None), ValueError, "`inclusion` must be given, and only a search with method=.stochastic. has it"),
        ((TWO, LOG, TWO), ValueError, r"`inclusion` must lie in 1e-100 .. 1.*got 0.0 at \(0, 1\)"),
        ((TWO, LOG, ONE * 1.5), ValueError, "`inclusion`.*got 1.5"),
        ((TWO, LOG, ONE * np.nan), ValueError, "`inclusion`.*got nan"),
    ],
)
def test_bad_draws(arguments, error, text):
    with pytest.raises(error, match=text):
        importance_weighted_advantages(*arguments)
