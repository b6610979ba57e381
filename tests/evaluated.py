"""Run directories as sft, rl and eval leave them, without a model: for the tests of what reads them."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
from ugr_fast import decisions, metrics
from ugr_fast.files import finite

TITLES = [f"Film {number} (19{number % 100:02d})" for number in range(60)]
TITLES[3] = "<script>alert('x')</script> & co | *stars* [link](javascript:0) $5"
NUM_BEAMS = 20
HOW = {"step": 50}
SETTINGS = {
    "sft": {"data": "data", "epochs": 6, "model": None},
    "rl": {"data": "data", "reward": "uncertainty_weighted", "difficulty": "rank", "confidence": "brier", "lr": 1e-4},
}


def make_run(folder: Path, command="sft", seed=0, skill=0.9, num_rows=400, num_users=5, **settings) -> Path:
    """Write a run that was evaluated on the test split; more `skill`, more hits."""
    folder.mkdir(parents=True)
    settings = {**SETTINGS[command], **settings}
    environment = {"torch": "2.10", "device": "cpu", "threads": 2}
    trained = command == "rl" and settings["confidence"] != "none"
    files = {
        "config.json": {"command": command, "settings": settings, "environment": environment},
        "best.json": {"step": 50, **valid_line(0.06)},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log_lines(command)))
    (folder / "eval-test.json").write_text(evaluation(seed, skill, num_rows, trained, num_users))
    decisions.write_outcomes(folder / "outcomes-test.safetensors", outcomes(seed, skill, num_rows), HOW)
    return folder


def outcomes(seed, skill, num_rows):
    """Users of whom most are hard; the confidence knows which, and overstates it, the likelihood half knows."""
    rng = np.random.default_rng(seed)
    ease = rng.beta(1.2, 6, num_rows) * skill
    rank = np.minimum(rng.geometric(ease.clip(0.02, 1)) - 1, NUM_BEAMS)
    decay = np.exp(-0.25 * np.arange(NUM_BEAMS))
    confidence = (1.4 * ease[:, None] * decay * rng.uniform(0.7, 1.3, (num_rows, NUM_BEAMS))).clip(0, 1)
    likelihood = (0.5 * ease + 0.1 * rng.random(num_rows)).clip(0.01, 1)[:, None] * decay
    return decisions.Outcomes(
        np.log(likelihood).astype(np.float32), confidence.astype(np.float32), np.where(rank < NUM_BEAMS, rank, -1)
    )


@cache
def evaluation(seed, skill, num_rows, trained, num_users):
    """Text of an eval-SPLIT.json of users who, for want of others, chose too."""
    told = outcomes(seed, skill, num_rows)
    choices = decisions.choose(told, trained=trained)
    ranking = {}
    for k in (1, 3, 5, 10):
        hit = decisions.hit(told.rank, k)
        ranking |= {f"hr@{k}": hit.mean(), f"ndcg@{k}": (hit / np.log2(np.maximum(told.rank, 0) + 2)).mean()}
    ranking |= {f"sid_{name}": value + 0.001 for name, value in ranking.items()}
    simple = dict.fromkeys(ranking, 0.0123) | {"coverage@10": 0.01, "popularity@10": 250.0}
    found = {
        "how": HOW, "split": "test", "num_rows": len(told), "num_users": len(told),
        "num_beams": NUM_BEAMS, "normalize": "full", "precision": "float32",
        "checkpoint": "best", "step": 50, "trained": trained, "recalibration": "beta",
        "signal": "confidence" if trained else "likelihood", "ranking": ranking,
        "intervals": {name: [value - 0.01, value + 0.01] for name, value in ranking.items()},
        "reach": {"coverage@10": 0.345, "popularity@10": 123.4},
        "baselines": {"popularity": simple, "markov": simple | dict.fromkeys(ranking, 0.0456)},
        **{source: levels(told, source, choices) for source in ("confidence", "likelihood")},
        "decisions": {
            "chosen_on": 200, "rows": len(told), "rerank": decisions.rerank(told, choices),
            "reject": decisions.reject(told, choices), "cut": decisions.cut(told),
        },
        "promises": promises(), "examples": [example(user, choices.signal) for user in range(num_users)],
    }  # fmt: skip
    return json.dumps(finite(found))


def levels(told, source, choices):
    said, there = told.said(source), told.present
    user = level(said[:, 0], told.hits[:, 0], choices.user[source])
    coverage, risk, _ = metrics.risk_coverage(said[:, 0], told.hits[:, 0])
    return {
        "user": user | {"risk_coverage": {"coverage": coverage.tolist(), "risk": risk.tolist()}},
        "candidate": level(said[there], told.hits[there], choices.candidate[source]),
    }


def level(said, correct, recalibrator):
    calibrated = recalibrator(said)
    edges = np.linspace(0, 1, 31)
    counts = {name: np.histogram(said[of], edges)[0].tolist() for name, of in (("hits", correct), ("misses", ~correct))}
    return {
        "before": scalars(said, correct),
        "after": scalars(calibrated, correct),
        "reliability": {"before": bins(said, correct), "after": bins(calibrated, correct)},
        "histogram": {"edges": edges.tolist(), **counts},
    }


def scalars(said, correct):
    found, rate = metrics.calibration(said, correct, bins=15), float(correct.mean())
    return {
        "n": len(said), "base_rate": rate, "mean": float(said.mean()), "ece": found.ece, "ece_low": 0.8 * found.ece,
        "ece_high": 1.2 * found.ece, "mce": found.mce, "brier": found.brier,
        "brier_skill": 1 - found.brier / (rate * (1 - rate)), "auroc": metrics.auroc(said, correct),
        "aurc": metrics.aurc(said, correct),
    }  # fmt: skip


def bins(said, correct):
    found = metrics.calibration(said, correct, bins=15, binning="mass")
    filled = found.count > 0
    count = found.count[filled].astype(int)
    low, high = metrics.wilson(np.rint(found.accuracy[filled] * count), count)
    columns = {name: getattr(found, name)[filled] for name in ("lower", "upper", "confidence", "accuracy")}
    columns |= {"count": count, "accuracy_low": low, "accuracy_high": high}
    return {name: column.tolist() for name, column in columns.items()}


def promises():
    """Kept, exceeded, kept by answering everybody, and one that answers nobody."""
    some = {"answered": 60, "share": 0.3, "risk": 0.41, "upper_bound": 0.49}
    nobody = {"answered": 0, "share": 0.0, "risk": None, "upper_bound": None}
    asked = {"k": 10, "max_risk": 0.5, "delta": 0.1, "threshold": 0.2, "reason": None, "calibration": some}
    return [
        asked | {"realised": {"answered": 110, "share": 0.275, "risk": 0.45}},
        asked | {"max_risk": 0.45, "realised": {"answered": 100, "share": 0.25, "risk": 0.46}},
        asked | {"max_risk": 0.9, "threshold": None, "realised": {"answered": 400, "share": 1.0, "risk": 0.7}},
        asked | {"k": 1, "threshold": None, "reason": "no candidate passes", "calibration": nobody, "realised": nobody},
    ]


def example(user, signal):
    rng = np.random.default_rng(user)
    target = 3 + user
    items = rng.permutation(len(TITLES))[:10]
    if user % 2:
        items[2] = target
    elif target in items:
        items[items == target] = target + 20
    recommended = [
        {"title": TITLES[item], "confidence": 0.3 / rank, "likelihood": 0.1 / rank, "calibrated": 0.2 / rank,
         "hit": bool(item == target)}
        for rank, item in enumerate(items, start=1)
    ]  # fmt: skip
    return {"user": user, "history": TITLES[user : user + 6], "target": TITLES[target], "recommended": recommended}


def valid_line(value):
    keys = ("ndcg@10", "hr@10", "hr@1", "confidence_auroc", "likelihood_auroc")
    return {key: value + 0.1 * index for index, key in enumerate(keys)}


def log_lines(command):
    if command == "sft":
        epochs = [{"step": 90 * e, "epoch": e, "loss": 5 - e / 3, "seconds": 60.0 * e} for e in range(1, 7)]
        return epochs + [{"step": 90 * e, "epoch": e, "valid": valid_line(0.01 * e)} for e in (2, 4, 6)]
    wave = [0.1 + 0.001 * u + 0.02 * math.sin(u) for u in range(1, 101)]
    parts = {"seconds_rollout": 0.25, "seconds_reward": 0.05, "seconds_update": 0.15}
    updates = [
        {"step": u, "loss": -w, "reward": 1e-10 * w, "hit_rate": 2 * w, "confidence_auroc": 0.99, "seconds": 0.5 * u}
        | parts
        for u, w in enumerate(wave, start=1)
    ]
    return updates + [{"step": u, "valid": valid_line(0.06 + u / 5000)} for u in (0, 25, 50, 75, 100)]
