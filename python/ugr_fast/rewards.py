"""Rewards of a group of candidates, and the weight of the group.

Candidates stand in beam order (descending score). Everything takes NumPy arrays or torch tensors and returns
the same kind; sums are in float64. Absent candidates (`mask` false) get NaN, which `group_advantages` skips.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ugr_fast.arrays import AnyArray, Array, like, to_numpy, truth

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def match(tokens: AnyArray, target: AnyArray) -> AnyArray:
    """1 where a candidate is the target: [sid_i == t].

    Args:
        tokens: (B, G, L) integer candidates, right-padded with -1.
        target: (B, L) integer targets, right-padded with -1.

    Returns:
        (B, G) float32, 1 for a hit, 0 for a miss or an absent candidate (all -1).

    Raises:
        ValueError: Shapes that do not fit.

    Example:
        >>> match(np.array([[[1, 2], [3, 4]]]), np.array([[3, 4]])).tolist()
        [[0.0, 1.0]]

    Source: the rule reward of MiniOneRec (arXiv 2510.24431), on token ids.
    """
    candidates, truths = to_numpy(tokens), to_numpy(target)
    if candidates.ndim != 3 or truths.shape != (candidates.shape[0], candidates.shape[2]):
        shapes = f"{candidates.shape} and {truths.shape}"
        raise ValueError(f"`tokens` must have shape (B, G, L) and `target` (B, L), got {shapes}")
    same = (candidates == truths[:, None, :]).all(-1) & (candidates >= 0).any(-1)  # (B, G)
    return like(tokens, same.astype(np.float32))


def ranking(hits: AnyArray, *, mask: Any = None) -> AnyArray:
    """Hit +1; miss at rank i -d_i / sum_j d_j with d_i = 1 / log2(i + 2); a group without a hit all 0.

    Args:
        hits: (B, G) bool, or 0 and 1, in beam order.
        mask: (B, G) bool, candidate present; default all. Ranks count the candidates present.

    Returns:
        (B, G) float32 rewards in [-1, 1].

    Raises:
        ValueError: Shapes that do not fit, hits other than 0 and 1.

    Example:
        >>> print(ranking(np.array([[False, True, False]])).round(4))
        [[-0.4693  1.     -0.2346]]

    Source: MiniOneRec (arXiv 2510.24431), ranking reward: rule plus NDCG penalty.
    """
    hit, present = _hits(hits, mask)
    found = _any(hit)
    rank = np.cumsum(present[found], axis=1) - 1
    discount = present[found] / np.log2(np.maximum(rank, 0) + 2)
    return like(hits, _rewards(hit, present, found, discount, np.float32))


def uncertainty_weighted(
    hits: Any,
    scores: AnyArray,
    *,
    score: Literal["mean", "sum"] = "mean",
    lengths: Any = None,
    temperature: float = 1.0,
    mask: Any = None,
) -> AnyArray:
    """Hit +1; miss i -softmax over the group's misses of (s / temperature) at i; a group without a hit all 0.

    The more likely the policy finds a wrong candidate, the larger its share of the group's penalty of 1.

    Args:
        hits: (B, G) bool, or 0 and 1.
        scores: (B, G) sums of token log-probabilities; -inf is a forbidden candidate, of penalty 0.
        score: `"mean"` takes s = scores / lengths, as the released code; `"sum"` takes s = scores.
        lengths: (B, G) tokens per candidate, >= 1, for `score="mean"`.
        temperature: > 0; towards 0 all of the penalty falls on the most likely miss.
        mask: (B, G) bool, candidate present; default all.

    Returns:
        (B, G) rewards in [-1, 1], in the dtype of `scores`.

    Raises:
        ValueError: NaN or +inf among the scores, shapes that do not fit, a missing or non-positive length.

    Example:
        >>> scores = np.array([[-1.0, -2.0, -2.0]])
        >>> uncertainty_weighted(np.array([[True, False, False]]), scores, score="sum").tolist()
        [[1.0, -0.5, -0.5]]

    Source: UGR (arXiv 2602.11719) §3, uncertainty-weighted reward.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"`temperature` must be finite and > 0, got {temperature}")
    hit, present = _hits(hits, mask)
    s = _scores(scores, present)
    if score == "mean":
        s = s / _lengths(lengths, present)
    elif score != "sum":
        raise ValueError(f'`score` must be "mean" or "sum", got {score!r}')
    found = _any(hit)
    misses = np.where(hit[found], -np.inf, s[found].astype(np.float64))
    top = misses.max(1, keepdims=True, initial=-np.inf)
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the top to -inf, as it should
        weight = np.exp((misses - np.where(np.isneginf(top), 0.0, top)) / temperature)
    return like(scores, _rewards(hit, present, found, weight, s.dtype), dtype=getattr(scores, "dtype", None))


def difficulty_weight(hits: Any, scores: AnyArray, *, alpha_min: float = 0.0, mask: Any = None) -> AnyArray:
    """Harder groups weigh more: w = alpha_min + (1 - alpha_min) * rank(t) / (G - 1).

    rank(t) is the 0-based rank of the target by descending score, ties by beam index; w = 1 if the target is
    absent. G counts the candidates present; w = alpha_min for a hit in a group of one. Multiplies the policy
    loss of the group, not its rewards: a constant factor inside a group cancels in its advantages.

    Args:
        hits: (B, G) bool, or 0 and 1.
        scores: (B, G) floating; -inf allowed.
        alpha_min: Weight of a group whose target is ranked first, in [0, 1].
        mask: (B, G) bool, candidate present; default all.

    Returns:
        (B,) weights in [alpha_min, 1], in the dtype of `scores`.

    Raises:
        ValueError: NaN or +inf among the scores, shapes that do not fit, `alpha_min` outside [0, 1].

    Example:
        >>> difficulty_weight(np.array([[False, True, False]]), np.array([[-1.0, -2.0, -3.0]])).tolist()
        [0.5]

    Source: UGR (arXiv 2602.11719) §3, difficulty-aware weighting.
    """
    if not 0 <= alpha_min <= 1:
        raise ValueError(f"`alpha_min` must lie in [0, 1], got {alpha_min}")
    hit, present = _hits(hits, mask)
    s = _scores(scores, present)
    found = _any(hit)
    weight = np.ones(len(s))
    weight[found] = alpha_min + (1 - alpha_min) * _relative_rank(hit[found], s[found], present[found])
    return like(scores, weight, dtype=getattr(scores, "dtype", None))


def _any(hit: Bools) -> Bools:
    return np.asarray(hit.any(1))


def _relative_rank(hit: Bools, s: Array, present: Bools) -> Floats:
    """rank(t) / (G - 1) of groups with a hit."""
    index = np.arange(s.shape[1])
    best = np.where(hit, s, -np.inf).max(1, keepdims=True, initial=-np.inf)
    first = np.where(hit & (s == best), index, s.shape[1]).min(1, keepdims=True, initial=s.shape[1])
    ahead = (s > best) | ((s == best) & (index < first) & present)  # an absent candidate has s = -inf
    return np.asarray(ahead.sum(1) / np.maximum(present.sum(1) - 1, 1))


def _rewards(hit: Bools, present: Bools, found: Bools, weight: Floats, dtype: Any) -> Array:
    """+1 for hits, minus the share of `weight` for misses, 0 in groups not `found`, NaN where absent."""
    total = weight.sum(1, keepdims=True)
    share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    reward = np.zeros(hit.shape, dtype)
    reward[found] = np.where(hit[found], 1.0, 0.0 - share)  # 0 - 0 is +0; -0 would print as such
    reward[~present] = np.nan
    return reward


def _hits(hits: Any, mask: Any) -> tuple[Bools, Bools]:
    shape = to_numpy(hits).shape
    if len(shape) != 2:
        raise ValueError(f"`hits` must have shape (B, G), got {shape}")
    present = np.ones(shape, np.bool_) if mask is None else truth("mask", mask, shape)
    return truth("hits", hits, shape) & present, present


def _scores(scores: Any, present: Bools) -> Array:
    s = to_numpy(scores)
    if s.dtype.kind != "f":
        raise TypeError(f"`scores` must be floating, got {s.dtype}")
    if s.shape != present.shape:
        raise ValueError(f"`scores` must have the shape of `hits` {present.shape}, got {s.shape}")
    if not present.all():
        s = np.where(present, s, s.dtype.type(-np.inf))
    if not (s < np.inf).all():
        at = tuple(int(i) for i in np.argwhere(~(s < np.inf))[0])
        raise ValueError(f"`scores` must be finite or -inf, got {s[at]} at {at}; mask absent candidates")
    return s


def _lengths(lengths: Any, present: Bools) -> Array:
    if lengths is None:
        raise ValueError('`lengths` must be given with `score="mean"`; pass token counts, or `score="sum"`')
    n = to_numpy(lengths)
    if n.shape != present.shape:
        raise ValueError(f"`lengths` must have the shape of `hits` {present.shape}, got {n.shape}")
    n = np.where(present, n, 1)
    if not (n >= 1).all():
        raise ValueError(f"`lengths` must be >= 1 where a candidate is present, got {n.min()}")
    return n
