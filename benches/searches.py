"""One step of a constrained beam search from the same state, again and again: ours, through the public interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from timing import median_ms_from
from ugr_fast import BeamSearch, SidTrie

DEPTHS = (1, 2, 4)
Scores = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """B prompts of K beams, and the threads that a search may use."""

    batch: int = 14
    num_beams: int = 10
    num_threads: int = 1


@dataclass(frozen=True)
class Level:
    """A depth of a search: what a step is given there, and the beams that it must keep.

    Attributes:
        depth: steps taken before.
        logprobs: (B * W, V) of the next token.
        prefixes: (B * W, depth) tokens so far.
        totals: (B, W) scores so far.
        num_candidates: allowed expansions of all beams.
        scores: (B, K) of the beams to keep, best first.
        parents: (B, K) of them.
        tokens: (B, K) of them.
    """

    depth: int
    logprobs: Scores
    prefixes: Ints
    totals: Scores
    num_candidates: int
    scores: Scores
    parents: Ints
    tokens: Ints


def depths_of(trie: SidTrie) -> tuple[int, ...]:
    """The depths to time that SIDs of this trie have."""
    return tuple(depth for depth in DEPTHS if depth < trie.depth)


def walk(trie: SidTrie, vocabulary: int, size: Size, rng: np.random.Generator) -> Iterator[Level]:
    """Search with random log-probs, down to the last depth that is timed."""
    search = BeamSearch(trie, size.batch, size.num_beams, num_threads=size.num_threads)
    totals = np.zeros((size.batch, 1), np.float32)
    for depth in range(max(depths_of(trie)) + 1):
        logprobs = random_logprobs(search.num_rows, vocabulary, rng)
        prefixes = search.tokens.reshape(search.num_rows, depth)
        num_candidates = int((search.candidates >= 0).sum())
        search.step(logprobs)
        parents, tokens = np.array(search.parents), np.array(search.last_tokens)
        if (tokens < 0).any():
            raise SystemExit(
                f"SIDs have fewer than {size.num_beams} beginnings of {depth + 1} tokens; take fewer --beams"
            )
        rows = parents + np.arange(size.batch)[:, None] * totals.shape[1]
        scores = np.take_along_axis(totals, parents, 1) + logprobs[rows, tokens]
        yield Level(depth, logprobs, prefixes, totals, num_candidates, scores, parents, tokens)
        totals = scores


def random_logprobs(rows: int, vocabulary: int, rng: np.random.Generator) -> Scores:
    logits = rng.standard_normal((rows, vocabulary), np.float32)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def step_ms(trie: SidTrie, levels: list[Level], size: Size, repeats: int) -> float:
    """Median milliseconds of the last level's step; those before it are replayed untimed."""

    def replay() -> BeamSearch:
        search = BeamSearch(trie, size.batch, size.num_beams, num_threads=size.num_threads)
        for level in levels[:-1]:
            search.step(level.logprobs)
        return search

    return median_ms_from(replay, lambda search: search.step(levels[-1].logprobs), repeats)
