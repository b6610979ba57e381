"""What each part of a readout is worth, on valid rows alone: fitted to half of the users, measured on the rest, twice.

    folder=data/industrial
    python benches/paper_evidence.py --run paper/industrial/sft-0 --data $folder --embeddings $folder/embeddings.npy

Prints, means of both ways: the gain in NDCG@10 when lists of 20 are re-ranked with the λ that the fitting half chose,
the AURC of the first item's confidence less that of its likelihood, and the ECE of the former.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timing import say
from ugr_fast import data, decisions, metrics, sids
from ugr_fast.evidence import COMPARED, COUNTED, Evidence
from ugr_fast.readout import fit
from ugr_fast.recommend import Ranking, hits_at_sid, outcomes_of, rank
from ugr_fast.run import Run

BEAMS, FITTED, BINS = 20, 10, 15
"""Entries of a list, entries that are fitted to, bins of the ECE."""
COUNTS, REPEATED = COUNTED[:2], COUNTED[2:]
PARTS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "the state": (True, ()),
    "the state, counts": (True, COUNTS),
    "the state, cosines": (True, COMPARED),
    "the state, counts, cosines": (True, COUNTS + COMPARED),
    "the state, counts, repeated": (True, COUNTS + REPEATED),
    "the state and all evidence": (True, COUNTED + COMPARED),
    "all evidence without the state": (False, COUNTED + COMPARED),
}


def columns(width: int, evidence: Evidence, state: bool, names: tuple[str, ...]) -> list[int]:
    """Return which columns of (state, evidence) a part takes."""
    return [*range(width if state else 0), *(width + evidence.names.index(name) for name in names)]


def measured(
    ranking: Ranking, outcomes: decisions.Outcomes, hits: NDArray[np.bool_], taken: list[int]
) -> tuple[float, float, float]:
    """Return gain, difference in AURC and ECE, means of both ways."""
    assert ranking.states is not None
    halves, found = decisions.halves(outcomes.users), []
    states = torch.from_numpy(ranking.states[..., taken])
    scores = torch.from_numpy(ranking.scores)
    for one, other in (halves, halves[::-1]):
        used = np.zeros(ranking.scores.shape, bool)
        used[one, :FITTED] = np.isfinite(ranking.scores[one, :FITTED])
        users = outcomes.users[np.nonzero(used)[0]]
        readout = fit(states[used], scores[used], torch.from_numpy(hits[used]), users).readout
        said = readout(states, scores).sigmoid().numpy().astype(np.float32)
        told = replace(outcomes, confidence=np.where(outcomes.present, said, np.nan))
        choices, rest = decisions.choose(told.take(one), trained=True), told.take(other)
        gain = decisions.rerank(rest, choices)["confidence"]["gain"][0]
        first = {source: rest.said(source)[:, 0] for source in ("confidence", "likelihood")}
        right = rest.hits[:, 0]
        aurc = {source: metrics.Ranks(values, right).aurc() for source, values in first.items()}
        ece = metrics.calibration(first["confidence"], right, bins=BINS).ece
        found.append((gain, aurc["confidence"] - aurc["likelihood"], ece))
    gain, aurc, ece = np.mean(found, axis=0).tolist()
    return gain, aurc, ece


def main() -> None:
    """Rank the valid rows once, and fit every part to them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run of sft or rl, its semantic IDs all different")
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    parser.add_argument("--embeddings", type=Path, required=True, help=".npy file of item embeddings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run, dataset = Run.open(args.run), data.load(args.data)
    catalogue, rows = run.load_catalogue(), dataset.valid.latest(run.history)
    embeddings = sids.load_embeddings(args.embeddings, dataset.num_items)
    evidence = Evidence.build(data.sequences(dataset.train), dataset.num_items, embeddings)
    histories = [rows.history(row) for row in range(len(rows))]
    model = run.load_model(torch.device("cpu"))
    ranking = rank(model, catalogue, histories, num_beams=BEAMS, states=True, evidence=evidence, description="ranking")
    assert ranking.states is not None
    outcomes, hits = outcomes_of(ranking, catalogue, rows.item, rows.user), hits_at_sid(ranking, catalogue, rows.item)
    width = ranking.states.shape[2] - len(evidence.names)
    say(f"{args.run}: NDCG@10 {decisions.ndcg(outcomes.rank).mean():.4f} of {len(rows)} valid rows as searched")
    print("| weighed | re-ranked, NDCG@10 | AURC, confidence − likelihood | ECE |\n| --- | --- | --- | --- |")
    for name, (state, names) in PARTS.items():
        gain, aurc, ece = measured(ranking, outcomes, hits, columns(width, evidence, state, names))
        print(f"| {name} | {gain:+.4f} | {aurc:+.4f} | {ece:.3f} |", flush=True)


if __name__ == "__main__":
    main()
