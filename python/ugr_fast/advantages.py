"""Group-relative advantages."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ugr_fast import _core
from ugr_fast.arrays import AnyArray, Array, like, to_numpy

Scale = Literal["std", "none", "leave_one_out", "batch"]


def group_advantages(
    rewards: AnyArray,
    groups: Any = None,
    *,
    scale: Scale = "std",
    eps: float = 1e-4,
    ddof: int = 1,
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

    Returns:
        Advantages of the shape, dtype and kind (array, or tensor on the same device) of `rewards`.

    Raises:
        TypeError: Rewards that are not floating, ids that are not integers.
        ValueError: An infinite reward, groups that do not fit, an unknown `scale`, a bad `eps` or `ddof`.

    Example:
        >>> group_advantages(np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])).round(3).tolist()
        [[1.5, -0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]
        >>> group_advantages(np.array([1.0, 5.0, 0.0, 7.0]), np.array([8, -3, 8, -3]), scale="none").tolist()
        [0.5, -1.0, -0.5, 1.0]

    Source: DeepSeekMath (arXiv 2402.03300) eq. 4; Dr. GRPO (arXiv 2503.20783); RLOO (arXiv 2402.14740).
    """
    array = to_numpy(rewards)
    if array.dtype.kind != "f":
        raise TypeError(f"`rewards` must be floating, got {array.dtype}; convert them with float32")
    order, offsets = _grouping(array, groups)
    flat: Array = array.ravel() if order is None else array[order]
    result: Array
    if array.itemsize > 4:
        result = _core.group_advantages_f64(flat.astype(np.float64, copy=False), offsets, scale, eps, ddof)
    else:
        result = _core.group_advantages_f32(flat.astype(np.float32, copy=False), offsets, scale, eps, ddof)
    if order is not None:
        result[order] = result.copy()  # back to the caller's order
    return like(rewards, result.reshape(array.shape), dtype=getattr(rewards, "dtype", None))


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
