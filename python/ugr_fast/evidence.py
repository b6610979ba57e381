"""What the training split and the items' texts say of a candidate, beside the model: what a readout may weigh too.

A generative model of semantic IDs sees the codes of an item and no more; the counts that a last-item Markov chain ranks
by, and the texts that a cosine ranks by, know something that it does not. `readout` fits how much each is worth.

A candidate is a semantic ID. Where several items share one, what is said of it is of all of them: counts add up, and
its text is the mean of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ugr_fast.baselines import Markov, popularity, unit_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from ugr_fast.data import Sequences

Ints = NDArray[np.int64]
COUNTED = ("followed", "popular", "repeated")
COMPARED = ("like last", "like all", "like nearest")
_ARRAYS = ("followers", "counts", "offsets", "popularity", "same")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Counts of the training split and, where there are embeddings, what items are like.

    Attributes:
        followers: (P,) int64 what followed item 0, item 1, ..., ascending, named by `same`.
        counts: (P,) int64, how often.
        offsets: (num_items + 1,) int64 bounds of each item's followers.
        popularity: (num_items,) int64, how often any item of its semantic ID occurs.
        same: (num_items,) int64, the lowest item that has the semantic ID of each.
        unit: (num_items, dim) float16 embeddings of length 1, equal where semantic IDs are; None for none.

    Example:
        >>> from ugr_fast.data import Sequences
        >>> train = Sequences(np.array([0, 3, 5]), np.array([0, 1, 2, 0, 1]), np.array([7, 8]))
        >>> Evidence.build(train, num_items=4)([[2, 0]], np.array([[1, 2]])).round(2)
        array([[[1.1 , 1.1 , 0.  ],
                [0.  , 0.69, 1.  ]]])
    """

    followers: Ints
    counts: Ints
    offsets: Ints
    popularity: Ints
    same: Ints
    unit: NDArray[np.float16] | None = None

    @classmethod
    def build(
        cls,
        train: Sequences,
        num_items: int,
        embeddings: NDArray[np.floating] | None = None,
        codes: Ints | None = None,
    ) -> Evidence:
        """Count what followed what.

        Args:
            train: sequences of the training split.
            num_items: size of the catalogue.
            embeddings: (num_items, dim), row i for item i.
            codes: (num_items, L) semantic IDs; None where each item has one of its own.

        Raises:
            ValueError: a training item outside the catalogue, embeddings or codes of another number of items, or
                embeddings that are not finite.
        """
        for name, width, rows in (("embeddings", "dim", embeddings), ("codes", "L", codes)):
            if rows is not None and (rows.ndim != 2 or len(rows) != num_items):
                raise ValueError(f"`{name}` must be ({num_items}, {width}), got {rows.shape}")
        same = np.arange(num_items) if codes is None else _first_alike(codes)
        popular, markov = np.bincount(same, popularity(train.items, num_items), num_items), Markov(train, num_items)
        pairs = np.repeat(np.arange(num_items), np.diff(markov.offsets)) * num_items + same[markov.following]
        pairs, place = np.unique(pairs, return_inverse=True)
        counts = np.bincount(place, markov.counts, len(pairs)).astype(np.int64)
        offsets = np.searchsorted(pairs, np.arange(num_items + 1) * num_items)
        unit = None if embeddings is None else _means(unit_rows(embeddings), same).astype(np.float16)
        known = cls(pairs % num_items, counts, offsets, popular.astype(np.int64)[same], same, unit)
        known._check()
        return known

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features, in their order."""
        return COUNTED if self.unit is None else COUNTED + COMPARED

    def __call__(self, histories: Sequence[Sequence[int] | Ints], items: Ints) -> NDArray[np.float64]:
        """Return what is said of each candidate.

        Args:
            histories: B non-empty lists of items, oldest first.
            items: (B, K) candidates, −1 where absent.

        Returns:
            (B, K, F): log(1 + how often it followed the last item), log(1 + how often it occurs), whether it is in the
            history; with embeddings its cosine to the last item, the mean of those to all of the history, and the
            highest. 0 where absent.

        Raises:
            ValueError: an empty history, or what is no item.
        """
        there, known = items >= 0, self.same[self._known(np.maximum(items, 0), "items")]
        longest = max(map(len, histories), default=1)
        past = np.full((len(histories), longest), -1, np.int64)
        for row, history in enumerate(histories):
            if not len(history):
                raise ValueError(f"`histories` must each name at least one item, and that of row {row} is empty")
            past[row, longest - len(history) :] = self._known(np.asarray(history), "histories")  # the last stands last
        repeated = (known[:, :, None] == np.where(past < 0, -1, self.same[past])[:, None, :]).any(2)
        columns = [np.log1p(self._followed(past[:, -1:], known)), np.log1p(self.popularity[known]), repeated]
        if self.unit is not None:
            alike = self._alike(self.unit, known, past)  # (B, K, H), NaN before a history begins
            columns += [alike[:, :, -1], np.nanmean(alike, 2), np.nanmax(alike, 2)]
        found: NDArray[np.float64] = np.where(there[:, :, None], np.stack(columns, 2).astype(np.float64), 0.0)
        return found

    def grown(self, codes: Ints) -> Evidence:
        """Return the same for a catalogue that has gained items since.

        Of a new item is said what is said of its semantic ID; where that is new as well, nothing is known of it.

        Args:
            codes: (num_items, L) semantic IDs or their tokens, those of the items known so far first.

        Raises:
            ValueError: fewer items than are known.

        Example:
            >>> from ugr_fast.data import Sequences
            >>> known = Evidence.build(Sequences(np.array([0, 2]), np.array([0, 1]), np.array([7])), num_items=2)
            >>> known.grown(np.array([[5], [6], [6], [9]]))([[0]], np.array([[1, 2, 3]])).round(2)
            array([[[0.69, 0.69, 0.  ],
                    [0.69, 0.69, 0.  ],
                    [0.  , 0.  , 0.  ]]])
        """
        known = len(self.same)
        if len(codes) < known:
            raise ValueError(f"`codes` must be of {known} items or more, got {len(codes)}")
        first = [np.flatnonzero((codes[: item + 1] == codes[item]).all(1))[0] for item in range(known, len(codes))]
        like = np.array(first, np.int64)  # often of an item that was known; else the new one itself
        old, place = like < known, np.minimum(like, known - 1)
        same = np.concatenate([self.same, np.where(old, self.same[place], like)])
        popular = np.concatenate([self.popularity, np.where(old, self.popularity[place], 0)])
        offsets = np.concatenate([self.offsets, np.full(len(like), self.offsets[-1])])
        unit = None
        if self.unit is not None:
            unit = np.concatenate([self.unit, np.where(old[:, None], self.unit[place], np.float16(0))])
        return Evidence(self.followers, self.counts, offsets, popular, same, unit)

    def _known(self, items: Ints, name: str) -> Ints:
        """Return items that there are."""
        if items.size and not 0 <= items.min() <= items.max() < len(self.same):
            raise ValueError(f"`{name}` must lie in 0..{len(self.same) - 1}, got {items.min()}..{items.max()}")
        return items

    def _followed(self, last: Ints, items: Ints) -> Ints:
        """How often each of `items` (B, K), named by `same`, followed `last` (B, 1)."""
        if not len(self.followers):
            return np.zeros_like(items)
        wanted = last * len(self.popularity) + items
        place = np.minimum(np.searchsorted(self._pairs, wanted), len(self._pairs) - 1)
        found: Ints = np.where(self._pairs[place] == wanted, self.counts[place], 0)
        return found

    @cached_property
    def _pairs(self) -> Ints:
        """(P,) number of an item and its follower, ascending."""
        num_items = len(self.popularity)
        return np.repeat(np.arange(num_items), np.diff(self.offsets)) * num_items + self.followers

    @staticmethod
    def _alike(unit: NDArray[np.float16], items: Ints, past: Ints) -> NDArray[np.float32]:
        """(B, K, H) cosines of candidates and what is in the history, NaN where that is nothing."""
        one, other = unit[items].astype(np.float32), unit[np.maximum(past, 0)].astype(np.float32)
        found: NDArray[np.float32] = np.where(past[:, None, :] >= 0, one @ other.transpose(0, 2, 1), np.float32(np.nan))
        return found

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """As arrays that `from_arrays` takes."""
        found: dict[str, NDArray[np.generic]] = {name: getattr(self, name) for name in _ARRAYS}
        return found if self.unit is None else {**found, "unit": self.unit}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> Evidence:
        """What `to_arrays` made.

        Raises:
            ValueError: arrays that it does not make.
        """
        missing = [name for name in _ARRAYS if name not in arrays]
        if missing:
            raise ValueError(f"`arrays` must hold {', '.join(_ARRAYS)}, got no {', '.join(missing)}")
        found = {name: np.asarray(arrays[name]) for name in _ARRAYS}
        if any(array.ndim != 1 or array.dtype != np.int64 for array in found.values()):
            kinds = {name: f"{array.dtype}{array.shape}" for name, array in found.items()}
            raise ValueError(f"`arrays` must be rows of int64, got {kinds}")
        known = cls(**found, unit=np.asarray(arrays["unit"]) if "unit" in arrays else None)
        known._check()
        return known

    def _check(self) -> None:
        num_items, spans = len(self.popularity), np.diff(self.offsets)
        if len(self.offsets) != num_items + 1 or self.offsets[0] or self.offsets[-1] != len(self.followers):
            raise ValueError(f"`offsets` must be {num_items + 1} bounds from 0 to {len(self.followers)}")
        inside = (self.followers >= 0) & (self.followers < num_items)
        if (spans < 0).any() or len(self.counts) != len(self.followers) or not inside.all():
            raise ValueError(f"`followers` must be items in 0..{num_items - 1}, with a count each, between bounds")
        if (np.diff(self._pairs) <= 0).any() or (self.counts < 1).any() or (self.popularity < 0).any():
            raise ValueError("`followers` must ascend, `counts` be 1 or more and `popularity` 0 or more")
        lowest = len(self.same) == num_items and ((self.same >= 0) & (self.same <= np.arange(num_items))).all()
        if not lowest or (self.same[self.same] != self.same).any():
            raise ValueError(f"`same` must name one of {num_items} items for each, the lowest of its semantic ID")
        if self.unit is not None:
            shape = self.unit.shape
            if self.unit.dtype != np.float16 or len(shape) != 2 or shape[0] != num_items:
                raise ValueError(f"`unit` must be float16 of ({num_items}, dim), got {self.unit.dtype} of {shape}")
            if not np.isfinite(self.unit).all():
                raise ValueError("`unit` must be finite")


def _first_alike(codes: Ints) -> Ints:
    """(num_items,) the lowest item with the codes of each."""
    _, first, group = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    found: Ints = first.astype(np.int64)[group.reshape(-1)]
    return found


def _means(unit: NDArray[np.float32], same: Ints) -> NDArray[np.float32]:
    """(num_items, dim) mean direction of the rows that have one semantic ID."""
    if (same == np.arange(len(same))).all():
        return unit
    total = np.zeros_like(unit)
    np.add.at(total, same, unit)
    return unit_rows(total)[same]
