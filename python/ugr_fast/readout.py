"""A confidence that starts from the likelihood: linear in the state that ends a semantic ID, fitted on held-out rows.

UGR reads a confidence off two tokens, σ(z₊ − z₋): a linear map of the model's state after a suffix that is run on every
candidate. RL teaches it on prompts that fine-tuning has seen, where hits are several times as frequent as among new
users, and has to discover there what the model knows already, how likely it holds the item. A readout takes that as
given, and the state h as it is at the last token of the semantic ID, with no suffix::

    c = σ(slope · logit p + weight · h + bias)        p = exp(score), the model's own probability of the semantic ID

and is fitted by penalised logistic regression to what came true on rows that no training has seen. Without `weight`
it is the likelihood, recalibrated (Platt); so cross-validation can always fall back on that, and h has to earn its
place. The loss is strictly convex, and Newton's method ends where float64 does: no learning rate, no seed, no patience.

What it says of the users that it was fitted to flatters it. So the fits of cross-validation, each of which left a part
of those users out, are kept beside it, and choices that need the same users (λ, recalibration) go by those.

Cost: one search over the rows; then, for n candidates with states of D numbers, some dozens of n · D² products (a
quarter of a minute of one core at 60,000 × 256), and 12 · n · D bytes of memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ugr_fast.configs import ConfideConfig, check
from ugr_fast.evidence import Evidence
from ugr_fast.files import read_arrays, write_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

LIKELIHOOD_ALONE = float("inf")
STRENGTHS = (LIKELIHOOD_ALONE, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Penalties to choose from, strongest first; infinity leaves the recalibrated likelihood."""
FOLDS = 5
SLIGHT = 1e-6  # pull of the slope to 1 and the bias to 0: finite even where the likelihood parts hits from misses
LEAST = 1e-7  # from 0 and from 1: float32 log-probs cannot tell more
VARIES = 1e-6  # spread of a state, in units of its mean, below which it is rounding: float32 cannot tell more
WEAKEST = 1e-9  # penalty: with less, states that are sums of one another would leave the curvature singular
FLAT = 1e-11  # largest slope of the loss where the descent ends
STEPS = 200  # of the descent, which takes about ten
SHORTEST, ROUNDING = 2.0**-20, 1e-13  # of a step; of the loss
BESIDE, APART = "evidence.", "left_out."  # before the names of their arrays
BLOCK = 8192  # rows that are weighted at a time


@dataclass(frozen=True)
class LeftOut:
    """The fits that cross-validation made, and the users that each of them left out.

    Attributes:
        users: (U,) int64, ascending.
        fold: (U,) int64, which fit left them out.
        weight: (FOLDS, D) float64 of each fit, as of a `Readout`.
        slope: (FOLDS,) float64.
        bias: (FOLDS,) float64.
    """

    users: NDArray[np.int64]
    fold: NDArray[np.int64]
    weight: torch.Tensor
    slope: torch.Tensor
    bias: torch.Tensor

    def fold_of(self, users: ArrayLike) -> NDArray[np.int64]:
        """(N,) the fit that left each user out; −1 for a user whom all of them left out.

        Example:
            >>> none = torch.zeros(5, dtype=torch.float64)
            >>> LeftOut(np.array([3, 8]), np.array([4, 0]), none[:, None], none, none).fold_of([8, 5, 3])
            array([ 0, -1,  4])
        """
        asked = np.asarray(users)
        place = np.minimum(np.searchsorted(self.users, asked), len(self.users) - 1)
        found: NDArray[np.int64] = np.where(self.users[place] == asked, self.fold[place], -1)
        return found

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As arrays that `from_arrays` takes."""
        return {name: np.ascontiguousarray(values) for name, values in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike], width: int) -> LeftOut:
        """What `to_arrays` made of fits of `width` weights.

        Raises:
            ValueError: arrays that it does not make.
        """
        shapes = {"weight": (FOLDS, width), "slope": (FOLDS,), "bias": (FOLDS,)}
        try:
            users, fold = (np.asarray(arrays[name]) for name in ("users", "fold"))
            fits = {name: np.array(arrays[name], np.float64) for name in shapes}
        except KeyError as error:
            raise ValueError(f"`arrays` must hold users, fold, weight, slope and bias, got {sorted(arrays)}") from error
        if {name: fit.shape for name, fit in fits.items()} != shapes or not all(map(_finite, fits.values())):
            raise ValueError(f"`arrays` must be finite, of {shapes}, got {[fit.shape for fit in fits.values()]}")
        if users.ndim != 1 or not len(users) or users.shape != fold.shape or {users.dtype, fold.dtype} != {_INT64}:
            raise ValueError(f"`users` and `fold` must be rows of int64, got {users.dtype}{users.shape}, {fold.dtype}")
        if (np.diff(users) <= 0).any() or (fold < 0).any() or (fold >= FOLDS).any():
            raise ValueError(f"`users` must ascend, and `fold` lie in 0..{FOLDS - 1}")
        return cls(users, fold, **{name: torch.from_numpy(fit) for name, fit in fits.items()})


_INT64 = np.dtype(np.int64)


def _finite(array: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(array).all())


@dataclass(frozen=True)
class Readout:
    """A linear map from a candidate's last state and its log-prob to the logit of its confidence.

    Attributes:
        weight: (D,) float64; with `evidence` (D + F,), its features last.
        slope: of the logit of the likelihood.
        bias: of all.
        evidence: what else is said of a candidate; None for nothing.
        left_out: the fits of cross-validation, for the users that this one was fitted to; None without them.
    """

    weight: torch.Tensor
    slope: float
    bias: float
    evidence: Evidence | None = None
    left_out: LeftOut | None = None

    def __call__(
        self, states: torch.Tensor, logprobs: torch.Tensor, fold: NDArray[np.int64] | None = None
    ) -> torch.Tensor:
        """Return the logits of the confidences.

        Args:
            states: (..., D) at the last token of the semantic ID; with `evidence` (..., D + F), its features last.
            logprobs: (...) of the candidates, sums over their tokens.
            fold: (N,) for (N, K, D) states: which fit of `left_out` reads each row, −1 for this one; None for this one.

        Returns:
            (...) float64.

        Raises:
            ValueError: states of another width than those that it was fitted to.

        Example:
            >>> plain = Readout(torch.zeros(2, dtype=torch.float64), slope=1.0, bias=0.0)
            >>> plain(torch.ones(1, 2), torch.tensor([0.25]).log()).sigmoid().round(decimals=4)
            tensor([0.2500], dtype=torch.float64)
        """
        if states.shape[-1] != len(self.weight):
            raise ValueError(
                f"`states` must be (..., {len(self.weight)}), as those that the readout was fitted to, got "
                f"{tuple(states.shape)}; fit it anew with `ugr-fast confide`"
            )
        if fold is None or self.left_out is None:
            anchor = self.slope * likelihood_logit(logprobs) + self.bias
            return anchor + states.to(self.weight.dtype) @ self.weight.to(states.device)
        weight, slope, bias = (values[fold].to(states.device) for values in self._fits(self.left_out))
        anchor = slope[:, None] * likelihood_logit(logprobs) + bias[:, None]
        return anchor + (states.to(weight.dtype) @ weight[:, :, None])[..., 0]

    def _fits(self, left_out: LeftOut) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights, slopes and biases of the fits of cross-validation, and last, which is at −1, its own."""
        own = self.weight[None], *(torch.tensor([value], dtype=torch.float64) for value in (self.slope, self.bias))
        fits = left_out.weight, left_out.slope, left_out.bias
        weight, slope, bias = (torch.cat(both) for both in zip(fits, own, strict=True))
        return weight, slope, bias

    @property
    def digest(self) -> str:
        """16 digits that tell it from another."""
        return hashlib.sha256(b"".join(array.tobytes() for array in self.to_arrays().values())).hexdigest()[:16]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As arrays that `from_arrays` takes."""
        found = {"weight": self.weight.numpy(), "slope": np.array(self.slope), "bias": np.array(self.bias)}
        for before, part in ((BESIDE, self.evidence), (APART, self.left_out)):
            found |= {} if part is None else {f"{before}{name}": array for name, array in part.to_arrays().items()}
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> Readout:
        """What `to_arrays` made.

        Raises:
            ValueError: arrays that it does not make.
        """
        try:
            weight, slope, bias = (np.asarray(arrays[name], np.float64) for name in ("weight", "slope", "bias"))
        except KeyError as error:
            raise ValueError(f"`arrays` must hold weight, slope and bias, got {sorted(arrays)}") from error
        if weight.ndim != 1 or slope.ndim or bias.ndim or not all(map(_finite, (weight, slope, bias))):
            shapes = [array.shape for array in (weight, slope, bias)]
            raise ValueError(f"`arrays` must be finite, of shapes (D,), () and (), got {shapes}")
        beside, apart = (
            {name.removeprefix(before): array for name, array in arrays.items() if name.startswith(before)}
            for before in (BESIDE, APART)
        )
        evidence = Evidence.from_arrays(beside) if beside else None
        left_out = LeftOut.from_arrays(apart, len(weight)) if apart else None
        if evidence is not None and len(weight) < len(evidence.names):
            raise ValueError(f"`arrays` must weigh {', '.join(evidence.names)}, got a weight of {len(weight)}")
        return cls(torch.from_numpy(weight.copy()), float(slope), float(bias), evidence, left_out)


def write_readout(path: Path, readout: Readout, how: Mapping[str, Any]) -> None:
    """Write a readout, what it was fitted to, and beside that its digest as "readout"."""
    write_arrays(path, readout.to_arrays(), {**how, "readout": readout.digest})


def read_readout(path: Path) -> tuple[dict[str, Any], Readout]:
    """Read what `write_readout` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is truncated or altered.
    """
    how, readout = read_arrays(path, Readout.from_arrays, "ugr-fast confide")
    if how.get("readout") != readout.digest:
        reason = "its digest is of another"
        raise ValueError(f"{path} is truncated or altered ({reason}); make it again with `ugr-fast confide`")
    try:
        check(ConfideConfig(path, path, normalize=how["normalize"], precision=how["precision"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is altered ({error}); make it again with `ugr-fast confide`") from error
    return how, readout


class Fitted(NamedTuple):
    """What `fit` found."""

    readout: Readout
    strength: float
    """The penalty that it took."""
    log_loss: dict[float, float]
    """By penalty, of users that were left out of its fit: nats per candidate."""
    held_out: torch.Tensor
    """(n,) confidence of each candidate by the fit that left its user out, at that penalty."""


def likelihood_logit(logprobs: torch.Tensor) -> torch.Tensor:
    """Return log(p / (1 − p)) of log p, in float64, kept off both ends by 1e-7.

    Example:
        >>> likelihood_logit(torch.tensor([0.5, 0.9], dtype=torch.float64).log()).round(decimals=4)
        tensor([0.0000, 2.1972], dtype=torch.float64)
    """
    return torch.logit(logprobs.double().exp(), eps=LEAST)


def fit(
    states: torch.Tensor,
    logprobs: torch.Tensor,
    hits: torch.Tensor,
    users: NDArray[np.int64],
    strengths: Sequence[float] = STRENGTHS,
) -> Fitted:
    """Fit a readout: mean log loss + strength · |weight|², on states in units of their standard deviation.

    The strength is the one with the lowest log loss on users left out, the stronger where several have it; `FOLDS`
    times a part of the users is left out. A state that does not vary gets weight 0.

    Args:
        states: (n, D) at the last token of candidates of rows that training has not seen.
        logprobs: (n,) of the candidates.
        hits: (n,) bool, the candidate came true.
        users: (n,) whose candidate it is; all of one user are left out together.
        strengths: penalties to choose from, 1e-9 or more.

    Returns:
        The readout, its penalty, what cross-validation found.

    Raises:
        ValueError: shapes that disagree, a state or a log-prob that is not finite, candidates that all came true or
            all did not, fewer users with a hit than folds, or a strength below 1e-9.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> states = torch.randn(900, 3, generator=draw, dtype=torch.float64)
        >>> logprobs = torch.rand(900, generator=draw, dtype=torch.float64).log()
        >>> chance = torch.sigmoid(likelihood_logit(logprobs) + 2 * states[:, 0])
        >>> fitted = fit(states, logprobs, torch.rand(900, generator=draw) < chance, np.arange(900))
        >>> fitted.readout.weight.round(decimals=1), round(fitted.readout.slope, 1)
        (tensor([1.9000, 0.0000, 0.1000], dtype=torch.float64), 1.0)
    """
    _check(states, logprobs, hits, users, strengths)
    design, mean, spread = _design(states, logprobs)
    y, order = hits.double(), sorted(strengths, reverse=True)
    fold = torch.from_numpy(_folds(users, hits.numpy()))
    held_out, fits = torch.empty((len(order), len(y)), dtype=torch.float64), []
    for part in range(FOLDS):
        left = fold == part
        fits.append(_path(design, y, ~left, order))
        for row, free in enumerate(fits[-1]):
            held_out[row, left] = (design @ free)[left]
    losses = [binary_cross_entropy_with_logits(logits, y).item() for logits in held_out]
    best = int(np.argmin(losses))
    *_, free = _path(design, y, torch.ones_like(y), order[: best + 1])
    slope, bias, weight = _in_units(torch.stack([free, *(of[best] for of in fits)]), mean, spread)
    names, first = np.unique(users, return_index=True)
    apart = LeftOut(names.astype(np.int64), fold.numpy()[first], weight[1:], slope[1:], bias[1:])
    readout = Readout(weight[0], slope[0].item(), bias[0].item(), left_out=apart)
    return Fitted(readout, order[best], dict(zip(order, losses, strict=True)), held_out[best].sigmoid())


def _in_units(
    free: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slopes (M,), biases (M,) and weights (M, D) of states as they are, from those of standardised ones (M, 2 + D)."""
    weight = free[:, 2:] / spread
    return free[:, 0], free[:, 1] - weight @ mean, weight


def _check(
    states: torch.Tensor,
    logprobs: torch.Tensor,
    hits: torch.Tensor,
    users: NDArray[np.int64],
    strengths: Sequence[float],
) -> None:
    count = len(states)
    if states.ndim != 2 or {logprobs.shape, hits.shape, users.shape} != {(count,)}:
        shapes = [tuple(array.shape) for array in (states, logprobs, hits, users)]
        raise ValueError(f"`states`, `logprobs`, `hits`, `users` must be (n, D), (n,), (n,), (n,), got {shapes}")
    for name, values in (("states", states), ("logprobs", logprobs)):
        if not bool(values.isfinite().all()):
            raise ValueError(f"`{name}` must be finite; leave out absent candidates")
    lucky = len(np.unique(users[hits.numpy()]))
    if lucky < FOLDS or bool(hits.all()):
        raise ValueError(
            f"`hits` must be of {FOLDS} users or more, and not all, got {int(hits.sum())} of {count} candidates, of "
            f"{lucky} users; take more rows"
        )
    if not strengths or not all(strength >= WEAKEST for strength in strengths):
        raise ValueError(f"`strengths` must be {WEAKEST} or more, got {strengths}")


def _folds(users: NDArray[np.int64], hits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) fold of each candidate: those of a user in one, and users with a hit spread evenly."""
    names, place = np.unique(users, return_inverse=True)
    lucky = np.bincount(place, weights=hits, minlength=len(names)) > 0
    order = np.lexsort((np.random.default_rng(0).permutation(len(names)), lucky))
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % FOLDS
    return fold[place]


def _design(states: torch.Tensor, logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What slope, bias and weight are multiplied by (n, 2 + D), and mean and spread (D,) of the states."""
    design = torch.empty((len(states), 2 + states.shape[1]), dtype=torch.float64)
    design[:, 0], design[:, 1], design[:, 2:] = likelihood_logit(logprobs), 1.0, states
    mean, spread = design[:, 2:].mean(0), design[:, 2:].std(0, correction=0)
    spread = torch.where(spread > VARIES * mean.abs(), spread, torch.inf)
    design[:, 2:].sub_(mean).div_(spread)  # in place: it is as large as all the rest
    return design, mean, spread


def _path(
    design: torch.Tensor, y: torch.Tensor, counts: torch.Tensor, strengths: Sequence[float]
) -> list[torch.Tensor]:
    """Fit to the rows that count at each strength, strongest first, each from the one before: slope, bias, weight."""
    share = counts.double() / counts.sum()
    slight = torch.full((2,), SLIGHT, dtype=torch.float64)
    free, found = torch.zeros(design.shape[1], dtype=torch.float64), []
    free[0] = 1.0
    for strength in strengths:
        if strength == LIKELIHOOD_ALONE:
            free = torch.cat([_newton(design[:, :2], y, share, slight, free[:2]), free[2:]])
        else:
            pull = torch.cat([slight, torch.full_like(free[2:], strength)])
            free = _newton(design, y, share, pull, free)
        found.append(free)
    return found


def _newton(
    design: torch.Tensor, y: torch.Tensor, share: torch.Tensor, pull: torch.Tensor, free: torch.Tensor
) -> torch.Tensor:
    """Minimise share · log loss + pull · (free − [1, 0, ...])² from `free`, by Newton's method with shortened steps.

    The curvature is the dear part: it is measured again only where the last one took less than 9/10 off the gradient.
    """
    toward = torch.zeros_like(free)
    toward[0] = 1.0
    logits, before = design @ free, 0.0  # so that the curvature is measured first

    def loss(logits: torch.Tensor, free: torch.Tensor) -> float:
        losses = binary_cross_entropy_with_logits(logits, y, reduction="none")
        return (share @ losses + pull @ (free - toward).square()).item()

    for _ in range(STEPS):
        said = logits.sigmoid()
        gradient = design.T @ (share * (said - y)) + 2 * pull * (free - toward)
        now = gradient.abs().max().item()
        if now < FLAT:
            break
        if now > before / 10:
            root = torch.linalg.cholesky(_curvature(design, share * said * (1 - said)) + (2 * pull).diag())
        step = torch.cholesky_solve(gradient[:, None], root)[:, 0]
        moved, length, most = design @ step, 1.0, loss(logits, free) + ROUNDING
        while length > SHORTEST and loss(logits - length * moved, free - length * step) > most:
            length /= 2
        logits, free, before = logits - length * moved, free - length * step, now
    return free


def _curvature(design: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Σ weight · row rowᵀ, some rows at a time: a weighted copy of all would double the memory."""
    total = design.new_zeros(2 * design.shape[1:])
    for start in range(0, len(design), BLOCK):
        rows = design[start : start + BLOCK]
        total.addmm_(rows.T, rows * weight[start : start + BLOCK, None])
    return total
