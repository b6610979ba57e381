"""Constrained search over the semantic IDs of a trie, one step at a time, on the CPU with numpy.

Exact beams, stochastic beams (sampling without replacement), plain samples and groups of diverse beams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from ugr_fast import _core
from ugr_fast.arrays import at_least
from ugr_fast.trie import Filter, SidTrie

if TYPE_CHECKING:
    from typing_extensions import Unpack

Method: TypeAlias = Literal["beam", "stochastic", "sample"]
Normalizer: TypeAlias = Literal["full", "allowed"] | tuple[int, int]
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_MAX_SIZE = 2**32 - 1
BUSY = "`step` must be called by one thread at a time, and another is in it; give each thread a search of its own"
"""What a search refuses a second thread with. To wait for its turn would not help: its scores are for other beams."""


class Settings(TypedDict, total=False):
    """The keyword arguments of `BeamSearch`."""

    filter: Filter | None
    method: Method
    normalize: Normalizer | None
    temperature: float
    length_penalty: float
    num_groups: int
    diversity: float
    seed: int
    first_row: int
    num_threads: int


@dataclass(frozen=True)
class BeamResult:
    """The semantic IDs found for each row of a batch, best first; padding where there are fewer than K.

    Attributes:
        tokens: (B, K, L) int64, right-padded with -1; L is the depth of the trie.
        scores: (B, K) sums of log-probabilities, over length ** length_penalty; -inf for padding.
        logprobs: (B, K, L) log-probability of each token; 0 beside padding.
        items: (B, K) int64, the lowest item id of each SID that the filter leaves; -1 for padding.
        perturbed: (B, K) perturbed log-probabilities of a stochastic search, else None.
        threshold: (B,) the largest perturbed log-probability that was not enough, -inf if all SIDs were
            found; None but for a stochastic search.
        order: (B, K) where, among the beams of the last step, each one stood.
    """

    tokens: NDArray[np.int64]
    scores: NDArray[np.floating[Any]]
    logprobs: NDArray[np.floating[Any]]
    items: NDArray[np.int64]
    perturbed: NDArray[np.floating[Any]] | None = None
    threshold: NDArray[np.floating[Any]] | None = None
    order: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64), repr=False)
    _nodes: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64), repr=False)
    _trie: SidTrie | None = field(default=None, repr=False)
    _filter: Filter | None = field(default=None, repr=False)

    @property
    def inclusion(self) -> NDArray[np.float64] | None:
        """The probability, given the threshold, that a SID is among the found ones: (B, K), 0 for padding.

        q_i = P(log p_i + Gumbel > kappa) = 1 - exp(-exp(log p_i - kappa))

        The sum over found SIDs of p_i / q_i * f(i) is an unbiased estimate of the expectation of f.

        Source: Kool, van Hoof and Welling, Stochastic Beams and Where to Find Them (2019), section 4.2.
        """
        if self.threshold is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # a threshold of -inf: all were found, the rest is padding
            rate = np.exp(self.scores.astype(np.float64) - np.float64(self.threshold)[:, None])
        return np.where(self.items < 0, 0.0, -np.expm1(-np.nan_to_num(rate, nan=np.inf)))

    def expand_items(self, num_items: int) -> NDArray[np.int64]:
        """Rank items: all items of a SID that the filter leaves, ascending, at the rank of their SID.

        Args:
            num_items: M, items per row.

        Returns:
            (B, M) int64 item ids, -1 where fewer than M were found.

        Example:
            >>> trie = SidTrie.build([[3], [5], [3]])
            >>> found = beam_search(trie, lambda tokens: np.log(np.full((1, 6), 0.5)), num_beams=2)
            >>> found.expand_items(4)
            array([[ 0,  2,  1, -1]])

        Source: docs/trie.md.
        """
        if self._trie is None:
            raise RuntimeError("`expand_items` needs a result that a search has made")
        at_least(num_items, "num_items", 1)
        return self._trie._inner.expand(self._nodes, num_items, None if self._filter is None else self._filter._inner)


class BeamSearch:
    """Constrained search: at every depth the best K over all allowed expansions of the K prefixes before.

    A child scores its parent's score plus the token's log-probability, added in the dtype of `scores`.
    Order: score descending, then parent ascending, then token ascending. -inf forbids a token. A beam
    that ends early (SIDs of different lengths) is carried on unchanged and competes with its score.

    A search is one thread's. Tries and filters are everyone's, at once, as are arrays that nobody writes to meanwhile.

    Args:
        trie: the catalogue; no SID may be a prefix of another.
        batch_size: B, the number of independent searches.
        num_beams: K, the number of prefixes kept by each.
        filter: what each row may not be answered with, from `trie.filter`.
        method: "beam", the best; "stochastic", K different SIDs drawn without replacement from the policy, in
            exactly the law of drawing one after the other; "sample", K independent draws. The policy is
            normalised over the children that the filter leaves.
        normalize: None if the scores are log-probabilities, else what makes them so: "full", a softmax over
            all columns; (low, high), over these columns; "allowed", over the children that the filter leaves.
            Draws need "allowed", and take it by default.
        temperature: scores are divided by it before they are normalised, 1e-30 .. 1e30.
        length_penalty: beams are ranked, at every depth, by score / length ** length_penalty, where a beam that
            ended early keeps its length.
        num_groups: groups of K / num_groups beams that choose one after the other at every depth; none finds a
            SID that an earlier one has.
        diversity: what a candidate is ranked lower for every beam of the earlier groups that chose the same
            token at this depth, 0 .. 1e20; finished beams that are carried on count as having chosen the same.
            Scores stay as they are.
        seed: of the draws, 0 .. 2**64 - 1; give each request its own. The same seed, trie, filter, scores and
            position in the batch give the same result.
        first_row: where the batch stands in a larger one, 0 .. 2**31 - 1: its rows draw what they would draw there.
        num_threads: threads that share the rows of the batch; the result does not depend on it.

    Raises:
        ValueError: a trie that is not prefix-free, a filter of another trie or batch, a setting out of range,
            or settings that exclude one another.

    Example:
        >>> trie = SidTrie.build([[0, 1], [1, 0], [1, 1]])
        >>> search = BeamSearch(trie, batch_size=1, num_beams=2)
        >>> while not search.done:
        ...     search.step(np.log(np.full((search.num_rows, 2), 0.5)))
        >>> search.result().items
        array([[0, 1]])

    Source: docs/trie.md; Kool et al. (arXiv 1903.06059), stochastic beams; Vijayakumar et al.
        (arXiv 1610.02424), groups. The kernel is rust/beam.rs.
    """

    def __init__(
        self,
        trie: SidTrie,
        batch_size: int,
        num_beams: int,
        *,
        filter: Filter | None = None,
        method: Method = "beam",
        normalize: Normalizer | None = None,
        temperature: float = 1.0,
        length_penalty: float = 0.0,
        num_groups: int = 1,
        diversity: float = 0.0,
        seed: int = 0,
        first_row: int = 0,
        num_threads: int = 1,
    ) -> None:
        if not trie.prefix_free:
            raise ValueError("`trie` must have no SID that is a prefix of another; build it with `end=`")
        sizes = {"batch_size": batch_size, "num_beams": num_beams, "num_groups": num_groups, "num_threads": num_threads}
        for name, size in sizes.items():
            if at_least(size, name, 1) > _MAX_SIZE:
                raise ValueError(f"`{name}` must be at most {_MAX_SIZE}, got {size}")
        self.trie, self.batch_size, self.num_beams = trie, batch_size, num_beams
        self.filter, self.method, self.length_penalty = filter, method, length_penalty
        self.normalize: Normalizer | None = "allowed" if normalize is None and method != "beam" else normalize
        self._temperature, self._num_threads = temperature, num_threads
        self._seed, self._first_row = seed, first_row
        self._num_groups, self._diversity = num_groups, diversity
        check_filter(filter, trie, batch_size)
        self._filter_inner = None if filter is None else filter._inner
        self._check_settings()
        self._turn = RLock()  # so that a thread comes back after an interrupt, which may keep it from letting go
        self._rule: tuple[int, _core.StepRule] | None = None
        self._nodes = np.zeros((batch_size, 1), np.int64)
        self._live = np.ones((batch_size, 1), np.bool_)
        self._done = False
        self._parents = np.zeros((batch_size, 1), np.int64)
        self._totals: NDArray[Any] | None = None
        self._keys: NDArray[Any] | None = None
        self._levels: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]] = []

    def _check_settings(self) -> None:
        drawn = self.method in ("stochastic", "sample")
        steepest = 60 / math.log(max(self.trie.depth, 1) + 1)  # keeps length ** length_penalty well inside float32
        rules = [
            ("method", self.method, drawn or self.method == "beam", 'be "beam", "stochastic" or "sample"'),
            (
                "normalize",
                self.normalize,
                is_normalizer(self.normalize),
                'be None, "full", "allowed" or (low, high) with 0 <= low < high',
            ),
            ("normalize", self.normalize, not drawn or self.normalize == "allowed", 'be "allowed" for draws'),
            ("temperature", self._temperature, 1e-30 <= self._temperature <= 1e30, "lie in 1e-30 .. 1e30"),
            (
                "temperature",
                self._temperature,
                self._temperature == 1 or self.normalize is not None,
                "be 1 for log-probabilities; give `normalize` as well",
            ),
            (
                "length_penalty",
                self.length_penalty,
                abs(self.length_penalty) <= steepest,
                f"lie in -{steepest:.0f} .. {steepest:.0f} for SIDs of {self.trie.depth} tokens",
            ),
            ("length_penalty", self.length_penalty, not drawn or self.length_penalty == 0, "be 0 for draws"),
            ("diversity", self._diversity, 0 <= self._diversity <= 1e20, "lie in 0 .. 1e20"),
            (
                "num_groups",
                self._num_groups,
                self.num_beams % self._num_groups == 0 and not (drawn and self._num_groups > 1),
                f"divide `num_beams` {self.num_beams}, and be 1 for draws",
            ),
            ("seed", self._seed, 0 <= self._seed < 2**64, "lie in 0 .. 2**64 - 1"),
            ("first_row", self._first_row, 0 <= self._first_row < 2**31, "lie in 0 .. 2**31 - 1"),
        ]
        for name, value, holds, rule in rules:
            if not holds:
                raise ValueError(f"`{name}` must {rule}, got {value!r}")

    def _root_keys(self) -> NDArray[np.float64]:
        """What the root is ranked by. In a stochastic search a Gumbel variable, the largest of all SIDs'.

        Kool et al. take 0 for it. That draws the same SIDs, but thresholds would then depend on the largest
        being 0, and the estimate with `inclusion` would be biased: of two equally likely SIDs, K = 1, the
        estimate of 1 would have the mean -sqrt(e) / 2 * log(1 - 1 / sqrt(e)) = 0.769.
        """
        if self.method != "stochastic":
            return np.zeros((self.batch_size, 1))
        random = np.random.default_rng(self._seed)
        return random.gumbel(size=(self._first_row + self.batch_size, 1))[self._first_row :]

    @property
    def width(self) -> int:
        """Beams per row of the batch: 1 before the first step, then K, and K + 1 in a stochastic search."""
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
        return self._done

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
        """The tokens that each beam may choose from and the filter leaves, right-padded with -1: (num_rows, C)."""
        return self.trie._inner.allowed(self._nodes, self._filter_inner)

    def step(self, scores: NDArray[np.floating[Any]], over: Literal["vocabulary", "candidates"] = "vocabulary") -> None:
        """Extend every beam by one token.

        Args:
            scores: float32 or float64, (num_rows, V) with a column per token, or (num_rows, C) beside
                `candidates`: log-probabilities or, with `normalize`, logits. -inf forbids. Rows of dead and of
                finished beams are not read, nor columns of tokens that are neither allowed nor normalised over.
                With `normalize` and method "beam", nor is the row of a beam whose own score is at most the
                K-th best (of its group) that the beams before it have been extended to.
            over: what the columns stand for.

        Raises:
            ValueError: NaN or +inf in what is read, a wrong shape, or fewer columns than tokens or `normalize` need;
                the search stays as it was.
            TypeError: another dtype, or not the one of the first step.
            RuntimeError: if the search is done, or another thread is at a step of it.

        Example:
            >>> search = BeamSearch(SidTrie.build([[3], [5]]), batch_size=1, num_beams=2)
            >>> search.step(np.array([[-2.0, -1.0]]), over="candidates")
            >>> search.tokens
            array([[[5],
                    [3]]])

        Source: docs/trie.md; the kernel is rust/beam.rs.
        """
        if not self._turn.acquire(blocking=False):
            raise RuntimeError(BUSY)
        try:
            self._step(scores, over)
        finally:
            self._turn.release()

    def _step(self, scores: NDArray[Any], over: str) -> None:
        if self._done:
            raise RuntimeError("`step` has nothing left to extend; the search is done, call `result`")
        scores = self._checked(scores, over)
        rule = self._rule_for(scores.shape[1])
        kernel: Callable[..., Any] = rule.step_f32 if scores.dtype == np.float32 else rule.step_f64
        totals, keys = self._totals, self._keys
        if totals is None or keys is None:
            totals = np.zeros(self._nodes.shape, scores.dtype)
            keys = self._root_keys().astype(scores.dtype)
        self._parents, tokens, self._nodes, self._totals, self._keys, logprobs, self._live, any_live = kernel(
            self.trie._inner,
            self._filter_inner,
            self._nodes,
            totals,
            keys,
            scores,
            len(self._levels),
            over == "candidates",
            float(self.depth + 1) ** -self.length_penalty,
        )
        self._done = not any_live
        self._levels.append((tokens, self._parents, logprobs))

    def _rule_for(self, num_columns: int) -> _core.StepRule:
        """The rule of the steps; "full" depends on how many columns there are."""
        if self._rule is not None and self._rule[0] == num_columns:
            return self._rule[1]
        columns = self.normalize if isinstance(self.normalize, tuple) else None
        rule = _core.StepRule(
            self.num_beams + (self.method == "stochastic"),
            (0, num_columns) if self.normalize == "full" else columns,
            self.normalize == "allowed",
            1 / self._temperature,
            None if self.method == "beam" else (self._seed, self._first_row),
            self.method == "stochastic",
            self._num_groups,
            self._diversity,
            self._num_threads,
        )
        self._rule = (num_columns, rule)
        return rule

    def result(self) -> BeamResult:
        """Return the finished beams.

        Returns:
            The tokens, scores and items of the K SIDs of each row of the batch, by descending score.

        Raises:
            RuntimeError: if the search is not done.

        Example:
            >>> search = BeamSearch(SidTrie.build([[3], [5]]), batch_size=1, num_beams=3)
            >>> search.step(np.log(np.full((1, 6), 0.5)))
            >>> search.result().items
            array([[ 0,  1, -1]])

        Source: docs/trie.md.
        """
        if not self.done or self._totals is None or self._keys is None:
            raise RuntimeError("`result` needs a search that is done; call `step` until `done`")
        width, length = self.num_beams, max(self.trie.depth, self.depth)  # deeper only in a file that nobody checked
        stochastic = self.method == "stochastic"
        scores = self._totals if stochastic else self._keys
        # Beams leave a search best first, but for draws and groups.
        order = np.argsort(-scores[:, :width], axis=1, kind="stable")
        rows = np.arange(self.batch_size)[:, None]
        nodes = np.ascontiguousarray(self._nodes[rows, order])
        return BeamResult(
            tokens=self._trace(0, -1, length)[rows, order],
            scores=scores[rows, order],
            logprobs=self._trace(2, 0, length)[rows, order],
            items=self.trie._inner.lowest_items(nodes, self._filter_inner),
            perturbed=self._keys[rows, order] if stochastic else None,
            threshold=self._keys[:, width] if stochastic else None,
            order=order,
            _nodes=nodes,
            _trie=self.trie,
            _filter=self.filter,
        )

    def _checked(self, scores: NDArray[Any], over: str) -> NDArray[Any]:
        check_over(over, self.normalize)
        scores = np.asarray(scores)
        expected = _DTYPES if self._totals is None else (self._totals.dtype,)
        if scores.dtype not in expected:
            allowed = " or ".join(str(dtype) for dtype in expected)
            raise TypeError(f"`scores` must be {allowed}, got {scores.dtype}; convert with .astype")
        if scores.ndim != 2 or len(scores) != self.num_rows:
            raise ValueError(f"`scores` must have shape ({self.num_rows}, columns), got {scores.shape}")
        if isinstance(self.normalize, tuple) and scores.shape[1] < self.normalize[1]:
            raise ValueError(f"`scores` must have the columns of `normalize`, {self.normalize}, got {scores.shape[1]}")
        return np.ascontiguousarray(scores)

    def _trace(self, field: Literal[0, 2], padding: int, length: int) -> NDArray[Any]:
        """Follow every beam back to the root and collect a field of its levels: (B, width, length)."""
        rows = np.arange(self.batch_size)[:, None]
        beams = np.broadcast_to(np.arange(self.width), self._nodes.shape)
        dtype = np.int64 if self._totals is None or field == 0 else self._totals.dtype
        path = np.full((*self._nodes.shape, length), padding, dtype)
        for depth in reversed(range(self.depth)):
            path[..., depth] = self._levels[depth][field][rows, beams]
            beams = self._levels[depth][1][rows, beams]
        path[self._nodes < 0] = padding  # a dead beam has no path: parent -1 led to a neighbour's
        return path


def check_filter(filter: Any, trie: Any, batch_size: int) -> None:
    """Refuse a filter, if there is one, that another trie has made or that has other rows than the batch.

    Args:
        filter: a `Filter` or `DeviceFilter`, or None.
        trie: the `SidTrie` or `DeviceTrie` that is searched.
        batch_size: rows of the search.

    Raises:
        ValueError: it is so.
    """
    if filter is None:
        return
    if filter.trie is not trie:
        raise ValueError("`filter` must be made by the trie that is searched; call `filter` of that one")
    if filter.num_rows not in (1, batch_size):
        raise ValueError(f"`filter` must have 1 row or `batch_size` {batch_size}, got {filter.num_rows} rows")


def check_over(over: str, normalize: Normalizer | None) -> None:
    """Refuse columns of candidates where more than these is normalised over.

    Raises:
        ValueError: it is so, or `over` is unknown.
    """
    if over not in ("vocabulary", "candidates"):
        raise ValueError(f'`over` must be "vocabulary" or "candidates", got {over!r}')
    if over == "candidates" and normalize not in (None, "allowed"):
        raise ValueError(
            f'`over` must be "vocabulary" to normalise over more than the allowed tokens, got {over!r}; '
            "or pass log-probabilities"
        )


def is_normalizer(value: object) -> bool:
    """Whether this is None, "full", "allowed" or two ints (low, high) with 0 <= low < high.

    Example:
        >>> is_normalizer("full"), is_normalizer((3, 1))
        (True, False)
    """
    if isinstance(value, tuple):
        whole = all(isinstance(column, int | np.integer) for column in value)
        return whole and len(value) == 2 and 0 <= value[0] < value[1]
    return value is None or (isinstance(value, str) and value in ("full", "allowed"))


def beam_search(
    trie: SidTrie,
    step_fn: Callable[[NDArray[np.int64]], NDArray[np.floating[Any]]],
    *,
    num_beams: int,
    batch_size: int = 1,
    **settings: Unpack[Settings],
) -> BeamResult:
    """Search a trie for the semantic IDs of highest probability.

    score(sid) = sum over l of log p(sid[l] | sid[:l]), exact top K at every depth

    Args:
        trie: the catalogue; no SID may be a prefix of another.
        step_fn: takes the tokens so far, (num_rows, depth) int64 with -1 in rows of finished and dead beams, whose
            scores are not read, and returns log-probabilities of the
            next one, (num_rows, V) float32 or float64; or logits, with `normalize`. Rows come batch by batch,
            beams in order: batch_size rows at first, then batch_size * `BeamSearch.width`.
        num_beams: K, the number of prefixes kept at every depth.
        batch_size: B, the number of independent searches.
        settings: those of `BeamSearch`: filter, method, normalize, temperature, ...

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

    Source: docs/trie.md.
    """
    search = BeamSearch(trie, batch_size, num_beams, **settings)
    while not search.done:
        search.step(step_fn(search.tokens.reshape(search.num_rows, search.depth)))
    return search.result()
