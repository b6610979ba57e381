"""Advantages, UGR reward with weight, and calibration, against the best NumPy lines for the same result.

    python benches/bench_math.py

Prints a Markdown table of medians, one thread. A ratio below 1 says how much slower this package is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from timing import median_ms, ratio, table_head, table_row
from ugr_fast import group_advantages
from ugr_fast.metrics import calibration
from ugr_fast.rewards import difficulty_weight, uncertainty_weighted


def numpy_advantages(rewards: np.ndarray) -> np.ndarray:
    return (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)


def numpy_reward_and_weight(hits: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = hits.any(1, keepdims=True)
    s = np.where(hits, -np.inf, scores)
    weight = np.exp(s - s.max(1, keepdims=True))
    reward = np.where(hits, 1, -weight / weight.sum(1, keepdims=True)) * found
    rank = np.where(found[:, 0], hits.argmax(1), hits.shape[1] - 1)
    return reward, rank / (hits.shape[1] - 1)


def numpy_width(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    k = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    gap = np.bincount(k, confidence, bins) - np.bincount(k, correct, bins)
    return float(np.abs(gap).sum() / confidence.size)


def numpy_mass(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    edges = np.quantile(confidence, np.arange(1, bins) / bins)
    k = np.searchsorted(edges, confidence, "right")
    gap = np.bincount(k, confidence, bins) - np.bincount(k, correct, bins)
    return float(np.abs(gap).sum() / confidence.size)


def group_rows(shape: tuple[int, int], random: np.random.Generator) -> list[tuple[str, Callable, Callable]]:
    scores = -np.sort(random.exponential(size=shape).astype(np.float32), axis=1)
    hits = np.zeros(shape, bool)
    hits[np.arange(0, shape[0], 3), random.integers(0, shape[1], len(range(0, shape[0], 3)))] = True
    rewards = uncertainty_weighted(hits, scores, score="sum")
    return [
        (f"advantages {shape}", lambda: group_advantages(rewards), lambda: numpy_advantages(rewards)),
        (
            f"UGR reward + weight {shape}",
            lambda: (uncertainty_weighted(hits, scores, score="sum"), difficulty_weight(hits, scores)),
            lambda: numpy_reward_and_weight(hits, scores),
        ),
    ]


def calibration_rows(n: int, random: np.random.Generator) -> list[tuple[str, Callable, Callable]]:
    confidence = 1 / (1 + np.exp(-random.normal(1, 1.5, n).astype(np.float32)))
    correct = random.random(n) < confidence**1.3
    return [
        (
            f"ECE, equal width, n = {n}",
            lambda: calibration(confidence, correct).ece,
            lambda: numpy_width(confidence, correct),
        ),
        (
            f"ECE, equal mass, n = {n}",
            lambda: calibration(confidence, correct, binning="mass").ece,
            lambda: numpy_mass(confidence, correct),
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="calls that the median is over (default: 9)")
    parser.add_argument("--samples", type=int, default=1_000_000, help="confidences to calibrate (default: 1000000)")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    rows = [row for shape in ((64, 16), (1024, 16), (8192, 64)) for row in group_rows(shape, random)]
    rows += calibration_rows(options.samples, random)
    print(table_head("computation", "ugr-fast, ms", "NumPy, ms", "ratio"))
    for name, ours, theirs in rows:
        a, b = median_ms(ours, options.repeats), median_ms(theirs, options.repeats)
        print(table_row(name, a, b, ratio(b, a)), flush=True)


if __name__ == "__main__":
    main()
