"""Full-ranking evaluation of a run: accuracy at item and SID level, and what its confidence is worth.

The *user-level* confidence is that of the top recommendation, and it is right when that recommendation is the next item
(hit@1). The *candidate-level* confidence is that of every beam, and most beams are misses: a constant near 0 looks
calibrated there, so the Brier skill against the base rate and AUROC stand beside each ECE. Every number for the
confidence stands beside the same number for the beam's own likelihood, exp(score).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ugr_fast import baselines, data, metrics, sids
from ugr_fast.configs import METRIC_DEPTH, check
from ugr_fast.files import write_json
from ugr_fast.model import autocast
from ugr_fast.progress import say
from ugr_fast.recommend import Ranking, hits_at_sid, rank, ranking_metrics, top_items
from ugr_fast.run import Run, choose_device, set_threads
from ugr_fast.team import Team

if TYPE_CHECKING:
    from ugr_fast.configs import EvalConfig
    from ugr_fast.model import Catalogue

BINS = 15
NUM_EXAMPLES = 24
CURVE_POINTS = 200


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Evaluate a run as `config` says, write eval-SPLIT.json into it, and return what was written.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: run and data do not fit together, or a setting is out of range.
    """
    check(config)
    set_threads(config.threads)
    device = choose_device(config.device)
    team = Team.join(device)
    run = Run.open(config.run)
    dataset = data.load(config.data)
    catalogue = run.load_catalogue()
    run.check_items(dataset.ids)
    embeddings = None if config.embeddings is None else sids.load_embeddings(config.embeddings, dataset.num_items)
    rows: data.Rows = getattr(dataset, config.split).latest(run.config["settings"]["history"])
    with autocast(device, config.precision):
        ranking = rank(
            run.load_model(device, config.checkpoint),
            catalogue,
            [rows.history(row) for row in range(len(rows))],
            num_beams=config.num_beams,
            normalize=config.normalize,
            batch_size=config.batch_size,
            description=f"evaluating {config.run.name} on {config.split}",
            team=team,
        )
    found = {
        "split": config.split,
        "num_rows": len(rows),
        "num_beams": config.num_beams,
        "normalize": config.normalize,
        "precision": config.precision,
        "checkpoint": config.checkpoint,
        "step": _step(run, config.checkpoint),
        "ranking": ranking_metrics(ranking, catalogue, rows.item),
        **confidence_metrics(ranking, hits_at_sid(ranking, catalogue, rows.item), rows.item),
        "baselines": baseline_metrics(dataset, rows, embeddings),
        "examples": examples(ranking, catalogue, dataset, rows),
    }
    if team.is_main:
        write_json(run.folder / f"eval-{config.split}.json", found)
    ranked = found["ranking"]
    say(
        f"{config.run.name} on {config.split}, {len(rows)} rows, beam width {config.num_beams}: "
        f"HR@1 {ranked['hr@1']:.4f} HR@10 {ranked['hr@10']:.4f} NDCG@10 {ranked['ndcg@10']:.4f} (item level)"
    )
    return found


def _step(run: Run, checkpoint: str) -> int:
    best = run.best()
    return int(best["step"]) if checkpoint == "best" and best else run.steps()[-1]


def confidence_metrics(ranking: Ranking, hits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Measure the confidence and, beside it, the beam's likelihood.

    Args:
        ranking: N rankings of K beams.
        hits: (N, K) bool, the beam is the target's semantic ID.
        targets: (N,) item ids.

    Returns:
        "confidence" and "likelihood", each with "user" and "candidate" level numbers, a reliability diagram, the
        risk-coverage curve and the rejection curve; "kept_half": HR@10 and NDCG@10 of the most confident half of the
        users, with the mean over all users ("random") beside them.
    """
    sources = {"confidence": ranking.confidence, "likelihood": np.exp(ranking.scores)}
    hit10 = metrics.recall_at(ranking.items, targets, METRIC_DEPTH)
    ndcg10 = metrics.ndcg_at(ranking.items, targets, METRIC_DEPTH)
    found: dict[str, Any] = {}
    kept: dict[str, Any] = {"random": {"hr@10": float(hit10.mean()), "ndcg@10": float(ndcg10.mean())}}
    for name, values in sources.items():
        present = ranking.items[:, 0] >= 0
        top = np.where(present, values[:, 0], 0.0).astype(np.float64).clip(0, 1)
        there = np.isfinite(ranking.scores)
        found[name] = {
            "user": scalar_metrics(top, hits[:, 0]),
            "candidate": scalar_metrics(values[there].astype(np.float64).clip(0, 1), hits[there]),
            "reliability": reliability(top, hits[:, 0]),
            "risk_coverage": curve(*metrics.risk_coverage(top, hits[:, 0])[:2]),
            "rejection": rejection(top, ndcg10, hit10),
        }
        most = np.argsort(-top, kind="stable")[: (len(top) + 1) // 2]
        kept[name] = {"hr@10": float(hit10[most].mean()), "ndcg@10": float(ndcg10[most].mean())}
    return {**found, "kept_half": kept}


def scalar_metrics(confidence: np.ndarray, correct: np.ndarray) -> dict[str, float | None]:
    """Return ECE, MCE, Brier score, Brier skill, AUROC and AURC; None where one is undefined.

    Brier skill = 1 − Brier / (base rate · (1 − base rate)): 0 for always saying the base rate.
    """
    bins = metrics.calibration(confidence, correct, bins=BINS)
    rate = float(correct.mean())
    values = {
        "ece": bins.ece,
        "mce": bins.mce,
        "brier": bins.brier,
        "brier_skill": 1 - bins.brier / (rate * (1 - rate)) if 0 < rate < 1 else np.nan,
        "auroc": metrics.auroc(confidence, correct),
        "aurc": metrics.aurc(confidence, correct),
        "mean_confidence": float(confidence.mean()),
        "base_rate": rate,
        "n": float(len(correct)),
    }
    return {key: None if np.isnan(value) else float(value) for key, value in values.items()}


def reliability(confidence: np.ndarray, correct: np.ndarray) -> dict[str, list[float]]:
    """Return the bins of a reliability diagram, of equal mass, with Wilson intervals.

    Confidences in a top recommendation crowd near 0, where bins of equal width would show one or two points.
    """
    bins = metrics.calibration(confidence, correct, bins=BINS, binning="mass")
    filled = bins.count > 0
    count = bins.count[filled].astype(np.int64)
    low, high = metrics.wilson(np.rint(bins.accuracy[filled] * count), count)
    columns = {
        "lower": bins.lower[filled],
        "upper": bins.upper[filled],
        "count": count,
        "confidence": bins.confidence[filled],
        "accuracy": bins.accuracy[filled],
        "accuracy_low": low,
        "accuracy_high": high,
    }
    return {name: column.tolist() for name, column in columns.items()}


def curve(coverage: np.ndarray, risk: np.ndarray) -> dict[str, list[float]]:
    """Return at most CURVE_POINTS points of a curve, both ends included."""
    chosen = np.unique(np.linspace(0, len(coverage) - 1, min(CURVE_POINTS, len(coverage))).round().astype(int))
    return {"coverage": coverage[chosen].tolist(), "risk": risk[chosen].tolist()}


def rejection(confidence: np.ndarray, ndcg: np.ndarray, hit: np.ndarray) -> dict[str, list[float]]:
    """Return NDCG@10 and HR@10 of the most confident users, at coverages 5%, 10%, … 100%."""
    order = np.argsort(-confidence, kind="stable")
    coverage = np.arange(1, 21) / 20
    kept = [order[: max(1, round(share * len(order)))] for share in coverage]
    return {
        "coverage": coverage.tolist(),
        "ndcg@10": [float(ndcg[rows].mean()) for rows in kept],
        "hr@10": [float(hit[rows].mean()) for rows in kept],
    }


def baseline_metrics(
    dataset: data.Dataset, rows: data.Rows, embeddings: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Return HR and NDCG of popularity, last-item Markov and, with item embeddings, cosine + Markov.

    All are counted on the training split.
    """
    sequences = data.sequences(dataset.train)
    models: dict[str, baselines.Popularity | baselines.Markov | baselines.CosineMarkov] = {
        "popularity": baselines.Popularity(sequences, dataset.num_items),
        "markov": baselines.Markov(sequences, dataset.num_items),
    }
    if embeddings is not None:
        models["cosine_markov"] = baselines.CosineMarkov(sequences, embeddings)
    found = {}
    for name, model in models.items():
        ranked = model.rank(rows, METRIC_DEPTH)
        found[name] = {
            f"{label}@{k}": float(metric(ranked, rows.item, k).mean())
            for k in (1, 3, 5, 10)
            for label, metric in (("hr", metrics.recall_at), ("ndcg", metrics.ndcg_at))
        }
    return found


def examples(ranking: Ranking, catalogue: Catalogue, dataset: data.Dataset, rows: data.Rows) -> list[dict[str, Any]]:
    """Return a readable sample of users: history, the ten first recommendations with confidence, what came next."""
    chosen = np.random.default_rng(0).permutation(len(rows))[:NUM_EXAMPLES]
    return [_example(int(row), ranking, catalogue, dataset, rows) for row in np.sort(chosen)]


def _example(
    row: int, ranking: Ranking, catalogue: Catalogue, dataset: data.Dataset, rows: data.Rows
) -> dict[str, Any]:
    return {
        "user": int(rows.user[row]),
        "history": [dataset.titles[item] for item in rows.history(row)],
        "target": dataset.titles[rows.item[row]],
        "recommended": [
            {
                "title": dataset.titles[item],
                "confidence": float(ranking.confidence[row, beam]),
                "likelihood": float(np.exp(ranking.scores[row, beam])),
                "hit": item == int(rows.item[row]),
            }
            for item, beam in top_items(ranking, catalogue, row, METRIC_DEPTH)
        ],
    }
