"""Group-relative advantages: of candidates that are taken as they are, or drawn without replacement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ugr_fast import _core
from ugr_fast.arrays import AnyArray, Array, like, to_numpy, truth

Scale = Literal["std", "none", "leave_one_out", "batch"]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def group_advantages(
    rewards: AnyArray,
    groups: Any = None,
    *,
    scale: Scale = "std",
    eps: float = 1e-4,
    ddof: int = 1,
    mask: Any = None,
) -> AnyArray:
    """How much better each candidate did than its group: A_i = (r_i - mean) / (std + eps).

    | scale | A_i | also known as |
    |---|---|---|
    | `"std"` | (r_i - mean) / (std + eps) | GRPO |
    | `"none"` | r_i - mean | Dr. GRPO |
    | `"leave_one_out"` | r_i - mean of the others | RLOO |
    | `"batch"` | (r_i - mean) / (std of all rewards + eps) | |

    A group of one or of equal rewards gets exactly 0. NaN marks a candidate that cannot be scored: it gets 0,
    and the others come out as if it were not there. Sums are in float64.

    Args:
        rewards: (B, G) with a group in each row, or flat (N,) with `groups`; floating, at most 1e37 in size.
        groups: For flat rewards, the group size G, or (N,) integer ids of any value and in any order.
        scale: The divisor, see above.
        eps: Added to the standard deviation, >= 0.
        ddof: 1 divides the variance by n - 1 (as TRL, UGR), 0 by n.
        mask: Bool of the shape of `rewards`, candidate present; default all. An absent one may hold anything and
            counts as NaN.

    Returns:
        Advantages of the shape, dtype and kind (array, or tensor on the same device) of `rewards`.

    Raises:
        TypeError: Rewards that are not floating, ids that are not integers.
        ValueError: An infinite reward, groups or a mask that do not fit, an unknown `scale`, a bad `eps` or `ddof`.

    Example:
        >>> group_advantages(np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])).round(3).tolist()
        [[1.5, -0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]
        >>> group_advantages(np.array([1.0, 5.0, 0.0, 7.0]), np.array([8, -3, 8, -3]), scale="none").tolist()
        [0.5, -1.0, -0.5, 1.0]

    Source: DeepSeekMath (arXiv 2402.03300) eq. 4; Dr. GRPO (arXiv 2503.20783); RLOO (arXiv 2402.14740).
    """
    array = _rewards(rewards, mask)
    order, offsets = _grouping(array, groups)
    flat: Array = array.ravel() if order is None else array[order]
    wide = array.itemsize > 4
    kernel: Callable[..., Array] = _core.group_advantages_f64 if wide else _core.group_advantages_f32
    result = kernel(flat.astype(np.float64 if wide else np.float32, copy=False), offsets, scale, eps, ddof)
    if order is not None:
        result[order] = result.copy()  # back to the caller's order
    return like(rewards, result.reshape(array.shape), dtype=getattr(rewards, "dtype", None))


def importance_weighted_advantages(
    rewards: AnyArray, logprobs: Any, inclusion: Any, *, normalize: bool = True, mask: Any = None
) -> AnyArray:
    """Advantages of candidates drawn without replacement, such that sum_i A_i grad log p_i estimates grad E[r].

    With p_i the probability of candidate i, q_i that of its being found given the threshold, w_i = p_i / q_i,
    W = sum_j w_j and B = sum_j w_j r_j:

    | normalize | A_i | the estimate |
    |---|---|---|
    | `True` | w_i / (W - w_i + p_i) * (r_i - B / W) | varies less, with a bias that falls as G grows |
    | `False` | w_i * (r_i * (1 - p_i + w_i) - B) | is unbiased for two beams or more |

    Both give the exact gradient when every semantic ID is in the group. Multiply by the gradients of the log-
    probabilities and *sum* over a group: the weights say how much of the distribution a candidate stands for, so
    there is no mean, and no deviation to divide by. A constant added to all rewards changes nothing with
    `normalize`, and equal rewards, or a group of one, give exactly 0; without, it adds noise of mean 0.

    Args:
        rewards: (B, G) floating, at most 1e37 in size. NaN is left out of the sums and gets 0, as if not found.
        logprobs: (B, G) log-probability of each candidate, at most 0: `BeamResult.scores` of a stochastic search.
            -inf is an absent candidate.
        inclusion: (B, G) probabilities in 1e-100 .. 1 to be found, `BeamResult.inclusion`; anything where absent.
        normalize: Which of the two, see above.
        mask: (B, G) bool, candidate present; default all.

    Returns:
        (B, G) advantages in the dtype and kind of `rewards`, 0 where absent.

    Raises:
        TypeError: Rewards that are not floating.
        ValueError: An infinite reward, log-probabilities above 0 or NaN, an inclusion out of range, shapes that do
            not fit.

    Example:
        >>> logprobs = np.log([[0.5, 0.3, 0.2]])  # all there is: A_i = p_i (r_i - E[r])
        >>> importance_weighted_advantages(np.array([[1.0, 0.0, 0.0]]), logprobs, np.ones((1, 3))).round(2).tolist()
        [[0.25, -0.15, -0.1]]

    Source: Kool, van Hoof and Welling, Buy 4 REINFORCE Samples, Get a Baseline for Free! (2019); Estimating Gradients
        for Discrete Random Variables by Sampling without Replacement (arXiv 2002.06043).
    """
    if inclusion is None:
        raise ValueError('`inclusion` must be given, and only a search with method="stochastic" has it; got None')
    r = _rewards(rewards, mask).astype(np.float64)
    log_p, q = (_as_table(name, x, r.shape) for name, x in (("logprobs", logprobs), ("inclusion", inclusion)))
    there = ~np.isnan(r) & (log_p != -np.inf)
    _check_draws(r, log_p, q, ~np.isnan(r), there)
    r, q = np.where(there, r, 0.0), np.where(there, q, 1.0)
    log_w = np.where(there, np.minimum(log_p, 0.0) - np.log(q), -np.inf)
    advantages = _normalized(r, log_w, q, there) if normalize else _unnormalized(r, log_w, q)
    return like(rewards, np.where(there, advantages, 0.0), dtype=getattr(rewards, "dtype", None))


def _normalized(r: Floats, log_w: Floats, q: Floats, there: Bools) -> Floats:
    # Weights in units of the largest, which cancels: none of many unlikely candidates is lost to underflow.
    top = log_w.max(1, keepdims=True, initial=-np.inf)
    w = np.exp(log_w - np.where(np.isneginf(top), 0.0, top))
    first = np.take_along_axis(r, there.argmax(1)[:, None], 1) if r.size else r
    r = r - first  # so that equal rewards are exactly 0
    total = w.sum(1, keepdims=True)
    mean = (w * r).sum(1, keepdims=True) / np.maximum(total, 1.0)  # the largest weight is 1, if there is one
    advantages: Floats = w / np.where(there, total - w + w * q, 1.0) * (r - mean)
    return advantages


def _unnormalized(r: Floats, log_w: Floats, q: Floats) -> Floats:
    w = np.exp(log_w)
    baseline = (w * r).sum(1, keepdims=True)
    advantages: Floats = w * (r * (1 - w * q + w) - baseline)
    return advantages


def _rewards(rewards: Any, mask: Any) -> Array:
    """Rewards as an array, NaN where absent."""
    array = to_numpy(rewards)
    if array.dtype.kind != "f":
        raise TypeError(f"`rewards` must be floating, got {array.dtype}; convert them with float32")
    return array if mask is None else np.where(truth("mask", mask, array.shape), array, array.dtype.type(np.nan))


def _as_table(name: str, x: Any, shape: tuple[int, ...]) -> Floats:
    table = to_numpy(x).astype(np.float64)
    if len(shape) != 2 or table.shape != shape:
        raise ValueError(f"`rewards` must have shape (B, G) and `{name}` the same, got {shape} and {table.shape}")
    return table


def _check_draws(r: Floats, log_p: Floats, q: Floats, scorable: Bools, there: Bools) -> None:
    for name, rule, bad, values in (
        ("rewards", "be finite and at most 1e37 in size, or NaN for a candidate without one", np.abs(r) > 1e37, r),
        ("logprobs", "be log-probabilities, at most 0", scorable & ~(log_p <= 1e-3), log_p),
        ("inclusion", "lie in 1e-100 .. 1 where a candidate is present", there & ~((q >= 1e-100) & (q <= 1)), q),
    ):
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"`{name}` must {rule}; got {values[at]} at {at}")


def _grouping(rewards: Array, groups: Any) -> tuple[npt.NDArray[np.intp] | None, npt.NDArray[np.int64]]:
    """The order that brings each group together (None: it is already), and where each group starts."""
    if groups is None:
        if rewards.ndim != 2:
            raise ValueError(f"`rewards` must have shape (B, G) without `groups`, got {rewards.shape}")
        return None, np.arange(len(rewards) + 1, dtype=np.int64) * rewards.shape[1]
    if rewards.ndim != 1:
        raise ValueError(f"`rewards` must be flat with `groups`, got shape {rewards.shape}")
    if isinstance(groups, (int, np.integer)):
        return None, _equal_offsets(rewards.size, int(groups))
    return _id_offsets(rewards.size, to_numpy(groups))


def _equal_offsets(size: int, group: int) -> npt.NDArray[np.int64]:
    if group < 1 or size % group:
        raise ValueError(f"`groups` must be a size that divides {size} rewards, got {group}; or pass ids")
    return np.arange(0, size + 1, group, dtype=np.int64)


def _id_offsets(size: int, ids: Array) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(f"`groups` must hold integer ids, got {ids.dtype}")
    if ids.shape != (size,):
        raise ValueError(f"`groups` must have one id per reward, got shape {ids.shape} for {size} rewards")
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order])) + 1
    return order, np.concatenate(([0], starts, [size])).astype(np.int64)
