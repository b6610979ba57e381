"""Calibration, ranks and isotonic regression beside the best NumPy and torch lines, and beside libraries.

    python benches/bench_metrics.py --sizes 100000 1000000 10000000

Prints a Markdown table for each size: medians in ns per sample, one thread, calls in turns; float32 confidences, bool
outcomes, 15 bins. The ratio is to the fastest of the others. Libraries are compared if they can be imported, with their
checks switched off where they have a switch; a call that would take more than 20 s by its time at the size before is
left out.

Bytes are what ours reads and writes per sample, by its passes over arrays as long as the samples; the share is of the
bandwidth of copying 256 MB, both directions counted, in the same run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from timing import medians_in_turns, ratio, seconds, table_head, table_row
from ugr_fast import Recalibrator
from ugr_fast.metrics import CalibrationAccumulator, Ranks, aurc, auroc, average_precision, calibration

BINS = 15
LIMIT = 20.0
"""Seconds of a call, or of all repeats of a row, that are worth waiting for."""
COPIED = 1 << 28
NAMES = {"sklearn": "scikit-learn", "scipy": "SciPy", "torch_uncertainty": "torch-uncertainty"}
COLUMNS = ("ugr-fast", "NumPy", "torch", "SciPy", "scikit-learn", "torchmetrics", "netcal", "torch-uncertainty")
SORT = 4 + 4 + 5 + 4 + 1 + 4 + 4 + 3 * 8  # NaN? negative? pack, write, hits; which bits, their counts, three passes
BYTES = {
    "ECE, equal width": 5,
    "ECE, in 16 parts": 5,
    "ECE, equal mass": 4 + 4 + 5 + 4,  # in range? count, add up, largest
    "AUROC": SORT + 4,
    "average precision": SORT + 4,
    "AURC": SORT + 4,
    "AUROC, AURC, E-AURC, AUGRC": SORT + 4 * 4,
    "isotonic fit": 10 + 6 + 5 + 4 + 4 + 3 * 12 + 4,  # in range? twice; hits, pack, write; which bits, passes, pool
}
Calls = dict[str, Callable[[], object]]


# ---- the best lines known: an outcome in the lowest bit, since numbers sort faster than an order is found


def numpy_width(confidence: np.ndarray, correct: np.ndarray) -> float:
    k = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    return float(np.abs(np.bincount(k, confidence - correct, BINS)).sum() / len(confidence))


def torch_width(confidence: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    k = (confidence * BINS).long().clamp_(max=BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64).scatter_add_(0, k, confidence.double() - correct.double())
    return gap.abs().sum() / len(confidence)


def numpy_sorted(score: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keys = np.sort(score.view(np.uint32) << np.uint32(1) | correct)
    return keys >> np.uint32(1), (keys & np.uint32(1)).view(np.int32)


def torch_sorted(score: torch.Tensor, correct: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    keys = (score.view(torch.int32) << 1 | correct).sort()[0]
    return keys >> 1, keys & 1


def numpy_mass(confidence: np.ndarray, correct: np.ndarray) -> float:
    bits, y = numpy_sorted(confidence, correct)
    start = np.arange(BINS) * len(y) // BINS
    return float(np.abs(np.add.reduceat(bits.view(np.float32) - y, start)).sum() / len(y))


def torch_mass(confidence: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    bits, y = torch_sorted(confidence, correct)
    gaps = (bits.view(torch.float32).double() - y).tensor_split(BINS)
    return sum(gap.sum().abs() for gap in gaps) / len(y)


def numpy_auroc(score: np.ndarray, correct: np.ndarray) -> float:
    s, y = numpy_sorted(score, correct)
    start = np.flatnonzero(np.concatenate(([True], s[1:] != s[:-1])))
    size, hits = np.diff(np.append(start, len(s))), np.add.reduceat(y, start, dtype=np.int64)
    n = int(hits.sum())
    return float((hits * (start + (size + 1) / 2)).sum() - n * (n + 1) / 2) / (n * (len(s) - n))


def torch_auroc(score: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    s, y = torch_sorted(score, correct)
    size = s.unique_consecutive(return_counts=True)[1]
    rank = (size.cumsum(0) - (size.double() - 1) / 2).repeat_interleave(size)
    n = y.sum()
    return (rank @ y.double() - n * (n + 1) / 2) / (n * (len(y) - n))


def numpy_aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    wrong = 1 - numpy_sorted(confidence, correct)[1][::-1]
    return float((np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean())


def torch_aurc(confidence: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    wrong = 1 - torch_sorted(confidence, correct)[1].flip(0)
    return (wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)).mean()


def numpy_average_precision(score: np.ndarray, correct: np.ndarray) -> float:
    y = numpy_sorted(score, correct)[1][::-1]
    return float((np.cumsum(y) / np.arange(1, len(y) + 1)) @ y / y.sum())


def torch_average_precision(score: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    y = torch_sorted(score, correct)[1].flip(0)
    return (y.cumsum(0) / torch.arange(1, len(y) + 1)) @ y.float() / y.sum()


# ---- libraries


def libraries(c: np.ndarray, y: np.ndarray, tc: torch.Tensor, ty: torch.Tensor) -> list[tuple[str, str, Any]]:
    """Row, library and call; a call names its module, so that one that is missing can be left out."""
    labels, unchecked = ty.long(), {"validate_args": False}
    torchmetrics = "torchmetrics.functional.classification"
    return [
        (
            "ECE, equal width",
            torchmetrics,
            lambda m: m.binary_calibration_error(tc, labels, n_bins=BINS, **unchecked),
        ),
        ("ECE, equal width", "netcal.metrics", lambda m: m.ECE(BINS).measure(c, y)),
        ("ECE, equal mass", "netcal.metrics", lambda m: m.ECE(BINS, equal_intervals=False).measure(c, y)),
        ("ECE, equal mass", "torch_uncertainty.metrics", lambda m: tu_mass(m, tc, labels)),
        ("AUROC", torchmetrics, lambda m: m.binary_auroc(tc, labels, **unchecked)),
        ("AUROC", "sklearn.metrics", lambda m: m.roc_auc_score(y, c)),
        ("average precision", torchmetrics, lambda m: m.binary_average_precision(tc, labels, **unchecked)),
        ("average precision", "sklearn.metrics", lambda m: m.average_precision_score(y, c)),
        ("AURC", "torch_uncertainty.metrics", lambda m: tu_aurc(m, tc, ty)),
        ("isotonic fit", "scipy.optimize", lambda m: m.isotonic_regression(numpy_sorted(c, y)[1])),
        ("isotonic fit", "sklearn.isotonic", lambda m: m.IsotonicRegression().fit(c, y)),
        ("isotonic fit", "netcal.binning", lambda m: m.IsotonicRegression().fit(c, y)),
    ]


def tu_mass(module: Any, confidence: torch.Tensor, labels: torch.Tensor) -> Any:
    metric = module.AdaptiveCalibrationError(task="binary", num_bins=BINS, validate_args=False)
    metric.update(confidence, labels)
    return metric.compute()


def tu_aurc(module: Any, confidence: torch.Tensor, correct: torch.Tensor) -> Any:
    metric = module.AURC()
    metric.update(torch.stack((confidence, 1 - confidence), 1), (~correct).long())
    return metric.compute()


# ---- the table


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
    found["isotonic fit"] = {"ugr-fast": lambda: Recalibrator("isotonic").fit(c, y)}
    for name, path, call in libraries(c, y, tc, ty):
        try:
            module = import_module(path)
        except ImportError:
            continue
        package = path.split(".")[0]
        found[name][NAMES.get(package, package)] = lambda call=call, module=module: call(module)
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


def check(calls: Calls) -> None:
    """The lines say what ours says, where that is one number; there are few ties."""
    expected = calls["ugr-fast"]()
    for name in calls.keys() & {"NumPy", "torch"}:
        if isinstance(expected, float) and not abs(float(calls[name]()) - expected) < 1e-3:
            raise AssertionError(f"{name}: {float(calls[name]())} is not {expected}")


def spent(calls: Calls, repeats: int) -> dict[str, float]:
    """Median seconds of each call, after one that is not counted; fewer repeats, at least 3, where they take long."""
    once = sum(medians_in_turns(1, *calls.values()))
    return dict(zip(calls, medians_in_turns(max(3, min(repeats, int(LIMIT / once))), *calls.values()), strict=True))


def bandwidth() -> float:
    """Bytes per ns of a large copy, read and written."""
    source, target = np.ones(COPIED, np.uint8), np.ones(COPIED, np.uint8)
    return 2 * COPIED / 1e9 / statistics.median(seconds(lambda: np.copyto(target, source)) for _ in range(9))


def table(n: int, before: dict[tuple[str, str], float], repeats: int, speed: float) -> None:
    """Print the rows of `n` samples; `before` holds, and is given, seconds per sample of every row and column."""
    print(f"\n{n} samples, ns per sample\n")
    print(table_head("computation", *COLUMNS, "ratio", "bytes", "of bandwidth"))
    for name, calls in rows(n).items():
        calls = {key: call for key, call in calls.items() if n * before.get((name, key), 0) < LIMIT}
        check(calls)
        found = {key: 1e9 * taken / n for key, taken in spent(calls, repeats).items()}
        before.update({(name, key): ns / 1e9 for key, ns in found.items()})
        ours, others = found["ugr-fast"], [ns for key, ns in found.items() if key != "ugr-fast"]
        share = f"{BYTES[name] / ours / speed:.0%}"
        cells = (found.get(key, "–") for key in COLUMNS)
        times = ratio(min(others), ours) if others else "–"
        print(table_row(name, *cells, times, str(BYTES[name]), share), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25, help="calls that a median is over, at most (default: 25)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000], help="samples (default: 1000000)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    speed, before = bandwidth(), {}
    print(f"copying: {speed:.1f} GB/s, read and written")
    for n in sorted(options.sizes):
        table(n, before, options.repeats, speed)


if __name__ == "__main__":
    main()
