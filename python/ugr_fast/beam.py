"""Exact beam search over the semantic IDs of a trie, one step at a time, on the CPU with numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ugr_fast import _core
from ugr_fast.trie import SidTrie

_KERNELS: dict[np.dtype[Any], Callable[..., Any]] = {
    np.dtype(np.float32): _core.beam_step_f32,
    np.dtype(np.float64): _core.beam_step_f64,
}


@dataclass(frozen=True)
class BeamResult:
    """The best semantic IDs of each row of a batch, best first; padding where there are fewer than K.

    Attributes:
        tokens: (B, K, L) int64, right-padded with -1; L is the depth of the trie.
        scores: (B, K) sums of log-probabilities; -inf for padding.
        logprobs: (B, K, L) log-probability of each token; 0 beside padding.
        items: (B, K) int64, the lowest item id of each SID; -1 for padding.
    """

    tokens: NDArray[np.int64]
    scores: NDArray[np.floating[Any]]
    logprobs: NDArray[np.floating[Any]]
    items: NDArray[np.int64]


class BeamSearch:
    """Exact constrained beam search: at every depth the top K over all allowed expansions.

    A child scores its parent's score plus the token's log-probability, added in the dtype of `scores`.
    Order: score descending, then parent ascending, then token ascending. -inf forbids a token. A beam
    that ends early (SIDs of different lengths) is carried on unchanged and competes with its score.

    Args:
        trie: the catalogue; no SID may be a prefix of another.
        batch_size: B, the number of independent searches.
        num_beams: K, the number of prefixes kept by each.

    Raises:
        ValueError: a trie that is not prefix-free, or a size below 1.

    Example:
        >>> trie = SidTrie.build([[0, 1], [1, 0], [1, 1]])
        >>> search = BeamSearch(trie, batch_size=1, num_beams=2)
        >>> while not search.done:
        ...     search.step(np.log(np.full((search.num_rows, 2), 0.5)))
        >>> search.result().items
        array([[0, 1]])

    Source: DESIGN "exact beam search"; the kernel is rust/beam.rs.
    """

    def __init__(self, trie: SidTrie, batch_size: int, num_beams: int) -> None:
        if not trie.prefix_free:
            raise ValueError("`trie` must have no SID that is a prefix of another; build it with `end=`")
        for name, size in (("batch_size", batch_size), ("num_beams", num_beams)):
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}")
        self.trie = trie
        self.batch_size = batch_size
        self.num_beams = num_beams
        self._nodes = np.zeros((batch_size, 1), np.int64)
        self._live = np.ones((batch_size, 1), np.bool_)
        self._parents = np.zeros((batch_size, 1), np.int64)
        self._scores: NDArray[Any] | None = None
        self._levels: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]] = []

    @property
    def width(self) -> int:
        """Beams per row of the batch: 1 before the first step, then `num_beams`."""
        return self._nodes.shape[1]

    @property
    def num_rows(self) -> int:
        """Rows of `scores` that the next step takes: batch_size * width."""
        return self._nodes.size

    @property
    def depth(self) -> int:
        """The number of steps taken."""
        return len(self._levels)

    @property
    def done(self) -> bool:
        """Whether no beam has a token left to choose."""
        return not self._live.any()

    @property
    def nodes(self) -> NDArray[np.int64]:
        """The node that each beam has reached, -1 for a dead one: (B, width)."""
        return self._nodes

    @property
    def live(self) -> NDArray[np.bool_]:
        """The beams that still have tokens to choose: (B, width)."""
        return self._live

    @property
    def parents(self) -> NDArray[np.int64]:
        """The beam of the previous level that each one extends, -1 for a dead one: (B, width)."""
        return self._parents

    @property
    def last_tokens(self) -> NDArray[np.int64]:
        """The token chosen last, -1 for a dead or finished beam and before the first step: (B, width)."""
        return self._levels[-1][0] if self._levels else np.full_like(self._nodes, -1)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """The tokens chosen so far, right-padded with -1: (B, width, depth)."""
        return self._trace(0, -1, self.depth)

    @property
    def candidates(self) -> NDArray[np.int64]:
        """The tokens that each beam may choose from, right-padded with -1: (num_rows, C)."""
        return self.trie.allowed(self._nodes.ravel())

    def step(self, scores: NDArray[np.floating[Any]], over: Literal["vocabulary", "candidates"] = "vocabulary") -> None:
        """Extend every beam by one token.

        Args:
            scores: float32 or float64 log-probabilities, (num_rows, V) with a column per token, or
                (num_rows, C) beside `candidates`. -inf forbids. Rows of dead beams and columns of tokens
                that are not allowed are not read.
            over: what the columns stand for.

        Raises:
            ValueError: NaN or +inf at an allowed token, a wrong shape, or fewer columns than tokens.
            TypeError: another dtype.
            RuntimeError: if the search is done.

        Example:
            >>> search = BeamSearch(SidTrie.build([[3], [5]]), batch_size=1, num_beams=2)
            >>> search.step(np.array([[-2.0, -1.0]]), over="candidates")
            >>> search.tokens
            array([[[5],
                    [3]]])

        Source: DESIGN "exact beam search"; the kernel is rust/beam.rs.
        """
        if self.done:
            raise RuntimeError("`step` has nothing left to extend; the search is done, call `result`")
        scores = self._checked(scores, over)
        totals = np.zeros(self._nodes.shape, scores.dtype) if self._scores is None else self._scores
        kernel = _KERNELS[scores.dtype]
        self._parents, tokens, self._nodes, self._scores, logprobs, self._live = kernel(
            self.trie._inner, self._nodes, totals, scores, self.num_beams, over == "candidates"
        )
        self._levels.append((tokens, self._parents, logprobs))

    def result(self) -> BeamResult:
        """Return the finished beams.

        Returns:
            The tokens, scores and items of the K best SIDs per row of the batch.

        Raises:
            RuntimeError: if the search is not done.

        Example:
            >>> search = BeamSearch(SidTrie.build([[3], [5]]), batch_size=1, num_beams=3)
            >>> search.step(np.log(np.full((1, 6), 0.5)))
            >>> search.result().items
            array([[ 0,  1, -1]])

        Source: DESIGN "items" and "padding".
        """
        if not self.done or self._scores is None:
            raise RuntimeError("`result` needs a search that is done; call `step` until `done`")
        items = self.trie._inner.lowest_items(self._nodes.ravel()).reshape(self._nodes.shape)
        length = self.trie.depth
        return BeamResult(self._trace(0, -1, length), self._scores, self._trace(2, 0, length), items)

    def _checked(self, scores: NDArray[Any], over: str) -> NDArray[Any]:
        if over not in ("vocabulary", "candidates"):
            raise ValueError(f'`over` must be "vocabulary" or "candidates", got {over!r}')
        scores = np.asarray(scores)
        expected = _KERNELS if self._scores is None else (self._scores.dtype,)
        if scores.dtype not in expected:
            allowed = " or ".join(str(dtype) for dtype in expected)
            raise TypeError(f"`scores` must be {allowed}, got {scores.dtype}; convert with .astype")
        if scores.ndim != 2 or len(scores) != self.num_rows:
            raise ValueError(f"`scores` must have shape ({self.num_rows}, columns), got {scores.shape}")
        return np.ascontiguousarray(scores)

    def _trace(self, field: Literal[0, 2], padding: int, length: int) -> NDArray[Any]:
        """Follow every beam back to the root and collect a field of its levels: (B, width, length)."""
        rows = np.arange(self.batch_size)[:, None]
        beams = np.broadcast_to(np.arange(self.width), self._nodes.shape)
        dtype = np.int64 if self._scores is None or field == 0 else self._scores.dtype
        path = np.full((*self._nodes.shape, length), padding, dtype)
        for depth in reversed(range(self.depth)):
            path[..., depth] = self._levels[depth][field][rows, beams]
            beams = self._levels[depth][1][rows, beams]
        path[self._nodes < 0] = padding  # a dead beam has no path: parent -1 led to a neighbour's
        return path


def beam_search(
    trie: SidTrie,
    step_fn: Callable[[NDArray[np.int64]], NDArray[np.floating[Any]]],
    *,
    num_beams: int,
    batch_size: int = 1,
) -> BeamResult:
    """Search a trie for the semantic IDs of highest probability.

    score(sid) = sum over l of log p(sid[l] | sid[:l]), exact top K at every depth

    Args:
        trie: the catalogue; no SID may be a prefix of another.
        step_fn: takes the tokens so far, (num_rows, depth) int64, and returns log-probabilities of the
            next one, (num_rows, V) float32 or float64. Rows come batch by batch, beams best first:
            batch_size rows at first, then batch_size * num_beams.
        num_beams: K, the number of prefixes kept at every depth.
        batch_size: B, the number of independent searches.

    Returns:
        The K best SIDs per row of the batch, with scores and items.

    Raises:
        ValueError: as `BeamSearch` and `BeamSearch.step`.

    Example:
        >>> trie = SidTrie.build([[0, 1], [1, 0], [1, 1]])
        >>> result = beam_search(trie, lambda tokens: np.log([[0.25, 0.75]] * len(tokens)), num_beams=2)
        >>> result.tokens
        array([[[1, 1],
                [1, 0]]])

    Source: DESIGN "exact beam search".
    """
    search = BeamSearch(trie, batch_size, num_beams)
    while not search.done:
        search.step(step_fn(search.tokens.reshape(search.num_rows, search.depth)))
    return search.result()
