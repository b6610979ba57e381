"""What a confidence is good for: to re-rank, to reject users, to cut lists, each measured beside its controls.

::

    valid rows ─┬─ half A chooses: λ, aggregate, signal, recalibration   (`choose`)
                └─ half B tests the thresholds that carry a promise      (`abstention.risk_threshold`)
    test rows ──── measured once                                         (`rerank`, `reject`, `cut`)

A *source* is what says how sure the model is: its confidence, or the control that needs no training, the beam's
likelihood exp(score). Each decision has a second control that knows nothing: random. All of it is at item level: right
is the next item itself, not another with its semantic ID.

Rejecting and cutting are one computation. Lists, or entries of lists, stand in the order of their signal; what is kept
of equal ones counts as its mean over all orders; and a constant signal is the random control. Intervals are percentiles
over resampled users, and the same users are drawn for every source, so that differences are paired.

A temporal split has several rows of one user, and they are alike. So users are dealt to the halves, and drawn for the
intervals, with all of their rows; and where rows must be independent, in a promise, each user lends one (`once`).

Source: UGR (arXiv 2602.11719) §4.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from ugr_fast.arrays import Array, to_numpy
from ugr_fast.files import read_arrays, write_arrays
from ugr_fast.recalibration import Method, Recalibrator

Floats: TypeAlias = npt.NDArray[np.float64]
Source: TypeAlias = Literal["confidence", "likelihood"]
Band: TypeAlias = dict[str, list[float]]
Statistic: TypeAlias = Callable[[Floats], Floats]
Ints: TypeAlias = npt.NDArray[np.int64]
How: TypeAlias = dict[str, Any]
"""Of a ranking: "step" and "model", a digest, of the checkpoint, "readout", a digest, where it has one, "num_beams",
"normalize", "precision", and "rows", a digest of them."""

DEPTH = 10
"""Entries of the lists that are measured: metrics are NDCG@10 and HR@10."""
WEIGHTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Candidates for λ; the paper has 0.5, and the last all but ignore the likelihood."""
RERANKED = "reranked"
COVERAGE = tuple(k / 20 for k in range(1, 21))
MEASURES = ("ndcg@10", "hr@10")
LENGTHS = (0.5, *(float(k) for k in range(1, DEPTH + 1)))
RESAMPLES, FEWEST_RESAMPLES, MOST_DRAWS = 1000, 200, 20_000_000


@dataclass(frozen=True)
class Outcomes:
    """The lists of N rows, what was said of each entry, and which entry came true."""

    scores: Array
    """(N, K) log-likelihood of each entry's semantic ID, best first; -inf where absent."""
    confidence: Array
    """(N, K) the model's own, in [0, 1]; NaN where absent."""
    rank: npt.NDArray[np.int64]
    """(N,) place of the next item in the list, from 0; -1 where it is absent."""
    user: Ints | None = None
    """(N,) whose list it is; None: each is of a user of its own."""

    def __len__(self) -> int:
        return len(self.rank)

    @property
    def users(self) -> Ints:
        """(N,) whose list it is."""
        return np.arange(len(self)) if self.user is None else self.user

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(N, K) the entry exists."""
        there: npt.NDArray[np.bool_] = np.isfinite(self.scores)
        return there

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """(N, K) the entry is the next item."""
        found: npt.NDArray[np.bool_] = np.arange(self.scores.shape[1]) == self.rank[:, None]
        return found

    def said(self, source: Source) -> Floats:
        """(N, K) what `source` says of each entry, in [0, 1]; 0 where absent."""
        values = self.confidence if source == "confidence" else np.exp(np.minimum(self.scores.astype(np.float64), 0))
        said: Floats = np.where(self.present, values, 0).astype(np.float64)
        return said

    def take(self, rows: Any) -> Outcomes:
        """The lists at `rows`."""
        return Outcomes(self.scores[rows], self.confidence[rows], self.rank[rows], self.users[rows])

    def to_arrays(self) -> dict[str, Array]:
        """As plain arrays, to save."""
        rank, user = self.rank.astype(np.int32), self.users.astype(np.int64)
        return {"scores": self.scores, "confidence": self.confidence, "rank": rank, "user": user}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Outcomes:
        """What `to_arrays` took apart.

        Raises:
            ValueError: types or shapes that do not fit, a rank of no entry, a confidence outside [0, 1].
        """
        scores, confidence, rank, user = (to_numpy(arrays[name]) for name in ("scores", "confidence", "rank", "user"))
        of = scores.shape[:1]
        if scores.ndim != 2 or confidence.shape != scores.shape or not rank.shape == user.shape == of:
            shapes = scores.shape, confidence.shape, rank.shape, user.shape
            raise ValueError(f"`arrays` must be scores and confidence (N, K), rank and user (N,), got {shapes}")
        kinds = "".join(array.dtype.kind for array in (scores, confidence, rank, user))
        if kinds != "ffii":
            raise ValueError(f"`arrays` must be two of real and two of whole numbers, got kinds {kinds}")
        read = cls(scores, confidence, rank.astype(np.int64), user.astype(np.int64))
        read.check()
        return read

    def check(self) -> None:
        """Refuse what no evaluation finds.

        Raises:
            ValueError: a rank of no entry, a confidence outside [0, 1].
        """
        rank, there = self.rank, self.present
        if ((rank < -1) | (rank >= there.shape[1])).any():
            raise ValueError(f"`rank` must lie in [-1, {there.shape[1]}), got {rank.min()} to {rank.max()}")
        found = rank >= 0
        if not there[found, rank[found]].all():
            raise ValueError("`rank` must be that of an entry that is there")
        said = self.confidence[there]
        if not ((said >= 0) & (said <= 1)).all():
            raise ValueError("`confidence` must lie in [0, 1] where an entry is there")


def write_outcomes(path: Path, outcomes: Outcomes, how: How) -> None:
    """Write outcomes, and how the lists were made."""
    write_arrays(path, outcomes.to_arrays(), how)


def read_outcomes(path: Path) -> tuple[How, Outcomes]:
    """Read what `write_outcomes` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is truncated or altered.
    """
    return read_arrays(path, Outcomes.from_arrays, "ugr-fast eval")


def ndcg(rank: npt.NDArray[np.int64]) -> Floats:
    """(N,) NDCG@10 of one relevant item at `rank` from 0, -1 where absent."""
    found: Floats = np.where((rank >= 0) & (rank < DEPTH), 1 / np.log2(np.maximum(rank, 0) + 2.0), 0.0)
    return found


def hit(rank: npt.NDArray[np.int64], k: int = DEPTH) -> Floats:
    """(N,) 1 where the next item is among the first k."""
    return ((rank >= 0) & (rank < k)).astype(np.float64)


def halves(user: Ints) -> tuple[Ints, Ints]:
    """Rows that choose and rows that test: users are dealt in a fixed random order, with all of their rows.

    Args:
        user: (N,) whose each row is.

    Raises:
        ValueError: fewer than two users.

    Example:
        >>> choosing, testing = halves(np.array([7, 7, 8, 9]))
        >>> sorted([*choosing.tolist(), *testing.tolist()]), bool((0 in choosing) == (1 in choosing))
        ([0, 1, 2, 3], True)
    """
    names, of = np.unique(user, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"`user` must name at least 2, one to choose and one to test, got {len(names)}")
    chooses = np.random.default_rng(0).permutation(len(names)).argsort()[of] < len(names) // 2
    return np.flatnonzero(chooses), np.flatnonzero(~chooses)


def once(user: Ints) -> Ints:
    """One row of each user, drawn in a fixed random order: rows that are as independent as the users.

    Example:
        >>> len(once(np.array([7, 7, 8, 9, 9])))
        3
    """
    order = np.random.default_rng(0).permutation(len(user))
    return np.sort(order[np.unique(user[order], return_index=True)[1]])


# ---- users, by how sure the model is of their lists


AGGREGATES: dict[str, Callable[[Floats], Floats]] = {
    "top": lambda said: said[:, 0],
    "max": lambda said: said.max(1),
    "mean": lambda said: said.mean(1),
    "gap": lambda said: said[:, 0] - (said[:, 1] if said.shape[1] > 1 else 0),
}
"""Of (N, <= 10) what is said of a user's list, one number: of the first entry, the largest, the mean of all, or how far
the first lies above the second."""


def certainty(outcomes: Outcomes, source: Source, aggregate: str) -> Floats:
    """(N,) how sure `source` is of each user's first ten, one number: see `AGGREGATES`.

    Example:
        >>> told = Outcomes(np.log([[0.5, 0.25]]), np.array([[0.2, 0.8]]), np.array([0]))
        >>> [certainty(told, "confidence", name).round(2).tolist() for name in AGGREGATES]
        [[0.2], [0.8], [0.5], [-0.6]]
    """
    return AGGREGATES[aggregate](outcomes.said(source)[:, :DEPTH])


# ---- choices


@dataclass(frozen=True)
class Choices:
    """What was chosen on valid rows, and with it what a confidence of the model means."""

    signal: Source
    """The source to go by: by it, the users kept have the higher NDCG@10 over all coverages."""
    aggregate: dict[str, str]
    """Of each source, how a user's certainty is read off a list."""
    weight: dict[str, float]
    """Of confidence and random, λ of exp(score) + λ c."""
    user: dict[str, Recalibrator]
    """Of each source, what is said of the first entry -> probability that it is the next item; as RERANKED, what the
    confidence says of the first entry of lists that were re-ranked by it."""
    candidate: dict[str, Recalibrator]
    """Of each source, what is said of any entry -> probability that it is the next item."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        levels = {
            level: {
                source: {name: a.tolist() for name, a in fitted.to_arrays().items()} for source, fitted in of.items()
            }
            for level, of in (("user", self.user), ("candidate", self.candidate))
        }
        return {"signal": self.signal, "aggregate": self.aggregate, "weight": self.weight, **levels}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Choices:
        """What `to_json` made.

        Raises:
            ValueError: values that it does not make.
        """
        try:
            levels = {
                level: {source: Recalibrator.from_arrays(arrays) for source, arrays in values[level].items()}
                for level in ("user", "candidate")
            }
            known = cls(values["signal"], dict(values["aggregate"]), dict(values["weight"]), **levels)
            known.user[RERANKED]
            well = known.signal in known.user.keys() & known.candidate.keys() & known.aggregate.keys()
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"`values` must be what `Choices.to_json` returns, got {sorted(values)}") from error
        if not well or not set(known.aggregate.values()) <= AGGREGATES.keys():
            raise ValueError(f"`values` must name sources and aggregates, got {known.signal!r}, {known.aggregate}")
        return known


def choose(outcomes: Outcomes, *, trained: bool = True, method: Method = "beta") -> Choices:
    """Choose on rows that measure nothing afterwards.

    Args:
        outcomes: of the choosing rows, at least one.
        trained: whether the model's confidence was trained; if not, the signal is the likelihood.
        method: of recalibration.

    Returns:
        The choices. λ and aggregates are those of the highest NDCG@10, the smaller λ and the earlier aggregate where
        several have it.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> scores = -np.sort(rng.exponential(2, size=(400, 5)), axis=1)
        >>> rank = np.where(rng.random(400) < np.exp(scores[:, 0]), 0, -1)
        >>> choose(Outcomes(scores, rng.random((400, 5)), rank)).signal
        'likelihood'
    """
    value = ndcg(outcomes.rank)
    aggregate, area = {}, {}
    for source in get_args(Source):
        areas = {name: _area(certainty(outcomes, source, name), value) for name in AGGREGATES}
        aggregate[source] = max(areas, key=areas.__getitem__)
        area[source] = areas[aggregate[source]]
    drawn = {"confidence": outcomes.said("confidence"), "random": _noise(outcomes)}
    weight = {}
    for name, said in drawn.items():
        reached = np.array([ndcg(reranked(outcomes, said, each)).mean() for each in WEIGHTS])
        weight[name] = WEIGHTS[int(np.argmax(reached > reached.max() - 1e-9))]  # sums in another order are no gain
    there = outcomes.present
    fits: dict[str, dict[str, Recalibrator]] = {}
    for level, entries in (("user", np.s_[:, :1]), ("candidate", np.s_[:])):
        shown = there[entries]
        true = _smoothed(outcomes.hits[entries][shown])
        fits[level] = {
            source: Recalibrator(method).fit(outcomes.said(source)[entries][shown], true) for source in get_args(Source)
        }
    signal: Source = "confidence" if trained and area["confidence"] > area["likelihood"] else "likelihood"
    first = reordered(outcomes, drawn["confidence"], weight["confidence"])[:, :1]
    said, hits, shown = (
        np.take_along_axis(drawn["confidence"], first, 1),
        *(np.take_along_axis(x, first, 1) for x in (outcomes.hits, there)),
    )
    fits["user"][RERANKED] = Recalibrator(method).fit(said[shown], _smoothed(hits[shown]))
    return Choices(signal, aggregate, weight, **fits)


def _area(signal: Floats, value: Floats) -> float:
    """Mean over coverages of the mean `value` of those kept."""
    ones = np.ones(len(value))
    return float((Kept(signal, value[None])(ones, np.array(COVERAGE) * len(value)) / np.array(COVERAGE)).mean())


def _smoothed(correct: npt.NDArray[np.bool_]) -> Floats:
    """Targets (hits + 1) / (hits + 2) and 1 / (misses + 2): a few rows without a hit do not show that none will come.

    Source: Platt (1999).
    """
    hits, misses = int(correct.sum()), int((~correct).sum())
    targets: Floats = np.where(correct, (hits + 1) / (hits + 2), 1 / (misses + 2))
    return targets


def _noise(outcomes: Outcomes) -> Floats:
    return np.random.default_rng(0).random(outcomes.scores.shape)


# ---- what stands in order, is kept from the top


class Kept:
    """Total value of the first entries by signal, for any amount of them: ties count as their mean over all orders.

    Args:
        signal: (E,) the higher, the earlier.
        values: (M, E) what each entry is worth, in M ways.

    Example:
        >>> Kept(np.array([0.9, 0.5, 0.5]), np.array([[1.0, 1.0, 0.0]]))(np.ones(3), np.array([1, 2, 3]))
        array([[1. , 1.5, 2. ]])
    """

    def __init__(self, signal: Floats, values: Floats) -> None:
        self.order = np.argsort(-signal, kind="stable")
        self.values = values[:, self.order]
        falls = np.diff(signal[self.order]) != 0
        self.ends = np.append(np.flatnonzero(falls), len(signal) - 1)

    def __call__(self, weight: Floats, amount: Floats) -> Floats:
        """(M, C) value of the first `amount` (C,) entries, where entry i stands `weight[i]` times in the order."""
        w = weight[self.order]
        count = np.append(0, np.cumsum(w)[self.ends])
        totals = [np.append(0, np.cumsum(w * value)[self.ends]) for value in self.values]
        return np.array([np.interp(amount, count, total) for total in totals])


# ---- intervals


class Bootstrap:
    """Percentile intervals over resampled users; every statistic sees the same draws.

    Args:
        user: (N,) whose each row is; as many users are drawn as there are, each with all of their rows.
        level: share of the resampled values within.
        seed: of the draws.
    """

    def __init__(self, user: Ints, level: float = 0.95, seed: int = 0) -> None:
        self.user, self.level, self.seed = np.unique(user, return_inverse=True)[1], level, seed
        self.resamples = max(FEWEST_RESAMPLES, min(RESAMPLES, MOST_DRAWS // max(len(user), 1)))

    def bands(self, statistic: Statistic) -> Floats:
        """(3, M, C): `statistic` of the users themselves, and the lower and upper ends of its interval.

        Args:
            statistic: (M, C) of how often each row counts, (N,).
        """
        rng, n = np.random.default_rng(self.seed), int(self.user.max()) + 1
        drawn = [
            statistic(np.bincount(rng.integers(n, size=n), minlength=n)[self.user].astype(np.float64))
            for _ in range(self.resamples)
        ]
        ends = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        return np.stack([statistic(np.ones(len(self.user))), *ends])

    def means(self, values: Floats) -> list[list[float]]:
        """Of each of (M, N) values: the mean, and the ends of its interval.

        Example:
            >>> Bootstrap(np.arange(4)).means(np.array([[1, 1, 1, 1], [2, 2, 2, 2]]))
            [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
        """
        found: list[list[float]] = self.bands(lambda count: (values @ count / count.sum())[:, None])[..., 0].T.tolist()
        return found


def _bands(names: Sequence[str], found: Floats) -> dict[str, Band]:
    return {
        name: {"value": value.tolist(), "low": low.tolist(), "high": high.tolist()}
        for name, value, low, high in zip(names, *found, strict=True)
    }


# ---- the three decisions


def reranked(outcomes: Outcomes, said: Floats, weight: float) -> npt.NDArray[np.int64]:
    """(N,) rank of the next item when lists stand by exp(score) + weight * said; equal entries keep their order.

    Example:
        >>> told = Outcomes(np.log([[0.5, 0.3]]), np.array([[0.1, 0.9]]), np.array([1]))
        >>> [reranked(told, told.said("confidence"), weight).tolist() for weight in (0, 0.2, 0.5)]
        [[1], [1], [0]]
    """
    value = _worth(outcomes, said, weight)
    place = np.maximum(outcomes.rank, 0)[:, None]
    own = np.take_along_axis(value, place, 1)  # (N, 1)
    before = (value > own) | ((value == own) & (np.arange(value.shape[1]) < place))
    ranks: npt.NDArray[np.int64] = np.where(outcomes.rank < 0, -1, before.sum(1))
    return ranks


def reordered(outcomes: Outcomes, said: Floats, weight: float) -> Ints:
    """(N, K) the entries in the order of which `reranked` tells the rank of one, absent ones last.

    Example:
        >>> told = Outcomes(np.log([[0.5, 0.3]]), np.array([[0.1, 0.9]]), np.array([1]))
        >>> reordered(told, told.said("confidence"), 0.5).tolist()
        [[1, 0]]
    """
    order: Ints = np.argsort(-_worth(outcomes, said, weight), axis=1, kind="stable")
    return order


def _worth(outcomes: Outcomes, said: Floats, weight: float) -> Floats:
    worth: Floats = np.where(outcomes.present, outcomes.said("likelihood") + weight * said, -np.inf)
    return worth


def rerank(outcomes: Outcomes, choices: Choices) -> dict[str, Any]:
    """Re-rank lists by exp(score) + λ c; the likelihood alone is λ = 0, and random confidences are the other control.

    Args:
        outcomes: of users who chose nothing.
        choices: what was chosen for them.

    Returns:
        "weights"; of each source "ndcg@10" and "hr@10", each [value, low, high]; of confidence and random the chosen
        "weight", the "gain" in NDCG@10 over the likelihood, paired, and NDCG@10 "by_weight".
    """
    users, plain = Bootstrap(outcomes.users), np.stack([ndcg(outcomes.rank), hit(outcomes.rank)])
    found: dict[str, Any] = {"weights": [*WEIGHTS]}
    found["likelihood"] = dict(zip(MEASURES, users.means(plain), strict=True))
    for name, said in (("confidence", outcomes.said("confidence")), ("random", _noise(outcomes))):
        rank = reranked(outcomes, said, choices.weight[name])
        columns = np.stack([ndcg(rank), hit(rank), ndcg(rank) - plain[0]])
        found[name] = {
            "weight": choices.weight[name],
            **dict(zip((*MEASURES, "gain"), users.means(columns), strict=True)),
            "by_weight": [float(ndcg(reranked(outcomes, said, each)).mean()) for each in WEIGHTS],
        }
    return found


def reject(outcomes: Outcomes, choices: Choices) -> dict[str, Any]:
    """Answer the most certain users only: NDCG@10 and HR@10 of those answered, by the share answered.

    Args:
        outcomes: of users who chose nothing.
        choices: what was chosen for them.

    Returns:
        "coverage"; of each source its "aggregate", "ndcg@10" and "hr@10" with intervals; the same of "random".
    """
    users = Bootstrap(outcomes.users)
    values = np.stack([ndcg(outcomes.rank), hit(outcomes.rank)])
    found: dict[str, Any] = {"coverage": [*COVERAGE]}
    for source in get_args(Source):
        kept = Kept(certainty(outcomes, source, choices.aggregate[source]), values)
        found[source] = {"aggregate": choices.aggregate[source], **_mean_kept(kept, users)}
    return {**found, "random": _mean_kept(Kept(np.zeros(len(outcomes)), values), users)}


def _mean_kept(kept: Kept, users: Bootstrap) -> dict[str, Band]:
    def found(count: Floats) -> Floats:
        amount: Floats = np.array(COVERAGE) * count.sum()
        means: Floats = kept(count, amount) / amount
        return means

    return _bands(MEASURES, users.bands(found))


def cut(outcomes: Outcomes) -> dict[str, Any]:
    """Keep the entries of the first ten that are said to be likely: precision and recall, by mean length of a list.

    One threshold holds for all users. Beside the two sources: the same length for everybody ("fixed"), and entries
    that are kept blindly ("random").

    Args:
        outcomes: of users.

    Returns:
        "length"; of each way "precision", hits among the entries kept, and "recall", users whose next item is kept.
    """
    there, users = outcomes.present[:, :DEPTH], Bootstrap(outcomes.users)
    row, place = np.nonzero(there)
    hits = outcomes.hits[:, :DEPTH][there].astype(np.float64)[None]
    signals = {
        **{source: outcomes.said(source)[:, :DEPTH][there] for source in get_args(Source)},
        "fixed": -place.astype(np.float64),
        "random": np.zeros(len(row)),
    }
    ways = {
        name: _bands(("precision", "recall"), users.bands(_cut(Kept(signal, hits), row)))
        for name, signal in signals.items()
    }
    return {"length": [*LENGTHS], **ways}


def _cut(kept: Kept, row: Ints) -> Statistic:
    def found(count: Floats) -> Floats:
        weight, num_lists = count[row], count.sum()
        amount = np.minimum(np.array(LENGTHS) * num_lists, weight.sum())  # lists may be shorter
        hits = kept(weight, amount)[0]
        return np.stack([hits / amount, hits / num_lists])

    return found
