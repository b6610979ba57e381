"""What a run's confidence is worth, found by `ugr-fast eval` on valid rows, kept with the run, used to recommend.

::

    RUN/
      confidence.json             how valid was ranked, and the choices of one half of its rows
      outcomes-valid.safetensors  what was said of each entry and which came true, of all of its rows
      outcomes-test.safetensors   the same of the rows that nothing was chosen on

Any risk can be promised from these files, at any k: the rows that chose nothing test its thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ugr_fast.abstention import RiskThreshold, risk_threshold
from ugr_fast.decisions import Choices, How, Outcomes, certainty, halves, hit, read_outcomes, write_outcomes
from ugr_fast.files import read_json, write_json

if TYPE_CHECKING:
    from ugr_fast.run import Run


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

    def certainty(self, outcomes: Outcomes) -> np.ndarray:
        """(N,) what a threshold on users is compared with."""
        return certainty(outcomes, self.choices.signal, self.choices.aggregate[self.choices.signal])

    def promise(self, max_risk: float, k: int, delta: float = 0.1) -> RiskThreshold:
        """Return the threshold on `certainty` that keeps 1 - hit@k at or below `max_risk` among those answered.

        With probability at least 1 - delta over the valid rows, and for users like those: see
        `abstention.risk_threshold`.

        Raises:
            ValueError: `max_risk` or `delta` outside (0, 1), a `k` that the lists do not have.
        """
        width = self.valid.scores.shape[1]
        if not 1 <= k <= width:
            raise ValueError(f"`risk_at` must lie in 1..{width}, the length of the lists evaluated, got {k}")
        tested = self.valid.take(halves(len(self.valid))[1])
        return risk_threshold(self.certainty(tested), hit(tested.rank, k) > 0, max_risk, delta)

    def save(self, run: Run) -> None:
        """Write what `load` reads."""
        write_outcomes(run.folder / "outcomes-valid.safetensors", self.valid, self.how)
        write_json(run.folder / "confidence.json", {"how": self.how, "choices": self.choices.to_json()})

    @classmethod
    def load(cls, run: Run) -> Confidence:
        """Read what `ugr-fast eval` found of the best checkpoint.

        Raises:
            FileNotFoundError: the run was not evaluated, or another checkpoint was; the message names the command.
            ValueError: an unreadable file.
        """
        command = f"ugr-fast eval --run {run.folder} --data {run.config['settings'].get('data', 'DATA')}"
        path = run.folder / "confidence.json"
        found = read_json(path, command)
        try:
            how, choices = found["how"], Choices.from_json(found["choices"])
            saved, valid = read_outcomes(run.folder / "outcomes-valid.safetensors")
            step = int(run.model_folder().parent.name[5:])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{path} is altered ({error}); make it again with `{command}`") from error
        if saved != how or how["step"] != step:
            raise FileNotFoundError(f"{path} is not of step {step}, the best one; `{command}` makes it anew")
        return cls(how, choices, valid)
