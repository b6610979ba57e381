"""Calibration and selective prediction beside the best NumPy and torch lines, and beside libraries that are installed.

    python benches/bench_metrics.py

Prints a Markdown table of medians in ns per sample, one thread, calls in turns: float32 confidences, bool outcomes,
15 bins. The ratio is to the fastest of the others. torchmetrics, torch-uncertainty, netcal and scikit-learn are
compared if they can be imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from bench_math import numpy_mass, numpy_width
from timing import medians_in_turns, ratio, table_head, table_row
from ugr_fast.metrics import CalibrationAccumulator, Ranks, aurc, auroc, average_precision, calibration

BINS = 15
Calls = dict[str, Callable[[], object]]


def torch_width(confidence: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    k = (confidence * BINS).long().clamp_(max=BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64).scatter_add_(0, k, confidence.double() - correct.double())
    return gap.abs().sum() / len(confidence)


def torch_mass(confidence: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    values, order = confidence.sort()
    gap = (values.double() - correct[order].double()).tensor_split(BINS)
    return sum(part.sum().abs() for part in gap) / len(confidence)


def numpy_auroc(score: np.ndarray, correct: np.ndarray) -> float:
    order = np.argsort(score)
    s, y = score[order], correct[order]
    start = np.flatnonzero(np.concatenate(([True], s[1:] != s[:-1])))
    size, hits = np.diff(np.append(start, len(s))), np.add.reduceat(y, start, dtype=np.int64)
    n = int(hits.sum())
    return float((hits * (start + (size + 1) / 2)).sum() - n * (n + 1) / 2) / (n * (len(s) - n))


def torch_auroc(score: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    values, order = score.sort()
    size = values.unique_consecutive(return_counts=True)[1]
    rank = (size.cumsum(0) - (size - 1) / 2).repeat_interleave(size)
    y = correct[order]
    n = y.sum()
    return (rank[y].sum() - n * (n + 1) / 2) / (n * (len(y) - n))


def numpy_aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    wrong = ~correct[np.argsort(-confidence)]
    return float((np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean())


def torch_aurc(confidence: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    wrong = ~correct[confidence.argsort(descending=True)]
    return (wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)).mean()


def numpy_average_precision(score: np.ndarray, correct: np.ndarray) -> float:
    y = correct[np.argsort(-score)]
    return float((np.cumsum(y) / np.arange(1, len(y) + 1))[y].mean())


def torch_average_precision(score: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    y = correct[score.argsort(descending=True)]
    return (y.cumsum(0) / torch.arange(1, len(y) + 1))[y].mean()


def libraries(c: np.ndarray, y: np.ndarray, tc: torch.Tensor, ty: torch.Tensor) -> list[tuple[str, str, Any]]:
    """Row, library and call; a call names its module, so that one that is missing can be left out."""
    labels = ty.long()
    return [
        (
            "ECE, equal width",
            "torchmetrics.functional.classification",
            lambda m: m.binary_calibration_error(tc, labels),
        ),
        ("ECE, equal width", "netcal.metrics", lambda m: m.ECE(BINS).measure(c, y)),
        ("ECE, equal mass", "torch_uncertainty.metrics", lambda m: tu_mass(m, tc, labels)),
        ("AUROC", "torchmetrics.functional.classification", lambda m: m.binary_auroc(tc, labels)),
        ("AUROC", "sklearn.metrics", lambda m: m.roc_auc_score(y, c)),
        ("average precision", "sklearn.metrics", lambda m: m.average_precision_score(y, c)),
        ("AURC", "torch_uncertainty.metrics", lambda m: tu_aurc(m, tc, ty)),
    ]


def tu_mass(module: Any, confidence: torch.Tensor, labels: torch.Tensor) -> Any:
    metric = module.AdaptiveCalibrationError(task="binary", num_bins=BINS)
    metric.update(confidence, labels)
    return metric.compute()


def tu_aurc(module: Any, confidence: torch.Tensor, correct: torch.Tensor) -> Any:
    metric = module.AURC()
    metric.update(torch.stack((confidence, 1 - confidence), 1), (~correct).long())
    return metric.compute()


def rows(n: int) -> dict[str, Calls]:
    random = np.random.default_rng(0)
    c = 1 / (1 + np.exp(-random.normal(1, 1.5, n).astype(np.float32)))
    y = random.random(n) < c**1.3
    tc, ty = torch.from_numpy(c), torch.from_numpy(y)
    pairs: dict[str, tuple[Callable[..., object], Callable[..., object], Callable[..., object]]] = {
        "ECE, equal width": (lambda c, y: calibration(c, y).ece, numpy_width, torch_width),
        "ECE, in 16 parts": (in_parts, numpy_width, torch_width),
        "ECE, equal mass": (lambda c, y: calibration(c, y, binning="mass").ece, numpy_mass, torch_mass),
        "AUROC": (auroc, numpy_auroc, torch_auroc),
        "average precision": (average_precision, numpy_average_precision, torch_average_precision),
        "AURC": (aurc, numpy_aurc, torch_aurc),
        "AUROC, AURC, E-AURC, AUGRC": (all_ranks, all_of(numpy_auroc, numpy_aurc), all_of(torch_auroc, torch_aurc)),
    }
    found: dict[str, Calls] = {
        name: {
            "ugr-fast": lambda ours=ours: ours(c, y),
            "NumPy": lambda numpy=numpy: numpy(c, y),
            "torch": lambda torch=torch: torch(tc, ty),
        }
        for name, (ours, numpy, torch) in pairs.items()
    }
    for name, path, call in libraries(c, y, tc, ty):
        try:
            module = import_module(path)
        except ImportError:
            continue
        found[name][path.split(".")[0]] = lambda call=call, module=module: call(module)
    return found


def in_parts(c: np.ndarray, y: np.ndarray) -> float:
    accumulator = CalibrationAccumulator(BINS)
    for part in zip(np.array_split(c, 16), np.array_split(y, 16), strict=True):
        accumulator.update(*part)
    return accumulator.compute().ece


def all_ranks(c: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
    ranks = Ranks(c, y)
    return ranks.auroc(), ranks.aurc(), ranks.eaurc(), ranks.augrc()


def all_of(*calls: Callable[..., object]) -> Callable[..., object]:
    return lambda c, y: [call(c, y) for call in calls]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25, help="calls that the median is over (default: 25)")
    parser.add_argument("--samples", type=int, default=1_000_000, help="confidences (default: 1000000)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = rows(options.samples)
    columns = list(dict.fromkeys(name for calls in table.values() for name in calls))
    print(f"{options.samples} samples, ns per sample\n")
    print(table_head("computation", *columns, "ratio"))
    for name, calls in table.items():
        medians_in_turns(1, *calls.values())  # not counted
        medians = medians_in_turns(options.repeats, *calls.values())
        spent = {key: 1e9 * seconds / options.samples for key, seconds in zip(calls, medians, strict=True)}
        others = min(ns for key, ns in spent.items() if key != "ugr-fast")
        print(table_row(name, *map(spent.get, columns), ratio(others, spent["ugr-fast"])), flush=True)


if __name__ == "__main__":
    main()
