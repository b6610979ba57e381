"""Advantages, UGR's reward with weight, and all of it from tokens, beside short NumPy and torch lines.

    python benches/bench_math.py

Prints a Markdown table of medians, one thread, calls in turns. A ratio below 1 says how much slower this package is
than the faster of the two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import reduce
from operator import add, and_
from typing import Any

import numpy as np
import torch
from timing import medians_in_turns, ratio, table_head, table_row
from ugr_fast import group_advantages
from ugr_fast.rewards import difficulty_weight, ugr, uncertainty_weighted

Row = tuple[str, Callable[[], object], Callable[[], object], Callable[[], object]]


def numpy_advantages(rewards: np.ndarray) -> np.ndarray:
    return (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)


def torch_advantages(rewards: torch.Tensor) -> torch.Tensor:
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


def numpy_reward_and_weight(hits: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = hits.any(1, keepdims=True)
    s = np.where(hits, -np.inf, scores)
    weight = np.exp(s - s.max(1, keepdims=True))
    reward = np.where(hits, 1, -weight / weight.sum(1, keepdims=True)) * found
    rank = np.where(found[:, 0], hits.argmax(1), hits.shape[1] - 1)
    return reward, rank / (hits.shape[1] - 1)


def torch_reward_and_weight(hits: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = hits.any(1, keepdim=True)
    share = torch.softmax(scores.masked_fill(hits, -torch.inf), 1)
    reward = torch.where(hits, 1.0, -share) * found
    rank = torch.where(found[:, 0], hits.byte().argmax(1), hits.shape[1] - 1)
    return reward, rank / (hits.shape[1] - 1)


def hits_and_lengths(tokens: Any, target: Any) -> tuple[Any, Any]:
    """Level by level: for both libraries faster than a reduction over the short last axis."""
    levels = range(tokens.shape[2])
    hits = reduce(and_, (tokens[..., level] == target[:, level, None] for level in levels))
    return hits, reduce(add, (1.0 * (tokens[..., level] >= 0) for level in levels))


def numpy_signal(tokens: np.ndarray, target: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, ...]:
    hits, lengths = hits_and_lengths(tokens, target)
    reward, weight = numpy_reward_and_weight(hits, scores / lengths)
    return hits, reward, weight, numpy_advantages(reward)


def torch_signal(tokens: torch.Tensor, target: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
    hits, lengths = hits_and_lengths(tokens, target)
    reward, weight = torch_reward_and_weight(hits, scores / lengths)
    return hits, reward, weight, torch_advantages(reward)


def group_rows(shape: tuple[int, int], random: np.random.Generator) -> list[Row]:
    """A hit in every third group, as in the tables of others' runs."""
    tokens, target = random.integers(0, 256, (*shape, 4)), random.integers(0, 256, (shape[0], 4))
    scores = -np.sort(random.exponential(size=shape).astype(np.float32), axis=1)
    rows = np.arange(0, shape[0], 3)
    tokens[rows, random.integers(0, shape[1], len(rows))] = target[rows]
    signal = ugr(tokens, target, scores)
    rewards, hits = signal.rewards, signal.hits
    r, h, s, t, g = (torch.from_numpy(x) for x in (rewards, hits, scores, tokens, target))
    return [
        (
            f"advantages {shape}",
            lambda: group_advantages(rewards),
            lambda: numpy_advantages(rewards),
            lambda: torch_advantages(r),
        ),
        (
            f"UGR reward + weight {shape}",
            lambda: (uncertainty_weighted(hits, scores, score="sum"), difficulty_weight(hits, scores)),
            lambda: numpy_reward_and_weight(hits, scores),
            lambda: torch_reward_and_weight(h, s),
        ),
        (
            f"UGR from tokens {shape}",
            lambda: ugr(tokens, target, scores),
            lambda: numpy_signal(tokens, target, scores),
            lambda: torch_signal(t, g, s),
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25, help="calls that the median is over (default: 25)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    rows = [row for shape in ((64, 16), (1024, 16), (8192, 64)) for row in group_rows(shape, random)]
    print(table_head("computation", "ugr-fast, ms", "NumPy, ms", "torch, ms", "ratio"))
    for name, *calls in rows:
        medians_in_turns(1, *calls)  # not counted
        ours, *theirs = (1e3 * seconds for seconds in medians_in_turns(options.repeats, *calls))
        print(table_row(name, ours, *theirs, ratio(min(theirs), ours)), flush=True)


if __name__ == "__main__":
    main()
