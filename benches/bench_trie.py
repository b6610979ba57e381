"""Build a trie and take constrained beam steps, beside a dict trie with transformers' processor.

    python benches/bench_trie.py --num-items 1000000

A step scores B * M = 140 rows (14 prompts of 10 beams) and picks the best 10 of each prompt. The peer masks
the vocabulary with `PrefixConstrainedLogitsProcessor` and takes `torch.topk`; both must find the same scores.
One thread each; times are medians; a ratio above 1 says how many times faster this package is.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ugr_fast import BeamSearch, SidTrie

BATCH, NUM_BEAMS, LENGTH = 14, 10, 8
DEPTHS = (1, 2, 4)


@dataclass(frozen=True)
class Case:
    """A catalogue: (N, L) SIDs with repeats, and the size of the vocabulary they live in."""

    name: str
    sids: NDArray[np.int64]
    vocabulary: int


def cases(num_items: int, rng: np.random.Generator) -> list[Case]:
    shape = (num_items, LENGTH)
    popularity = 1 / np.arange(1, 2049)
    zipf = rng.choice(2048, shape, p=popularity / popularity.sum())
    language_model = 151_669 + 128 * np.arange(LENGTH) + rng.integers(0, 128, shape)  # 8 codebooks at the end
    return [
        Case("uniform, V=2048", rng.integers(0, 2048, shape), 2048),
        Case("Zipf, V=2048", zipf, 2048),
        Case("codebooks, V=152693", language_model, 152_693),
    ]


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def dict_trie(sids: list[list[int]]) -> dict[int, dict]:
    root: dict[int, dict] = {}
    for sid in sids:
        node = root
        for token in sid:
            node = node.setdefault(token, {})
    return root


def dict_trie_bytes(sids: list[list[int]]) -> int:
    tracemalloc.start()
    trie = dict_trie(sids)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del trie
    return size


def peer_step(root: dict[int, dict], search: BeamSearch, scores: NDArray[np.float32]) -> Callable[[], object]:
    """What a user of transformers runs for the same step; returns the scores it keeps."""
    import torch
    from transformers import PrefixConstrainedLogitsProcessor

    torch.set_num_threads(1)

    def allowed(_: int, prefix: torch.Tensor) -> list[int]:
        node = root
        for token in prefix.tolist():
            node = node[token]
        return list(node)

    processor = PrefixConstrainedLogitsProcessor(allowed, num_beams=search.width)
    prefixes = torch.from_numpy(search.tokens.reshape(search.num_rows, search.depth))
    totals = torch.from_numpy(search._scores.reshape(-1, 1))
    logprobs = torch.from_numpy(scores)

    def step() -> torch.Tensor:
        masked = processor(prefixes, logprobs) + totals
        return torch.topk(masked.view(BATCH, -1), NUM_BEAMS).values

    return step


def own_step(search: BeamSearch, scores: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    """One step from the same state every time."""
    state = dict(vars(search))

    def step() -> NDArray[np.float32]:
        vars(search).update(state, _levels=list(state["_levels"]))
        search.step(scores)
        return search._scores

    return step


def random_scores(rows: int, vocabulary: int, rng: np.random.Generator) -> NDArray[np.float32]:
    logits = rng.standard_normal((rows, vocabulary), np.float32)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def step_rows(case: Case, trie: SidTrie, root: dict | None, repeats: int, rng: np.random.Generator) -> list[str]:
    search, lines = BeamSearch(trie, BATCH, NUM_BEAMS), []
    for depth in range(max(DEPTHS) + 1):
        scores = random_scores(search.num_rows, case.vocabulary, rng)
        num_candidates = int((search.candidates >= 0).sum())
        peer = peer_step(root, search, scores) if root is not None and depth in DEPTHS else None
        own = own_step(search, scores)
        if depth in DEPTHS:
            if peer is not None:
                np.testing.assert_allclose(own(), np.asarray(peer()), rtol=1e-6)
            theirs = milliseconds(peer, max(3, repeats // 10)) if peer is not None else None
            label = f"{case.name}: step at depth {depth} ({num_candidates} candidates), ms"
            lines.append(table_row(label, milliseconds(own, repeats), theirs))
        own()
    return lines


def table_row(label: str, own: float, peer: float | None) -> str:
    if peer is None:
        return f"| {label} | {own:.3g} | | |"
    return f"| {label} | {own:.3g} | {peer:.3g} | {peer / own:.0f} |"


def bench(case: Case, peers: bool, repeats: int, rng: np.random.Generator) -> list[str]:
    trie = SidTrie.build(case.sids)
    build = milliseconds(lambda: SidTrie.build(case.sids), 3)
    megabytes = sum(array.nbytes for array in trie.arrays().values()) / 1e6
    if not peers:
        lines = [(f"{case.name}: build, ms", build, None), (f"{case.name}: memory, MB", megabytes, None)]
        return [*(table_row(*line) for line in lines), *step_rows(case, trie, None, repeats, rng)]
    sids = case.sids.tolist()
    lines = [
        (f"{case.name}: build, ms", build, milliseconds(lambda: dict_trie(sids), 1)),
        (f"{case.name}: memory, MB", megabytes, dict_trie_bytes(sids) / 1e6),
    ]
    return [*(table_row(*line) for line in lines), *step_rows(case, trie, dict_trie(sids), repeats, rng)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=100_000, help="items per catalogue (default: 100000)")
    parser.add_argument("--repeats", type=int, default=50, help="timed steps per line (default: 50)")
    parser.add_argument("--no-peers", action="store_true", help="leave out the dict trie and transformers")
    parser.add_argument("--seed", type=int, default=0, help="seed of SIDs and scores (default: 0)")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(f"{args.num_items} items of {LENGTH} tokens; {BATCH} prompts of {NUM_BEAMS} beams\n")
    print("| | ugr-fast | dict trie + transformers | ratio |\n|---|---:|---:|---:|")
    for case in cases(args.num_items, rng):
        print("\n".join(bench(case, not args.no_peers, args.repeats, rng)), flush=True)


if __name__ == "__main__":
    main()
