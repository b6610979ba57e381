"""NumPy in, NumPy out; torch in, torch out: without importing torch for those who do not use it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array: TypeAlias = npt.NDArray[Any]
AnyArray = TypeVar("AnyArray", npt.NDArray[Any], "torch.Tensor")


def is_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def to_numpy(x: Any) -> Array:
    """`x` as a NumPy array: detached, on the CPU, bfloat16 widened to float32.

    Example:
        >>> to_numpy([1, 2]).tolist()
        [1, 2]
    """
    if not is_tensor(x):
        return np.asarray(x)
    x = x.detach().cpu()
    return np.asarray((x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy())


def like(template: AnyArray, result: Array, *, dtype: Any = None) -> AnyArray:
    """`result` as the kind of `template`: a tensor on its device, or an array.

    Args:
        template: What the caller passed in.
        result: What the caller gets back.
        dtype: Type of the result if it is not `result.dtype`, in the terms of `template`.
    """
    if is_tensor(template):
        tensor = sys.modules["torch"].from_numpy(np.ascontiguousarray(result))
        return tensor.to(template.device, dtype or tensor.dtype)  # type: ignore[no-any-return]
    return result if dtype is None else result.astype(dtype, copy=False)  # type: ignore[return-value]


def truth(name: str, x: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """`x` as booleans of `shape`: bool, or numbers that are all 0 or 1.

    Raises:
        ValueError: Another shape or another number.
    """
    array = to_numpy(x)
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {array.shape}")
    if array.dtype == np.bool_:
        return array
    one = np.asarray(array == 1)
    if not (one | (array == 0)).all():
        raise ValueError(f"`{name}` must hold booleans, or 0 and 1; got {array[~one & (array != 0)][0]}")
    return one


def column(name: str, x: Array, dtype: Any = None) -> Array:
    """`x` as a contiguous array of `dtype`, its own if None.

    Raises:
        ValueError: Another shape than (N,).
    """
    if x.ndim != 1:
        raise ValueError(f"`{name}` must have shape (N,), got {x.shape}")
    return np.ascontiguousarray(x, dtype)


def confidences(x: Any) -> Array:
    """`x` as (N,) float32, if that holds it, or float64; their range is the caller's to check."""
    array = to_numpy(x)
    wide = array.dtype.kind != "f" or array.itemsize > 4
    return column("confidence", array, np.float64 if wide else np.float32)


def outcomes(x: Any) -> Array:
    """`x` as (N,) uint8, 0 and 1, if it holds booleans or whole numbers; else float64, whose range is not checked.

    Raises:
        ValueError: Another shape, or a whole number other than 0 and 1.
    """
    array = column("correct", to_numpy(x))
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    if array.dtype.kind != "f":
        refuse("correct", array, (array == 0) | (array == 1), "must lie in [0, 1]")
    return array.astype(np.float64 if array.dtype.kind == "f" else np.uint8, copy=False)


def weights(x: Any, length: int) -> npt.NDArray[np.float64]:
    """`x` as (length,) float64, each 0 or of a size whose sums and products neither overflow nor vanish.

    Raises:
        ValueError: Another shape or size.
    """
    w = column("weight", to_numpy(x), np.float64)
    check_length("weight", w, length)
    refuse("weight", w, (w == 0) | ((w >= 1e-100) & (w <= 1e100)), "must be 0 or lie in [1e-100, 1e100]")
    return w


def check_length(name: str, x: Array, length: int) -> None:
    """Raise a ValueError if `x` does not have that length."""
    if len(x) != length:
        raise ValueError(f"`{name}` must have length {length}, got {len(x)}")


def refuse(name: str, x: Array, valid: Any, rule: str) -> None:
    """Raise a ValueError for the first of `x` that is not valid."""
    if not np.all(valid):
        first = int(np.argmin(valid))
        raise ValueError(f"`{name}` {rule}; got {x[first]} at index {first}")


def unit(name: str, x: Array) -> Array:
    """`x` itself, if all of it lies in [0, 1].

    Raises:
        ValueError: A value outside, or NaN, with its index.
    """
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        refuse(name, x, (x >= 0) & (x <= 1), "must lie in [0, 1]")
    return x


def at_least(value: int, name: str, least: int) -> int:
    """`value`, if it is no smaller than `least`.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is smaller.
    """
    if not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}")
    return value
