"""Rewards of a group of candidates, and the weight of the group.

Candidates stand in beam order (descending score). Everything takes NumPy arrays or torch tensors and returns
the same kind; sums are in float64. Absent candidates (`mask` false) get NaN, which `group_advantages` skips.

| function | what a candidate earns | needs |
|---|---|---|
| `match` | 1 for a hit | tokens |
| `prefix_match` | the share of the target that it begins with | tokens |
| `ndcg` | nothing for a hit, a penalty by rank for a miss | hits |
| `ranking` | `match` + `ndcg` | hits |
| `uncertainty_weighted` | 1 for a hit, a penalty by likelihood for a miss | hits, scores |
| `similarity` | the cosine of its item and the target's | items, embeddings |
| `weighted_sum` | several of these | rewards |

`ugr` goes from tokens to advantages in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal

import numpy as np
import numpy.typing as npt

from ugr_fast import _core
from ugr_fast.advantages import Scale
from ugr_fast.arrays import AnyArray, Array, like, to_numpy, truth

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Kind = Literal["rank", "discount", "probability"]


def match(tokens: AnyArray, target: AnyArray) -> AnyArray:
    """1 where a candidate is the target: [sid_i == t].

    Args:
        tokens: (B, G, L) integer candidates, right-padded with -1.
        target: (B, L) integer targets, right-padded with -1.

    Returns:
        (B, G) float32, 1 for a hit, 0 for a miss or an absent candidate (all -1).

    Raises:
        TypeError: Tokens that are not integers.
        ValueError: Shapes that do not fit.

    Example:
        >>> match(np.array([[[1, 2], [3, 4]]]), np.array([[3, 4]])).tolist()
        [[0.0, 1.0]]

    Source: the rule reward of MiniOneRec (arXiv 2510.24431), on token ids.
    """
    candidates, truths = _tokens(tokens, target)
    same = (candidates == truths[:, None, :]).all(-1) & (candidates >= 0).any(-1)  # (B, G)
    return like(tokens, same.astype(np.float32))


def prefix_match(tokens: AnyArray, target: AnyArray) -> AnyArray:
    """The leading tokens that a candidate shares with the target, over the length of the longer of the two.

    A hit, and nothing else, gets 1; a wrong first token 0.

    Args:
        tokens: (B, G, L) integer candidates, right-padded with -1.
        target: (B, L) integer targets, right-padded with -1.

    Returns:
        (B, G) float32 in [0, 1], 0 for an absent candidate (all -1).

    Raises:
        TypeError: Tokens that are not integers.
        ValueError: Shapes that do not fit.

    Example:
        >>> prefix_match(np.array([[[1, 2, 3, 4], [1, 2, 4, 3], [2, 2, 3, 4]]]), np.array([[1, 2, 3, 4]])).tolist()
        [[1.0, 0.5, 0.0]]

    Source: the partial hits of UGR (arXiv 2602.11719), which have the target's first token, told apart by depth.
    """
    candidates, truths = _tokens(tokens, target)
    same = (candidates == truths[:, None, :]) & (candidates >= 0)
    shared = np.logical_and.accumulate(same, axis=2).sum(2)  # (B, G)
    longer = np.maximum((candidates >= 0).sum(2), (truths >= 0).sum(1)[:, None])
    return like(tokens, (shared / np.maximum(longer, 1)).astype(np.float32))


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
    return like(hits, _ranking(hits, mask, 1.0))


def ndcg(hits: AnyArray, *, mask: Any = None) -> AnyArray:
    """Hit 0; miss at rank i -d_i / sum_j d_j with d_i = 1 / log2(i + 2); a group without a hit all 0.

    The part of `ranking` that depends on the rank: `ranking` = `match` + `ndcg`.

    Args:
        hits: (B, G) bool, or 0 and 1, in beam order.
        mask: (B, G) bool, candidate present; default all. Ranks count the candidates present.

    Returns:
        (B, G) float32 rewards in [-1, 0]. A group with a hit sums to -(1 - sum over hits of d_i / sum_j d_j).

    Raises:
        ValueError: Shapes that do not fit, hits other than 0 and 1.

    Example:
        >>> print(ndcg(np.array([[False, True, False]])).round(4))
        [[-0.4693  0.     -0.2346]]

    Source: MiniOneRec (arXiv 2510.24431), the NDCG penalty of its ranking reward.
    """
    return like(hits, _ranking(hits, mask, 0.0))


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
    _check_temperature(temperature)
    hit, present = _hits(hits, mask)
    s = _scores(scores, hit.shape, present)
    n = _lengths(lengths, hit.shape, present) if _by_length(score) else None
    kernel: Callable[..., Array] = (
        _core.uncertainty_weighted_f64 if s.dtype == np.float64 else _core.uncertainty_weighted_f32
    )
    rewards = kernel(hit, s, n, temperature, present).reshape(hit.shape)
    return like(scores, rewards, dtype=getattr(scores, "dtype", None))


def difficulty_weight(
    hits: Any, scores: AnyArray, *, alpha_min: float = 0.0, kind: Kind = "rank", mask: Any = None
) -> AnyArray:
    """Harder groups weigh more: w = alpha_min + (1 - alpha_min) * difficulty.

    | kind | difficulty | 0 for |
    |---|---|---|
    | `"rank"` | rank(t) / (G - 1) | a target that is ranked first |
    | `"discount"` | (1 - d_rank(t)) / (1 - d_(G-1)), d_i = 1 / log2(i + 2) | a target that is ranked first |
    | `"probability"` | 1 - p_t, p_t the target's share of softmax(s) over the group | a target that is certain |

    rank(t) is the 0-based rank of the target by descending score, ties by beam index; w = 1 if the target is
    absent. G counts the candidates present; w = alpha_min for a hit in a group of one. Multiplies the policy
    loss of the group, not its rewards: a constant factor inside a group cancels in its advantages.
    `"discount"` is 1 - NDCG, stretched to reach 1: most of it lies in the first ranks. `"probability"` tells a
    target that is barely first from one that is far ahead.

    Args:
        hits: (B, G) bool, or 0 and 1.
        scores: (B, G) floating; -inf allowed. Sums of token log-probabilities for `kind="probability"`.
        alpha_min: Weight of a group of difficulty 0, in [0, 1].
        kind: What difficulty is, see above; the released code's is `"rank"`.
        mask: (B, G) bool, candidate present; default all.

    Returns:
        (B,) weights in [alpha_min, 1], in the dtype of `scores`.

    Raises:
        ValueError: NaN or +inf among the scores, shapes that do not fit, `alpha_min` outside [0, 1], an unknown
            `kind`.

    Example:
        >>> difficulty_weight(np.array([[False, True, False]]), np.array([[-1.0, -2.0, -3.0]])).tolist()
        [0.5]

    Source: UGR (arXiv 2602.11719) §3, difficulty-aware weighting.
    """
    _check_alpha(alpha_min)
    hit, present = _hits(hits, mask)
    s = _scores(scores, hit.shape, present)
    kernel: Callable[..., Array] = _core.difficulty_weight_f64 if s.dtype == np.float64 else _core.difficulty_weight_f32
    return like(scores, kernel(hit, s, kind, alpha_min, present), dtype=getattr(scores, "dtype", None))


def similarity(items: AnyArray, target_items: AnyArray, embeddings: Any) -> AnyArray:
    """The cosine of a candidate's embedding and the target's: e_i . e_t / (|e_i| |e_t|).

    Args:
        items: (B, G) integer item ids of the candidates, -1 where there is none.
        target_items: (B,) integer item ids of the targets.
        embeddings: (N, D) floating, a row for each item id. Rows that are not asked for may hold anything.

    Returns:
        (B, G) rewards in [-1, 1], in the dtype of `embeddings` as an array; NaN where there is no candidate.

    Raises:
        TypeError: Embeddings that are not floating, ids that are not integers.
        ValueError: Shapes that do not fit, an id that is no row, an embedding that is zero or not finite.

    Example:
        >>> similarity(np.array([[0, 1, -1]]), np.array([0]), np.array([[3.0, 4.0], [4.0, 3.0]])).round(2).tolist()
        [[1.0, 0.96, nan]]

    Source: the semantic reward of MiniOneRec (arXiv 2510.24431).
    """
    ids, targets, table = to_numpy(items), to_numpy(target_items), to_numpy(embeddings)
    if table.ndim != 2 or ids.ndim != 2 or targets.shape != ids.shape[:1]:
        shapes = f"{ids.shape}, {targets.shape} and {table.shape}"
        raise ValueError(f"`items`, `target_items`, `embeddings` must have shapes (B, G), (B,), (N, D); got {shapes}")
    if table.dtype.kind != "f":
        raise TypeError(f"`embeddings` must be floating, got {table.dtype}")
    ids, targets = _rows("items", ids, -1, len(table)), _rows("target_items", targets, 0, len(table))
    group, place = np.nonzero(ids >= 0)
    used, row = np.unique(np.concatenate([ids[group, place], targets]), return_inverse=True)
    unit = _directions(table[used], used)
    own, wanted = unit[row[: len(group)]], unit[row[len(group) :]][group]  # (candidates, D) both
    cosine = np.full(ids.shape, np.nan, table.dtype)
    cosine[group, place] = np.clip((own * wanted).sum(1), -1, 1)
    return like(items, cosine)


def weighted_sum(
    rewards: Sequence[AnyArray], weights: Sequence[float], *, missing: Literal["zero", "renormalise"] = "zero"
) -> AnyArray:
    """Several rewards as one: sum_k w_k r_k.

    NaN says that a reward is missing. `"zero"` leaves it out of the sum; `"renormalise"` also gives its weight to
    the others, in proportion: sum_k w_k * (sum of w_k r_k) / (sum of w_k), the two sums in brackets over what is
    there. Where all are missing the result is NaN. A reward of weight 0 has no influence, whatever it holds.

    Args:
        rewards: K floating arrays of one shape.
        weights: K finite weights, not all 0; at least 0 for `"renormalise"`.
        missing: What becomes of the weight of a missing reward.

    Returns:
        Rewards of that shape, in the dtype and kind of the first array.

    Raises:
        TypeError: Rewards that are not floating.
        ValueError: An infinite reward, shapes or weights that do not fit, an unknown `missing`.

    Example:
        >>> hit, close = np.array([[1.0, 0.0]]), np.array([[1.0, np.nan]])
        >>> weighted_sum([hit, close], [1.0, 0.5]).tolist()
        [[1.5, 0.0]]

    Source: GRPOTrainer of TRL, `reward_weights`.
    """
    if missing not in ("zero", "renormalise"):
        raise ValueError(f'`missing` must be "zero" or "renormalise", got {missing!r}')
    w = _weights(weights, len(rewards), missing)
    table = np.stack([_component(rewards, int(k)) for k in np.flatnonzero(w)])  # (K, ...)
    w, there = w[w != 0].reshape(-1, *[1] * (table.ndim - 1)), ~np.isnan(table)
    if missing == "renormalise":
        left = (w * there).sum(0)
        w = w * there / np.where(left > 0, left, 1.0) * w.sum()  # shares of what is left first: none overflows
    total = (w * np.nan_to_num(table)).sum(0)
    return like(rewards[0], np.where(there.any(0), total, np.nan), dtype=getattr(rewards[0], "dtype", None))


@dataclass(frozen=True)
class Signal(Generic[AnyArray]):
    """What a batch of groups is to be learned from.

    Attributes:
        hits: (B, G) bool, the candidate is present and is the target.
        rewards: (B, G) as `uncertainty_weighted`, NaN where absent.
        weight: (B,) as `difficulty_weight`.
        advantages: (B, G) as `group_advantages`, 0 where absent.
    """

    hits: AnyArray
    rewards: AnyArray
    weight: AnyArray
    advantages: AnyArray


def ugr(
    tokens: Any,
    target: Any,
    scores: AnyArray,
    *,
    score: Literal["mean", "sum"] = "mean",
    temperature: float = 1.0,
    alpha_min: float = 0.0,
    kind: Kind = "rank",
    scale: Scale = "std",
    eps: float = 1e-4,
    mask: Any = None,
) -> Signal[AnyArray]:
    """From tokens to advantages in one call: `match`, `uncertainty_weighted`, `difficulty_weight`, `group_advantages`.

    For float32 and float64 bit for bit what these give one after the other, with lengths counted from the tokens; one
    pass over them, and a group without a hit costs little more than that.

    Args:
        tokens: (B, G, L) integer candidates, right-padded with -1; all -1 is an absent candidate.
        target: (B, L) integer targets, right-padded with -1.
        scores: (B, G) sums of token log-probabilities; -inf is a forbidden candidate.
        score: `"mean"` divides scores by lengths in the reward, as the released code; `"sum"` does not.
        temperature: > 0, of the reward's softmax over misses.
        alpha_min: Weight of a group of difficulty 0, in [0, 1].
        kind: What difficulty is, see `difficulty_weight`.
        scale: What advantages are divided by, see `group_advantages`.
        eps: Added to the standard deviation, >= 0.
        mask: (B, G) bool, candidates that count; default all that are not absent.

    Returns:
        Hits, rewards, weight and advantages; the last three in the dtype and kind of `scores`.

    Raises:
        TypeError: Scores that are not floating, tokens that are not integers.
        ValueError: NaN or +inf among the scores, shapes that do not fit, a setting out of range.

    Example:
        >>> signal = ugr(np.array([[[1, 2], [3, 4], [3, 5]]]), np.array([[3, 4]]), np.array([[-1.0, -2.0, -3.0]]))
        >>> signal.hits.tolist(), signal.weight.tolist()
        ([[False, True, False]], [0.5])
        >>> print(signal.rewards.round(3), signal.advantages.round(3))
        [[-0.731  1.    -0.269]] [[-0.816  1.116 -0.3  ]]

    Source: UGR (arXiv 2602.11719) §3.
    """
    _check_temperature(temperature)
    _check_alpha(alpha_min)
    by_length = _by_length(score)
    candidates, truths = _tokens(tokens, target)
    shape = candidates.shape[:2]
    counts = None if mask is None else np.ascontiguousarray(truth("mask", mask, shape))
    s = _floats(scores, shape, "the candidates")
    if not _all_below_infinity(s):
        _check_scores(s, (candidates >= 0).any(2) & (True if counts is None else counts))
    kernel: Callable[..., tuple[Array, ...]] = _core.ugr_signal_f64 if s.dtype == np.float64 else _core.ugr_signal_f32
    settings = by_length, temperature, kind, alpha_min, scale, eps
    hits, rewards, weight, advantages = kernel(candidates, truths, s, counts, *settings)
    dtype = getattr(scores, "dtype", None)
    return Signal(
        like(scores, hits.reshape(shape)),
        like(scores, rewards.reshape(shape), dtype=dtype),
        like(scores, weight, dtype=dtype),
        like(scores, advantages.reshape(shape), dtype=dtype),
    )


def _tokens(tokens: Any, target: Any) -> tuple[Array, Array]:
    candidates, truths = to_numpy(tokens), to_numpy(target)
    if candidates.ndim != 3 or truths.shape != (candidates.shape[0], candidates.shape[2]):
        shapes = f"{candidates.shape} and {truths.shape}"
        raise ValueError(f"`tokens` must have shape (B, G, L) and `target` (B, L), got {shapes}")
    return _integers("tokens", candidates), _integers("target", truths)


def _integers(name: str, ids: Array) -> npt.NDArray[np.int64]:
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must hold integer ids, got {ids.dtype}")
    return np.ascontiguousarray(ids, np.int64)


def _hits(hits: Any, mask: Any) -> tuple[Bools, Bools | None]:
    """Hits that are present, and what is present (None: all), both contiguous."""
    shape = to_numpy(hits).shape
    if len(shape) != 2:
        raise ValueError(f"`hits` must have shape (B, G), got {shape}")
    if mask is None:
        return np.ascontiguousarray(truth("hits", hits, shape)), None
    present = np.ascontiguousarray(truth("mask", mask, shape))
    return truth("hits", hits, shape) & present, present


def _ranking(hits: Any, mask: Any, prize: float) -> Array:
    """`prize` for hits, minus the share of the discounts for misses, 0 in groups without a hit, NaN where absent."""
    hit, mask = _hits(hits, mask)
    present = np.ones(hit.shape, np.bool_) if mask is None else mask
    rank = np.cumsum(present, axis=1) - 1
    discount = present / np.log2(np.maximum(rank, 0) + 2)
    share = discount / np.maximum(discount.sum(1, keepdims=True), 1)
    reward = np.where(hit, prize, 0.0 - share) * hit.any(1, keepdims=True) + 0.0  # -0 + 0 is +0
    return np.where(present, reward, np.nan).astype(np.float32)


def _floats(scores: Any, shape: tuple[int, ...], origin: str) -> Array:
    """Scores as contiguous float32, or float64 if they are wider."""
    s = to_numpy(scores)
    if s.dtype.kind != "f":
        raise TypeError(f"`scores` must be floating, got {s.dtype}")
    if s.shape != shape:
        raise ValueError(f"`scores` must have the shape of {origin} {shape}, got {s.shape}")
    return np.ascontiguousarray(s, np.float64 if s.itemsize > 4 else np.float32)


def _scores(scores: Any, shape: tuple[int, ...], present: Bools | None) -> Array:
    s = _floats(scores, shape, "`hits`")
    if not _all_below_infinity(s):
        _check_scores(s, present)
    return s


def _all_below_infinity(s: Array) -> bool:
    return bool(s.max(initial=-np.inf) < np.inf)  # NaN is not; a maximum is the fastest way to see that


def _check_scores(s: Array, present: Bools | None) -> None:
    """Refuses NaN and +inf; absent candidates may hold anything."""
    bad = np.argwhere(~(s < np.inf) & (True if present is None else present))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise ValueError(f"`scores` must be finite or -inf, got {s[at]} at {at}; mask absent candidates")


def _check_temperature(temperature: float) -> None:
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"`temperature` must be finite and > 0, got {temperature}")


def _check_alpha(alpha_min: float) -> None:
    if not 0 <= alpha_min <= 1:
        raise ValueError(f"`alpha_min` must lie in [0, 1], got {alpha_min}")


def _by_length(score: str) -> bool:
    if score not in ("mean", "sum"):
        raise ValueError(f'`score` must be "mean" or "sum", got {score!r}')
    return score == "mean"


def _lengths(lengths: Any, shape: tuple[int, ...], present: Bools | None) -> Floats:
    if lengths is None:
        raise ValueError('`lengths` must be given with `score="mean"`; pass token counts, or `score="sum"`')
    n = to_numpy(lengths)
    if n.shape != shape:
        raise ValueError(f"`lengths` must have the shape of `hits` {shape}, got {n.shape}")
    kept = n if present is None else n[present]
    if not ((kept >= 1) & (kept < np.inf)).all():
        bad = kept[~((kept >= 1) & (kept < np.inf))][0]
        raise ValueError(f"`lengths` must be finite and >= 1 where a candidate is present, got {bad}")
    return np.ascontiguousarray(n, np.float64)


def _rows(name: str, ids: Array, least: int, end: int) -> npt.NDArray[np.int64]:
    outside = (ids < least) | (ids >= end)
    if outside.any():
        raise ValueError(f"`{name}` must lie in {least} .. {end - 1}, the rows of `embeddings`; got {ids[outside][0]}")
    return _integers(name, ids)


def _directions(rows: Array, names: Array) -> Floats:
    """Rows of length 1; measured in units of their largest entry, so that no square overflows or vanishes."""
    rows = rows.astype(np.float64)
    largest = np.abs(rows).max(1, initial=0.0)
    bad = names[~((largest > 0) & (largest < np.inf))]
    if len(bad):
        raise ValueError(f"`embeddings` must have a direction: row {bad[0]} is zero or not finite; leave its item out")
    rows /= largest[:, None]
    unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _weights(weights: Sequence[float], count: int, missing: str) -> Floats:
    w = np.asarray(weights, np.float64)
    least = 0 if missing == "renormalise" else -np.inf
    if w.shape != (count,) or not (np.isfinite(w) & (w >= least)).all() or not w.any():
        rule = "finite weight per reward, not all 0" + (", none negative" if least == 0 else "")
        raise ValueError(f"`weights` must hold one {rule}; got {w.tolist()} for {count} rewards")
    return w


def _component(rewards: Sequence[Any], k: int) -> Floats:
    reward, shape = to_numpy(rewards[k]), to_numpy(rewards[0]).shape
    if reward.dtype.kind != "f":
        raise TypeError(f"`rewards[{k}]` must be floating, got {reward.dtype}; convert it with float32")
    if reward.shape != shape:
        raise ValueError(f"`rewards` must have one shape, got {shape} and {reward.shape}")
    if np.isinf(reward).any():
        raise ValueError(f"`rewards[{k}]` must be finite, or NaN where it is missing; got inf")
    return reward.astype(np.float64)
