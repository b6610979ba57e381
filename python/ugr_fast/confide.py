"""Teach a run how sure to be, from rows that training has not seen: a readout of its states, fitted in seconds.

The half of the valid users that makes the choices of `ugr-fast eval` (`decisions.halves`) is ranked once by the best
checkpoint; the other half, which tests promises, and the test split are not looked at. What is fitted, and why not on
training rows, stands in `readout`. The policy stays as it is: the same lists, the same scores; only what is said of
their entries changes. `eval` and `recommend` use the readout wherever it is of their checkpoint.

Several processes rank a share of the rows each; all make the same fit, and the main one writes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ugr_fast import data, decisions, metrics, sids
from ugr_fast.configs import check
from ugr_fast.evidence import Evidence
from ugr_fast.model import autocast
from ugr_fast.progress import bar, say
from ugr_fast.readout import LIKELIHOOD_ALONE, fit
from ugr_fast.recommend import hits_at_sid, rank
from ugr_fast.run import Run, choose_device, set_threads
from ugr_fast.team import ALONE, Team

if TYPE_CHECKING:
    from ugr_fast.configs import ConfideConfig
    from ugr_fast.model import Catalogue
    from ugr_fast.readout import Fitted


@dataclass(frozen=True)
class Candidates:
    """What a readout is fitted to: n candidates of all rows, those of a row one after another.

    Attributes:
        states: (n, D) at the last token of each semantic ID; with evidence (n, D + F), its features last.
        logprobs: (n,) of each semantic ID.
        hits: (n,) bool, it is the one that came next.
        row: (n,) of which row.
        first: (n,) bool, it stands at the top of the list.
    """

    states: torch.Tensor
    logprobs: torch.Tensor
    hits: torch.Tensor
    row: np.ndarray
    first: np.ndarray


def confide(config: ConfideConfig) -> dict[str, Any]:
    """Fit a readout as `config` says, keep it with the run, and return what cross-validation found.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: run and data do not fit together, too few users with a hit, or a setting is out of range.
    """
    check(config)
    set_threads(config.threads)
    device, run = choose_device(config.device), Run.open(config.run)
    dataset = data.load(config.data)
    run.check_items(dataset.ids)
    rows, evidence, team = _rows(run, dataset), _evidence(config, run, dataset), Team.join(device)
    checkpoint = run.checkpoint_of(readout=False)  # once: a training that goes on may find a better one
    model = run.load_model(device, checkpoint["step"])
    found = candidates(model, run.load_catalogue(), rows, config, team, evidence)
    with bar("fitting the readout", 1) as advance:
        fitted = fit(found.states, found.logprobs, found.hits, rows.user[found.row])
        advance(1)
    if team.is_main:
        readout = dataclasses.replace(fitted.readout, evidence=evidence)
        run.save_readout(readout, {**checkpoint, "normalize": config.normalize, "precision": config.precision})
    team.wait()  # whoever goes on, in a script of several commands, finds the readout there
    say(
        f"{config.run.name}: readout fitted on {len(rows)} valid rows, penalty {fitted.strength:g}; on users left out, "
        f"log loss {fitted.log_loss[fitted.strength]:.5f}, of the likelihood {fitted.log_loss[LIKELIHOOD_ALONE]:.5f}"
    )
    return {"rows": len(rows), **_summary(found, fitted)}


def _rows(run: Run, dataset: data.Dataset) -> data.Rows:
    """The valid rows that choose, with histories as long as in training."""
    rows = dataset.valid.latest(run.history)
    if len(np.unique(rows.user)) < 2:
        raise ValueError("`data` must have 2 valid users or more, to choose and to measure; prepare it anew")
    return rows.take(decisions.halves(rows.user)[0])


def _evidence(config: ConfideConfig, run: Run, dataset: data.Dataset) -> Evidence | None:
    """Return what is weighed beside the states."""
    if not config.evidence:
        return None
    embeddings = None if config.embeddings is None else sids.load_embeddings(config.embeddings, dataset.num_items)
    return Evidence.build(data.sequences(dataset.train), dataset.num_items, embeddings, run.load_codes())


def _summary(found: Candidates, fitted: Fitted) -> dict[str, Any]:
    """What cross-validation found: of all candidates the log loss, of the first of each list the AURC."""
    top, hits = found.first, found.hits.numpy()
    said = {"confidence": fitted.held_out.numpy(), "likelihood": found.logprobs.double().exp().numpy()}
    return {
        "candidates": len(hits),
        "hits": int(hits.sum()),
        "strength": f"{fitted.strength:g}",
        "slope": fitted.readout.slope,
        "bias": fitted.readout.bias,
        "log_loss": {f"{strength:g}": value for strength, value in fitted.log_loss.items()},
        "aurc": {name: metrics.Ranks(values[top], hits[top]).aurc() for name, values in said.items()},
    }


def candidates(
    model: Any,
    catalogue: Catalogue,
    rows: data.Rows,
    config: ConfideConfig,
    team: Team = ALONE,
    evidence: Evidence | None = None,
) -> Candidates:
    """Rank the catalogue for every row, and keep the states that the search ended in.

    Args:
        model: causal language model in eval mode.
        catalogue: items, tokens and trie.
        rows: histories and targets.
        config: the settings.
        team: processes that call this together with the same arguments, and rank a share of the rows each.
        evidence: what is weighed beside the states.

    Returns:
        The candidates of all rows, on every process, on the CPU.
    """
    with autocast(next(model.parameters()).device, config.precision):
        ranking = rank(
            model,
            catalogue,
            [rows.history(row) for row in range(len(rows))],
            num_beams=config.num_beams,
            normalize=config.normalize,
            batch_size=config.batch_size,
            description="ranking valid rows",
            team=team,
            states=True,
            evidence=evidence,
        )
    assert ranking.states is not None
    there = (ranking.tokens >= 0).any(2)  # (N, K)
    row, place = np.nonzero(there)
    return Candidates(
        states=torch.from_numpy(ranking.states[there]),
        logprobs=torch.from_numpy(ranking.scores[there]),
        hits=torch.from_numpy(hits_at_sid(ranking, catalogue, rows.item)[there]),
        row=row,
        first=place == 0,
    )
