"""What a run's confidence is worth, found by `ugr-fast eval` on valid rows, kept with the run, used to recommend.

::

    RUN/
      confidence.json          how valid was ranked by the best checkpoint, and the choices of one half of its users
      confidence.safetensors   what was said of each entry and which came true, of all valid rows

Any risk can be promised from these two, at any k: the users that chose nothing test its thresholds. They are apart from
outcomes-SPLIT.safetensors, which belongs to eval-SPLIT.json: that may be of another checkpoint or beam width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ugr_fast.abstention import RiskThreshold, risk_threshold
from ugr_fast.configs import EvalConfig, check
from ugr_fast.decisions import (
    RERANKED,
    Choices,
    How,
    Outcomes,
    Source,
    certainty,
    halves,
    hit,
    once,
    read_outcomes,
    write_outcomes,
)
from ugr_fast.files import read_json, write_json

if TYPE_CHECKING:
    from ugr_fast.run import Run

OUTCOMES = "confidence.safetensors"
CHECKPOINT = ("step", "model", "readout")
"""What tells what was evaluated; without a readout, no "readout"."""
SEARCH = ("num_beams", "normalize", "precision")
"""What an evaluation and `recommend` must have in common."""


@dataclass(frozen=True)
class Confidence:
    """The choices made for a run, and the valid rows that may test a promise."""

    how: How
    choices: Choices
    valid: Outcomes
    """Of all valid rows: `decisions.halves` tells which of them made the choices."""

    def user(self, outcomes: Outcomes) -> np.ndarray:
        """(N,) probability that the first entry is the next item: the user level. NaN where there is no entry."""
        signal = self.choices.signal
        found: np.ndarray = self.choices.user[signal](outcomes.said(signal)[:, 0])
        return np.where(outcomes.present[:, 0], found, np.nan)

    def candidate(self, outcomes: Outcomes) -> np.ndarray:
        """(N, K) probability of each entry that it is the next item: the candidate level. NaN where absent."""
        signal = self.choices.signal
        found: np.ndarray = self.choices.candidate[signal](outcomes.said(signal))
        return np.where(outcomes.present, found, np.nan)

    def calibrated(self, outcomes: Outcomes, *, reranked: bool = False) -> np.ndarray:
        """(N, K) probability of each entry that it is the next item, of the first by what was fitted to firsts.

        Args:
            outcomes: of N lists.
            reranked: they stand in the order of the confidence, which then is what all are read off.

        Returns:
            (N, K), NaN where absent.
        """
        source: Source = "confidence" if reranked else self.choices.signal
        said = outcomes.said(source)
        found = self.choices.candidate[source](said)
        found[:, 0] = self.choices.user[RERANKED if reranked else source](said[:, 0])
        return np.where(outcomes.present, found, np.nan)

    def certainty(self, outcomes: Outcomes) -> np.ndarray:
        """(N,) what a threshold on users is compared with."""
        return certainty(outcomes, self.choices.signal, self.choices.aggregate[self.choices.signal])

    def promise(self, max_risk: float, k: int, delta: float = 0.1) -> RiskThreshold:
        """Return the threshold on `certainty` that keeps 1 - hit@k at or below `max_risk` among those answered.

        With probability at least 1 - delta over the valid users, and for users like those: see
        `abstention.risk_threshold`. It needs independent rows, so each user that tests lends one.

        Raises:
            ValueError: `max_risk` or `delta` outside (0, 1), a `k` that the lists do not have.
        """
        width = self.valid.scores.shape[1]
        if not 1 <= k <= width:
            raise ValueError(f"`risk_at` must lie in 1..{width}, the length of the lists evaluated, got {k}")
        tested = self.valid.take(halves(self.valid.users)[1])
        tested = tested.take(once(tested.users))
        return risk_threshold(self.certainty(tested), hit(tested.rank, k) > 0, max_risk, delta)

    def save(self, run: Run) -> None:
        """Write what `load` reads."""
        write_outcomes(run.folder / OUTCOMES, self.valid, self.how)
        write_json(run.folder / "confidence.json", {"how": self.how, "choices": self.choices.to_json()})

    @classmethod
    def load(cls, run: Run, checkpoint: How | None = None) -> Confidence:
        """Read what `ugr-fast eval` found of the best checkpoint.

        Args:
            run: that was evaluated.
            checkpoint: `Run.checkpoint_of` it, where that is known: to find it reads all weights.

        Raises:
            FileNotFoundError: the run was not evaluated, or another checkpoint was, or it with another readout; the
                message names the command.
            ValueError: an unreadable file.
        """
        command = f"ugr-fast eval --run {run.folder} --data {run.config['settings'].get('data', 'DATA')}"
        path = run.folder / "confidence.json"
        found, checkpoint = read_json(path, command), checkpoint or run.checkpoint_of()
        try:
            how, choices = found["how"], Choices.from_json(found["choices"])
            saved, valid = read_outcomes(run.folder / OUTCOMES)
            if valid.scores.shape[1] != how["num_beams"]:
                raise ValueError(
                    f"`num_beams` must be {valid.scores.shape[1]}, as of its lists, got {how['num_beams']}"
                )
            fits = saved == how and all(how.get(name) == checkpoint.get(name) for name in CHECKPOINT)
            check(EvalConfig(run.folder, run.folder, **{name: how[name] for name in SEARCH}))
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise ValueError(f"{path} is altered ({error}); make it again with `{command}`") from error
        if not fits:
            step = checkpoint["step"]
            raise FileNotFoundError(f"{path} is not of step {step}, the best one, as it is; `{command}` makes it anew")
        return cls(how, choices, valid)
