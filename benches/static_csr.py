"""The compressed-sparse-row method of STATIC (arXiv 2602.22647) in NumPy and torch, as a peer for the benchmarks.

Dense tables answer for the first d tokens, compressed sparse rows for the rest:

    depth < d    allowed[depth]  (V**depth, V) bool      which tokens may follow each dense prefix
                 entry           (V**d,) int32           the row that d tokens lead to
    depth >= d   row_start       (rows + 1,) int32       edges of row r: row_start[r] .. row_start[r + 1]
                 edges           (E + V,) int64          token, and above it the row that it leads to

A step is one gather for all beams at once, padded to the widest row of the level; what is not allowed scores -inf; then
top-k. The best K are taken over all allowed expansions of a prompt, which makes the beam search exact; the published
method first cuts every beam to its best few tokens, which is an argument here. Sorting is part of `build`, by packed
keys. SIDs have one length.

Written for these benchmarks from the paper's description.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DENSE_BYTES = 2**30  # dense tables of more than this are not built
ROW, TOKEN = 32, 2**32 - 1  # an edge packs two numbers


@dataclass(frozen=True)
class Kept:
    """The beams that a step keeps, best first: scores, parents, tokens and states, all (B, K)."""

    scores: Tensor
    parents: Tensor
    tokens: Tensor
    states: Tensor


@dataclass(frozen=True)
class StaticCsr:
    """The tables of the module's picture, and 0 .. the widest row of each sparse level."""

    vocabulary: int
    allowed: tuple[Tensor, ...]
    entry: Tensor
    row_start: Tensor
    edges: Tensor
    offsets: tuple[Tensor, ...]

    @classmethod
    def build(cls, sids: NDArray[np.int64], vocabulary: int) -> StaticCsr:
        """Sort (N, L) SIDs and lay them out; dense for as many tokens as `dense_levels` says."""
        levels = min(dense_levels(vocabulary), sids.shape[1] - 1)
        sids = sids[sorted_order(sids, vocabulary)]
        first = first_of_prefix(sids)
        allowed, entry = dense_tables(sids, first, vocabulary, levels)
        row_start, edges, widest = sparse_rows(sids, first, vocabulary, levels)
        tables = map(torch.from_numpy, (entry, row_start, edges))
        offsets = (torch.arange(width, dtype=torch.int32) for width in widest)
        return cls(vocabulary, tuple(map(torch.from_numpy, allowed)), *tables, tuple(offsets))

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(table.nbytes for table in (*self.allowed, self.entry, self.row_start, self.edges))

    def step(
        self,
        depth: int,
        logprobs: Tensor,
        totals: Tensor,
        states: Tensor,
        num_beams: int,
        tokens_per_beam: int | None = None,
    ) -> Kept:
        """Take one step for (B, W) beams with scores `totals` in `states`; `logprobs` is (B * W, V)."""
        if depth < len(self.allowed):
            mask = self.allowed[depth].index_select(0, states.view(-1))  # (B * W, V)
            scores = torch.where(mask, logprobs, -torch.inf).add_(totals.view(-1, 1))
            kept, index = best(scores.view(*totals.shape, -1), num_beams, tokens_per_beam)
            parents, tokens = index // self.vocabulary, index % self.vocabulary
            return Kept(kept, parents, tokens, self._follow(depth, states.gather(1, parents), tokens))
        offsets = self.offsets[depth - len(self.allowed)]  # (widest,)
        bounds = self.row_start.unfold(0, 2, 1).index_select(0, states.view(-1))  # (B * W, 2)
        slots = bounds[:, :1] + offsets  # (B * W, widest)
        edges = self.edges.index_select(0, slots.view(-1)).view_as(slots)
        scores = logprobs.gather(1, edges & TOKEN).add_(totals.view(-1, 1))
        scores = scores.masked_fill_(slots >= bounds[:, 1:], -torch.inf)
        kept, index = best(scores.view(*totals.shape, -1), num_beams, tokens_per_beam)
        chosen = edges.view(len(totals), -1).gather(1, index)
        return Kept(kept, index // len(offsets), chosen & TOKEN, chosen >> ROW)

    def _follow(self, depth: int, states: Tensor, tokens: Tensor) -> Tensor:
        prefix = states * self.vocabulary + tokens
        return self.entry.take(prefix) if depth + 1 == len(self.allowed) else prefix


def best(scores: Tensor, num_beams: int, tokens_per_beam: int | None) -> tuple[Tensor, Tensor]:
    """Best K of (B, W, columns) per prompt, and their flat indices; after a cut of each beam where asked for."""
    batch, beams, width = scores.shape
    if tokens_per_beam is None:
        return scores.view(batch, -1).topk(num_beams)
    few, columns = scores.topk(min(tokens_per_beam, width))
    kept, index = few.view(batch, -1).topk(num_beams)
    columns = columns + width * torch.arange(beams)[:, None]
    return kept, columns.view(batch, -1).gather(1, index)


def dense_levels(vocabulary: int) -> int:
    """2 where bool and int32 tables of V**2 cells fit, as published; else 0, rows from the root."""
    return 2 if 5 * vocabulary**2 <= DENSE_BYTES else 0


def sorted_order(sids: NDArray[np.int64], vocabulary: int) -> NDArray[np.intp]:
    """Order of the rows, by as few keys as the tokens' bits can be packed into."""
    bits = max(1, (vocabulary - 1).bit_length())
    keys = []
    for start in range(0, sids.shape[1], 63 // bits):
        columns = sids[:, start : start + 63 // bits]
        key = columns[:, 0].copy()
        for column in columns.T[1:]:
            key <<= bits
            key |= column
        keys.append(key)
    return np.lexsort(keys[::-1])


def first_of_prefix(sids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N, L): whether a sorted row is the first with its l + 1 leading tokens."""
    differs = np.ones(sids.shape, bool)
    np.not_equal(sids[1:], sids[:-1], out=differs[1:])
    return np.logical_or.accumulate(differs, axis=1, out=differs)


def dense_tables(
    sids: NDArray[np.int64], first: NDArray[np.bool_], vocabulary: int, levels: int
) -> tuple[list[NDArray[np.bool_]], NDArray[np.int32]]:
    """Tables by token for the first levels, and the sparse row that each dense prefix leads to."""
    allowed, prefix = [], np.zeros(1, np.int64)
    entry = np.zeros(vocabulary**levels, np.int32)
    for level in range(levels):
        rows = sids[first[:, level], : level + 1]
        prefix = rows @ vocabulary ** np.arange(level, -1, -1)
        table = np.zeros((vocabulary**level, vocabulary), bool)
        table.reshape(-1)[prefix] = True
        allowed.append(table)
    entry[prefix] = np.arange(len(prefix))
    return allowed, entry


def sparse_rows(
    sids: NDArray[np.int64], first: NDArray[np.bool_], vocabulary: int, levels: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], tuple[int, ...]]:
    """Rows of all deeper prefixes, level by level: the i-th edge of a level leads to the i-th row of the next."""
    length = sids.shape[1]
    counts = first[:, levels:].sum(axis=0)  # edges of each level
    ends = np.cumsum(counts)
    parts, widest = [], []
    edges = np.zeros(ends[-1] + vocabulary, np.int64)  # padded: a wide gather from the last row stays inside
    num_rows = 1 if levels == 0 else int(first[:, levels - 1].sum())
    for level, end in zip(range(levels, length), ends, strict=True):
        new = np.flatnonzero(first[:, level])
        opens = first[new, level - 1] if level else np.arange(len(new)) == 0
        starts = np.flatnonzero(opens) + end - len(new)
        parts.append(starts.astype(np.int32))
        widest.append(int(np.diff(starts, append=end).max()))
        following = np.arange(num_rows, num_rows + len(new)) if level + 1 < length else 0
        np.add(sids[new, level], following << ROW, out=edges[end - len(new) : end])
        num_rows += len(new)
    row_start = np.concatenate([*parts, ends[-1:].astype(np.int32)])
    return row_start, edges, tuple(widest)
