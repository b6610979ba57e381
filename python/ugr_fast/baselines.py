"""Baselines that take a second and that a generative recommender has to beat.

All rank the whole catalogue, items of the history included, and break ties by ascending item.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ugr_fast.data import Rows, Sequences

Ints = NDArray[np.int64]


def popularity(train_items: Ints, num_items: int) -> Ints:
    """How often each item occurs.

    Args:
        train_items: (E,) items of the training split, 0..num_items - 1.
        num_items: size of the catalogue.

    Returns:
        (num_items,) counts.

    Raises:
        ValueError: an item is outside the catalogue.

    Example:
        >>> popularity(np.array([2, 0, 2]), num_items=4)
        array([1, 0, 2, 0])
    """
    if len(train_items) and not 0 <= train_items.min() <= train_items.max() < num_items:
        wrong = train_items[(train_items < 0) | (train_items >= num_items)][0]
        raise ValueError(f"`train_items` must lie in 0..{num_items - 1}, got {wrong}; raise `num_items`")
    counts: Ints = np.bincount(train_items, minlength=num_items)
    return counts


def unit_rows(embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, dim) rows scaled to length 1, so that products are cosines, whatever their length; a row of zeros stays.

    Example:
        >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
        array([[0.6, 0.8],
               [0. , 0. ]], dtype=float32)
    """
    wide = embeddings.astype(np.float32)
    largest = np.abs(wide).max(1, initial=0, keepdims=True)
    wide = np.ldexp(wide, -np.frexp(largest)[1])  # by a power of two, so that no square overflows or vanishes
    unit: NDArray[np.float32] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit


class Popularity:
    """Recommends the most frequent items of the training split to everybody.

    Example:
        >>> train = Sequences(np.array([0, 3]), np.array([2, 0, 2]), np.array([0]))
        >>> Popularity(train, num_items=4).rank(Rows.of([[1]], [2]), k=3)
        array([[2, 0, 1]])
    """

    def __init__(self, train: Sequences, num_items: int) -> None:
        self.order: Ints = np.argsort(-popularity(train.items, num_items), kind="stable")
        """(num_items,) the catalogue, most popular first."""

    def rank(self, rows: Rows, k: int) -> Ints:
        """(N, k) items for N rows, best first."""
        _check_k(k, len(self.order))
        return np.tile(self.order[:k], (len(rows), 1))


class Markov:
    """Recommends what followed the last item most often in training, then the most popular of the rest.

    score(b | last a) = (n(a, b), n(b)), compared in this order

    Example:
        >>> train = Sequences(np.array([0, 5]), np.array([2, 0, 2, 3, 2]), np.array([0]))
        >>> Markov(train, num_items=4).rank(Rows.of([[1, 2], [1]], [0, 0]), k=3)
        array([[0, 3, 2],
               [2, 0, 3]])
    """

    def __init__(self, train: Sequences, num_items: int) -> None:
        self.popular: Ints = Popularity(train, num_items).order
        place = np.argsort(self.popular)  # an item's place in the popularity order
        inside = np.ones(max(len(train.items) - 1, 0), dtype=bool)
        inside[train.offsets[1:-1] - 1] = False  # from the end of a sequence to the start of the next
        pairs = train.items[:-1] * num_items + train.items[1:]
        pairs, counts = np.unique(pairs[inside], return_counts=True)
        last, following = pairs // num_items, pairs % num_items
        order = np.lexsort((place[following], -counts, last))
        self.following: Ints = following[order]
        """Followers of item 0, of item 1, ..., each best first."""
        self.counts: Ints = counts[order]
        """How often each of them followed."""
        self.offsets: Ints = np.searchsorted(last, np.arange(num_items + 1))
        """(num_items + 1,) bounds of each item's followers."""

    def rank(self, rows: Rows, k: int) -> Ints:
        """(N, k) items for N rows, best first."""
        _check_k(k, len(self.popular))
        last, index = np.unique(rows.items[rows.offsets[1:] - 1], return_inverse=True)
        ranked: Ints = np.stack([self._after(item, k) for item in last.tolist()])[index]
        return ranked

    def _after(self, item: int, k: int) -> Ints:
        """The k best items after `item`."""
        followers = self.following[self.offsets[item] : self.offsets[item + 1]][:k]
        popular = self.popular[: k + len(followers)]
        return np.concatenate([followers, popular[~np.isin(popular, followers)]])[:k]


class CosineMarkov:
    """Adds the similarity of item embeddings to last-item Markov, where there are embeddings.

    score(b | last a) = n(a, b) / (sum_b n(a, b) + shrink) + cosine * cos(e_a, e_b) + popular * n(b) / max n

    The defaults were chosen on the validation split of Amazon Industrial_and_Scientific.

    Args:
        train: sequences of the training split.
        embeddings: (num_items, dim) floating-point, row i for item i.
        shrink: as in the formula, at least 0.
        cosine: likewise.
        popular: likewise.

    Raises:
        ValueError: a training item has no embedding.

    Example:
        >>> train = Sequences(np.array([0, 2]), np.array([0, 1]), np.array([0]))
        >>> CosineMarkov(train, np.array([[1.0, 0], [0, 1], [1, 1]])).rank(Rows.of([[1]], [2]), k=3)
        array([[1, 2, 0]])
    """

    def __init__(
        self,
        train: Sequences,
        embeddings: NDArray[np.floating],
        *,
        shrink: float = 5.0,
        cosine: float = 0.25,
        popular: float = 0.1,
    ) -> None:
        self.markov = Markov(train, len(embeddings))
        self.unit: NDArray[np.float32] = unit_rows(embeddings)
        counts = popularity(train.items, len(embeddings))
        self.bias: NDArray[np.float64] = popular * counts / max(int(counts.max()), 1)
        self.shrink, self.cosine = shrink, cosine

    def rank(self, rows: Rows, k: int) -> Ints:
        """(N, k) items for N rows, best first."""
        _check_k(k, len(self.unit))
        last, index = np.unique(rows.items[rows.offsets[1:] - 1], return_inverse=True)
        best = np.empty((len(last), k), dtype=np.int64)
        for start in range(0, len(last), 256):  # not all at once: a block of scores is (256, num_items)
            scores = self.scores(last[start : start + 256])
            best[start : start + 256] = [_top(score, k) for score in scores]
        ranked: Ints = best[index]
        return ranked

    def scores(self, last: Ints) -> NDArray[np.float64]:
        """(M, num_items) score of every item after each of M last items."""
        scores: NDArray[np.float64] = self.bias + self.cosine * (self.unit[last] @ self.unit.T)
        for score, item in zip(scores, last.tolist(), strict=True):
            span = slice(*self.markov.offsets[item : item + 2].tolist())
            counts = self.markov.counts[span]
            score[self.markov.following[span]] += counts / max(counts.sum() + self.shrink, 1e-12)
        return scores


def _top(score: NDArray[np.float64], k: int) -> Ints:
    """Positions of the k highest, ties by position; a full sort would take ten times longer."""
    above = np.flatnonzero(score >= np.partition(score, -k)[-k])
    top: Ints = above[np.argsort(-score[above], kind="stable")[:k]]
    return top


def _check_k(k: int, num_items: int) -> None:
    if not 1 <= k <= num_items:
        raise ValueError(f"`k` must lie in 1..{num_items} (the size of the catalogue), got {k}")
