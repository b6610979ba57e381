"""A prompt and its candidates as one row: the prefix tree in depth-first order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ugr_fast import _core
from ugr_fast.arrays import Array, to_numpy

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """Rows of tree nodes in depth-first order.

    B prompts, G candidates of at most L tokens, T nodes in the longest row. Node j may attend to node i
    exactly when `i <= j < exit[i]`: to its ancestors and to itself. A padding node sees only itself.
    """

    tokens: Ints
    """(B, T) token of each node."""
    position: Ints
    """(B, T) depth of each node: its position in the unpacked sequence."""
    exit: Ints
    """(B, T) first index after each node's subtree."""
    length: Ints
    """(B,) nodes in each row; the rest is padding."""
    logit_index: Ints
    """(B, G, L) node whose logits predict each completion token, -1 where there is no token."""
    suffix_index: Ints
    """(B, G) node of the last suffix token of each candidate, -1 if absent or without a suffix."""

    def attention_mask(self) -> npt.NDArray[np.bool_]:
        """(B, T, T) mask: [b, j, i] says whether node j may attend to node i.

        Example:
            >>> pack_prefixes([[7]], np.array([[[1, 2], [3, 4]]])).attention_mask().astype(int)[0].tolist()
            [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
        """
        node = np.arange(self.tokens.shape[1])
        return (node <= node[:, None]) & (node[:, None] < self.exit[:, None, :])  # (B, T, T)


def pack_prefixes(
    prompts: Sequence[Sequence[int] | Array],
    completions: Any,
    suffix: Sequence[int] | Array | None = None,
    pad_token: int = 0,
) -> Packed:
    """Packs each prompt, the prefix tree of its candidates and a suffix per candidate into one row.

    One row of P + |distinct prefixes| nodes instead of G rows of P + L tokens. Siblings are in ascending
    order of token, a candidate's suffix before the candidates that extend it. Equal candidates share all.

    Args:
        prompts: B sequences of tokens >= 0, at least one token each.
        completions: (B, G, L) integers, L >= 1, right-padded with -1; a candidate of all -1 is absent.
        suffix: Tokens after every candidate. Without it the last token of a candidate needs no node.
        pad_token: Token of padding nodes.

    Returns:
        The rows, padded to the longest.

    Raises:
        TypeError: Tokens that are not integers.
        ValueError: An empty prompt, a negative token, a token after padding, shapes that do not fit.

    Example:
        >>> packed = pack_prefixes([[7, 8]], np.array([[[1, 2], [1, 3]]]), suffix=[9])
        >>> packed.tokens.tolist(), packed.exit.tolist()
        ([[7, 8, 1, 2, 9, 3, 9]], [[7, 7, 7, 5, 5, 7, 7]])
        >>> packed.logit_index.tolist(), packed.suffix_index.tolist()
        ([[[1, 2], [1, 2]]], [[4, 6]])

    Source: tree attention, Miao et al., SpecInfer (arXiv 2305.09781) §4.
    """
    rows = [_tokens("prompts", prompt) for prompt in prompts]
    if empty := [b for b, row in enumerate(rows) if not row.size]:
        raise ValueError(f"`prompts` must hold at least one token each, got none for {empty[0]}; add a BOS")
    table = _tokens("completions", completions, ndim=3)
    if len(table) != len(rows):
        raise ValueError(f"`completions` must have a row per prompt, got {len(table)} for {len(rows)}")
    num_rows, group, depth = table.shape
    flat = np.concatenate(rows) if rows else np.empty(0, np.int64)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    ending = _tokens("suffix", [] if suffix is None else suffix)
    *arrays, width = _core.pack_prefixes(flat, offsets, table.ravel(), group, depth, ending, pad_token)
    shapes = [(num_rows, width)] * 3 + [(num_rows,), table.shape, (num_rows, group)]
    return Packed(*(array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)))


def _tokens(name: str, tokens: Any, ndim: int = 1) -> Ints:
    array = to_numpy(tokens)
    if array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} dimension(s), got shape {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must hold integers, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64)
