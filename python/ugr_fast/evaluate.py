"""Full-ranking evaluation of a run: accuracy at item and SID level, what its confidence is worth, what it is good for.

The *user level* is what is said of the top recommendation, right when that is the next item (hit@1). The *candidate
level* is what is said of every item of every list, and most of them are misses: a constant near 0 looks calibrated
there, so Brier skill against the base rate and AUROC stand beside each ECE. Every number for the confidence stands
beside the same number for the beam's own likelihood, exp(score).

Whatever is chosen (recalibration, λ, how to tell a certain user) is chosen on one half of the valid rows, see
`decisions`; so `--split test` ranks the valid rows too, unless that was done before. The choices are kept in
confidence.json, for `ugr-fast recommend`.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ugr_fast import baselines, data, decisions, metrics, sids
from ugr_fast.confidence import OUTCOMES, SEARCH, Confidence
from ugr_fast.configs import METRIC_DEPTH, check
from ugr_fast.decisions import Bootstrap, Choices, How, Outcomes, Source, read_outcomes, write_outcomes
from ugr_fast.files import write_json
from ugr_fast.model import autocast
from ugr_fast.progress import bar, say
from ugr_fast.recommend import Ranking, outcomes_of, rank, ranking_metrics, ranking_per_row
from ugr_fast.run import READOUT, Run, choose_device, set_threads
from ugr_fast.team import Team

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from ugr_fast.configs import EvalConfig
    from ugr_fast.model import Catalogue
    from ugr_fast.readout import Readout
    from ugr_fast.recalibration import Recalibrator

BINS = 15
NUM_EXAMPLES = 24
CURVE_POINTS = 200
PROMISED_AT = (1, METRIC_DEPTH)  # k of the hit@k that a promise speaks of


@dataclass(frozen=True)
class Job:
    """What the rankings of an evaluation share."""

    config: EvalConfig
    run: Run
    catalogue: Catalogue
    device: torch.device
    team: Team
    checkpoint: How
    """Its "step" and "model", and "readout" where it has one."""
    readout: Readout | None
    """What reads its confidence; the two tokens if None."""

    @cached_property
    def model(self) -> Any:
        """The model of the checkpoint."""
        return self.run.load_model(self.device, self.checkpoint["step"])

    def rows(self, dataset: data.Dataset, split: str) -> data.Rows:
        """The rows of a split, with histories as long as in training."""
        rows: data.Rows = getattr(dataset, split).latest(self.run.history)
        return rows

    def how(self, rows: data.Rows) -> How:
        """What tells the ranking of these rows from another."""
        config, digest = self.config, hashlib.sha256()
        for column in (rows.user, rows.offsets, rows.items, rows.item):
            digest.update(np.ascontiguousarray(column, np.int64).tobytes())
        search = {name: getattr(config, name) for name in SEARCH}
        return {**self.checkpoint, **search, "rows": digest.hexdigest()[:16]}

    def rank(self, rows: data.Rows, split: str) -> Ranking:
        """Rank the catalogue for every row."""
        with autocast(self.device, self.config.precision):
            return rank(
                self.model,
                self.catalogue,
                [rows.history(row) for row in range(len(rows))],
                num_beams=self.config.num_beams,
                normalize=self.config.normalize,
                batch_size=self.config.batch_size,
                description=f"evaluating {self.config.run.name} on {split}",
                team=self.team,
                readout=self.readout,
                users=rows.user if split == "valid" else None,
            )


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Evaluate a run as `config` says, write what was found into it, and return what eval-SPLIT.json says.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: run and data do not fit together, or a setting is out of range.
    """
    check(config)
    set_threads(config.threads)
    dataset = data.load(config.data)
    job = _open(config, dataset)
    embeddings = None if config.embeddings is None else sids.load_embeddings(config.embeddings, dataset.num_items)
    rows = job.rows(dataset, config.split)
    ranking = job.rank(rows, config.split)
    outcomes = outcomes_of(ranking, job.catalogue, rows.item, rows.user)
    known = _confidence(job, dataset, outcomes)
    sequences = data.sequences(dataset.train)
    counts = baselines.popularity(sequences.items, dataset.num_items)
    chose, rest = decisions.halves(known.valid.users)
    measured, apart = (outcomes.take(rest), outcomes.take(chose)) if config.split == "valid" else (outcomes, outcomes)
    found = {
        **_how(job, known, rows),
        "num_rows": len(rows),
        "num_users": len(np.unique(rows.user)),
        "ranking": ranking_metrics(ranking, job.catalogue, rows.item),
        "intervals": intervals(ranking, job.catalogue, rows.item, rows.user),
        "reach": reach(ranking.items, counts),
        **confidence_metrics(measured, known.choices),
        "decisions": {"chosen_on": len(chose), "rows": len(measured), **_decisions(known, measured)},
        "promises": _promises(known, apart, config),
        "baselines": baseline_metrics(sequences, counts, rows, embeddings),
        "examples": examples(ranking, outcomes, known.calibrated(outcomes), dataset, rows),
    }
    if job.team.is_main:
        _write(job, known, outcomes, rows, found)
    job.team.wait()  # before anybody goes on to what reads the files
    ranked = found["ranking"]
    say(
        f"{config.run.name} on {config.split}, {len(rows)} rows, beam width {config.num_beams}: "
        f"HR@1 {ranked['hr@1']:.4f} HR@10 {ranked['hr@10']:.4f} NDCG@10 {ranked['ndcg@10']:.4f} (item level)"
    )
    return found


def _open(config: EvalConfig, dataset: data.Dataset) -> Job:
    """Open the run, which must know the items of the data."""
    device, run = choose_device(config.device), Run.open(config.run)
    run.check_items(dataset.ids)
    for split in ("valid", config.split):
        if len(np.unique(getattr(dataset, split).user)) < 2:
            raise ValueError(f"`data` must have 2 {split} users or more, to choose and to measure; prepare it anew")
    checkpoint = run.checkpoint_of(config.checkpoint, readout=False)  # once: a training may go on
    readout = _readout(run, checkpoint, config)
    how = checkpoint if readout is None else {**checkpoint, "readout": readout.digest}
    return Job(config, run, run.load_catalogue(), device, Team.join(device), how, readout)


def _readout(run: Run, checkpoint: How, config: EvalConfig) -> Readout | None:
    """Return the readout of the checkpoint, which must be of a search like this."""
    known = run.load_readout(checkpoint)
    if known is None:
        return None
    fitted, readout = known
    for name in ("normalize", "precision"):
        if fitted.get(name) != getattr(config, name):
            raise ValueError(
                f"`{name}` must be {fitted.get(name)!r}, as the readout of {run.folder} was fitted, got "
                f"{getattr(config, name)!r}; fit it anew with `ugr-fast confide`, or remove {run.folder / READOUT}"
            )
    return readout


def _how(job: Job, known: Confidence, rows: data.Rows) -> dict[str, Any]:
    """How it was evaluated, and what was chosen for it."""
    names = ("split", *SEARCH, "checkpoint", "recalibration")
    return {
        "how": job.how(rows),
        **{name: getattr(job.config, name) for name in names},
        "step": job.checkpoint["step"],
        "trained": _trained(job),
        "readout": job.readout is not None,
        "signal": known.choices.signal,
    }


def _write(job: Job, known: Confidence, outcomes: Outcomes, rows: data.Rows, found: dict[str, Any]) -> None:
    split, folder = job.config.split, job.run.folder
    write_outcomes(folder / f"outcomes-{split}.safetensors", outcomes, job.how(rows))
    if job.run.model_folder() == job.run.model_folder(job.checkpoint["step"]):  # `recommend` uses the best
        known.save(job.run)
    write_json(folder / f"eval-{split}.json", found)


def _trained(job: Job) -> bool:
    """Whether anything taught the confidence: the tokens at step 0 are of the model that rl began with."""
    config = job.run.config
    by_rl = config["command"] == "rl" and config["settings"].get("confidence") != "none"
    return job.readout is not None or bool(by_rl and job.checkpoint["step"] > 0)


def _confidence(job: Job, dataset: data.Dataset, outcomes: Outcomes) -> Confidence:
    """Choose on one half of the valid rows, which are ranked first if nobody did."""
    rows = job.rows(dataset, "valid")
    how, valid = job.how(rows), outcomes
    if job.config.split != "valid":
        valid = _ranked_before(job.run.folder, how) or outcomes_of(
            job.rank(rows, "valid"), job.catalogue, rows.item, rows.user
        )
    choosing, _ = decisions.halves(valid.users)
    with bar("choosing on valid", 1) as advance:
        choices = decisions.choose(valid.take(choosing), trained=_trained(job), method=job.config.recalibration)
        advance(1)
    return Confidence(how, choices, valid)


def _ranked_before(folder: Path, how: How) -> Outcomes | None:
    for name in (OUTCOMES, "outcomes-valid.safetensors"):
        with suppress(FileNotFoundError, ValueError):
            saved, outcomes = read_outcomes(folder / name)
            if saved == how:
                return outcomes
    return None


def _decisions(known: Confidence, measured: Outcomes) -> dict[str, Any]:
    """Measure the decisions on rows that chose nothing."""
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "rerank": partial(decisions.rerank, measured, known.choices),
        "reject": partial(decisions.reject, measured, known.choices),
        "cut": partial(decisions.cut, measured),
    }
    found = {}
    with bar("measuring decisions", len(measures)) as advance:
        for name, measure in measures.items():
            found[name] = measure()
            advance(1)
    return found


def _promises(known: Confidence, outcomes: Outcomes, config: EvalConfig) -> list[dict[str, Any]]:
    """What abstaining can promise, on the valid rows that test it, and what it came to on rows that did not."""
    found, outcomes = [], outcomes.take(decisions.once(outcomes.users))
    for k in PROMISED_AT:
        for max_risk in config.risks:
            rule = known.promise(max_risk, k, config.risk_delta)
            realised = rule.realised(known.certainty(outcomes), decisions.hit(outcomes.rank, k) > 0)
            said = {name: getattr(rule, name) for name in ("max_risk", "delta", "threshold", "reason")}
            tested = {name: getattr(rule, name) for name in ("answered", "share", "risk", "upper_bound")}
            found.append({"k": k, **said, "calibration": tested, "realised": realised._asdict()})
    return found


def intervals(ranking: Ranking, catalogue: Catalogue, targets: np.ndarray, user: np.ndarray) -> dict[str, list[float]]:
    """Return the 95% interval of each of `ranking_metrics`, over resampled users."""
    per_row = ranking_per_row(ranking, catalogue, targets)
    means = Bootstrap(user).means(np.stack([*per_row.values()]))
    return {name: ends for name, (_, *ends) in zip(per_row, means, strict=True)}


def reach(items: np.ndarray, counts: np.ndarray, k: int = METRIC_DEPTH) -> dict[str, float]:
    """Return how much of the catalogue is recommended to anybody, and how popular what is recommended was in training.

    A model that wins by recommending hits only has a small coverage and a high popularity.
    """
    return {
        f"coverage@{k}": metrics.catalogue_coverage(items, len(counts), k),
        f"popularity@{k}": float(np.nanmean(metrics.mean_popularity(items, counts, k))),
    }


def confidence_metrics(outcomes: Outcomes, choices: Choices) -> dict[str, Any]:
    """Measure the confidence and, beside it, the beam's likelihood.

    Args:
        outcomes: of N users.
        choices: with the recalibration of both.

    Returns:
        "confidence" and "likelihood", each at "user" and "candidate" level: see `level`; at user level also
        "risk_coverage".
    """
    return {
        source: {
            "user": {
                **level(outcomes, source, choices.user[source], np.s_[:, :1]),
                "risk_coverage": risk_coverage(outcomes.said(source)[:, 0], outcomes.hits[:, 0]),
            },
            "candidate": level(outcomes, source, choices.candidate[source], np.s_[:]),
        }
        for source in get_args(Source)
    }


def level(outcomes: Outcomes, source: Source, recalibrate: Recalibrator, entries: Any) -> dict[str, Any]:
    """Return what `source` is worth on these entries of the lists, before and after recalibration.

    Returns:
        "before" and "after": see `scalar_metrics`; "reliability" of both; "histogram" of what was said of hits and of
        misses.
    """
    there = outcomes.present[entries]
    said, correct = outcomes.said(source)[entries][there], outcomes.hits[entries][there]
    stages = {"before": said, "after": recalibrate(said)}
    return {
        **{stage: scalar_metrics(values, correct) for stage, values in stages.items()},
        "reliability": {stage: reliability(values, correct) for stage, values in stages.items()},
        "histogram": histogram(said, correct),
    }


def scalar_metrics(confidence: np.ndarray, correct: np.ndarray) -> dict[str, float | None]:
    """Return ECE with its interval, MCE, Brier score and skill, log loss, AUROC and AURC; None where one is undefined.

    Brier skill = 1 − Brier / (base rate · (1 − base rate)): 0 for always saying the base rate.
    """
    bins = metrics.calibration(confidence, correct, bins=BINS)
    rate, ranks = float(correct.mean()), metrics.Ranks(confidence, correct)
    low, high = bins.ece_interval()
    values = {
        "n": float(len(correct)),
        "base_rate": rate,
        "mean": float(confidence.mean()),
        "ece": bins.ece,
        "ece_low": low,
        "ece_high": high,
        "mce": bins.mce,
        "brier": bins.brier,
        "brier_skill": 1 - bins.brier / (rate * (1 - rate)) if 0 < rate < 1 else np.nan,
        "log_loss": metrics.log_loss(confidence, correct),
        "auroc": ranks.auroc(),
        "aurc": ranks.aurc(),
    }
    return {key: float(value) if np.isfinite(value) else None for key, value in values.items()}


def reliability(confidence: np.ndarray, correct: np.ndarray) -> dict[str, list[float]]:
    """Return the bins of a reliability diagram, of equal mass, with Wilson intervals.

    Confidences in a top recommendation crowd near 0, where bins of equal width would show one or two points.
    """
    bins = metrics.calibration(confidence, correct, bins=BINS, binning="mass")
    low, high = bins.interval()
    columns: Mapping[str, Any] = {
        "lower": bins.lower,
        "upper": bins.upper,
        "count": bins.count,
        "confidence": bins.confidence,
        "accuracy": bins.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
    }
    filled = bins.count > 0
    return {name: column[filled].tolist() for name, column in columns.items()}


def histogram(confidence: np.ndarray, correct: np.ndarray) -> dict[str, list[float]]:
    """Return how many hits and misses lie between "edges", evenly spaced from 0 to the largest confidence."""
    edges = np.linspace(0, max(float(confidence.max()), 1e-9), 2 * BINS + 1)
    of = {"hits": confidence[correct], "misses": confidence[~correct]}
    return {"edges": edges.tolist(), **{name: np.histogram(x, edges)[0].tolist() for name, x in of.items()}}


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> dict[str, list[float]]:
    """Return at most CURVE_POINTS points of the share of errors by the share kept, both ends included."""
    coverage, risk, _ = metrics.risk_coverage(confidence, correct)
    chosen = np.unique(np.linspace(0, len(coverage) - 1, min(CURVE_POINTS, len(coverage))).round().astype(int))
    return {"coverage": coverage[chosen].tolist(), "risk": risk[chosen].tolist()}


def baseline_metrics(
    sequences: data.Sequences, counts: np.ndarray, rows: data.Rows, embeddings: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Return HR, NDCG and reach of popularity, last-item Markov and, with item embeddings, cosine + Markov.

    All are counted on `sequences`, those of the training split, in which each item occurs `counts` (num_items,) times.
    """
    models: dict[str, baselines.Popularity | baselines.Markov | baselines.CosineMarkov] = {
        "popularity": baselines.Popularity(sequences, len(counts)),
        "markov": baselines.Markov(sequences, len(counts)),
    }
    if embeddings is not None:
        models["cosine_markov"] = baselines.CosineMarkov(sequences, embeddings)
    found = {}
    for name, model in models.items():
        ranked = model.rank(rows, min(METRIC_DEPTH, len(counts)))
        ranked = np.pad(ranked, ((0, 0), (0, METRIC_DEPTH - ranked.shape[1])), constant_values=-1)  # few items
        found[name] = {
            f"{label}@{k}": float(metric(ranked, rows.item, k).mean())
            for k in (1, 3, 5, 10)
            for label, metric in (("hr", metrics.recall_at), ("ndcg", metrics.ndcg_at))
        } | reach(ranked, counts)
    return found


def examples(
    ranking: Ranking, outcomes: Outcomes, calibrated: np.ndarray, dataset: data.Dataset, rows: data.Rows
) -> list[dict[str, Any]]:
    """Return a readable sample of users: history, the ten first recommendations with confidence, what came next."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:NUM_EXAMPLES])
    return [
        {
            "user": int(rows.user[row]),
            "history": [dataset.titles[item] for item in rows.history(row)],
            "target": dataset.titles[rows.item[row]],
            "recommended": [
                {
                    "title": dataset.titles[item],
                    "confidence": float(outcomes.confidence[row, at]),
                    "likelihood": float(np.exp(outcomes.scores[row, at])),
                    "calibrated": float(calibrated[row, at]),
                    "hit": bool(item == rows.item[row]),
                }
                for at, item in enumerate(ranking.items[row, :METRIC_DEPTH])
                if item >= 0
            ],
        }
        for row in chosen
    ]
