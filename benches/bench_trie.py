"""Build a trie and take constrained beam steps, beside the two ways that others do it.

    python benches/bench_trie.py                                         # 100,000 items, a minute
    python benches/bench_trie.py --num-items 1000000                     # several minutes: the peers' builds
    python benches/bench_trie.py --num-items 1000000 --no-peers          # ours alone, seconds
    python benches/bench_trie.py --sids sids.parquet --columns a b c d   # your own catalogue

The peers:

    dict trie      nested Python dicts behind transformers' `PrefixConstrainedLogitsProcessor`, then `torch.topk`
    STATIC method  dense tables, then compressed sparse rows (arXiv 2602.22647); static_csr.py, in torch, d = 2 at
                   V = 2048. At V = 152,693 dense tables would take 117 GB: rows from the root, d = 0

Drawn catalogues: uniform codes; codes by Zipf's law; eight codebooks of 128 behind a language model's vocabulary. SIDs
have 8 tokens. A step scores B * K rows of log-probs, by default 14 prompts of 10 beams, and keeps the best K of each
prompt over all allowed expansions. Before anything is timed, all must keep the same beams with the same scores.

Times are medians, sorting included in builds. Memory is the size of the arrays, for dicts the growth of a fresh
process; the peak is that growth at its highest, without the input (in brackets: of what was built), and says little
below some megabytes. "x" columns: so many times slower, or larger, than this package.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
from catalogues import DRAWN, Catalogue
from numpy.typing import NDArray
from searches import Level, Size, depths_of, step_ms, walk
from timing import fresh, median_ms, memory_of, peak_cell, ratio, say, table_head, table_row, timed
from ugr_fast import SidTrie

COLUMNS = ("", "ugr-fast", "dict trie", "STATIC method", "dict trie, x", "STATIC, x")
DictTrie = dict[int, "DictTrie"]

# ---- what is built


def own_trie(sids: NDArray[np.int64], num_threads: int) -> SidTrie:
    return SidTrie.build(sids, num_threads=num_threads)


def own_bytes(trie: SidTrie) -> int:
    return sum(array.nbytes for array in trie.arrays().values())


def dict_trie(sids: list[list[int]]) -> DictTrie:
    root: DictTrie = {}
    for sid in sids:
        node = root
        for token in sid:
            node = node.setdefault(token, {})
    return root


def own_memory(catalogue: Catalogue, num_threads: int) -> tuple[float, float]:
    """Megabytes that stay, and those at the peak of the build; to be run in a fresh process, as the two below."""
    sids = catalogue.sids()
    own_trie(sids[:1], num_threads)  # what the first call of all allocates is no part of the build
    trie, peak, _ = memory_of(lambda: own_trie(sids, num_threads))
    return own_bytes(trie) / 1e6, peak


def dict_memory(catalogue: Catalogue) -> tuple[float, float]:
    sids = catalogue.sids().tolist()
    _, peak, size = memory_of(lambda: dict_trie(sids))
    return size, peak


def static_memory(catalogue: Catalogue) -> tuple[float, float]:
    import torch
    from static_csr import StaticCsr

    torch.set_num_threads(1)
    sids = catalogue.sids()
    vocabulary = catalogue.vocabulary(sids)
    StaticCsr.build(sids[:1], vocabulary)
    index, peak, _ = memory_of(lambda: StaticCsr.build(sids, vocabulary))
    return index.nbytes / 1e6, peak


# ---- the peers' steps


class DictPeer:
    """What a user of transformers runs."""

    def __init__(self, sids: NDArray[np.int64]) -> None:
        rows = sids.tolist()
        say(f"  dict trie, about {12 * len(rows) / 1e6:.0f} s ...")
        self.root, spent = timed(lambda: dict_trie(rows))
        self.build_ms = 1e3 * spent

    def allowed(self, _: int, prefix: Any) -> list[int]:
        """The tokens that may follow, as `prefix_allowed_tokens_fn` is asked for them."""
        node = self.root
        for token in prefix.tolist():
            node = node[token]
        return list(node)

    def step(self, level: Level) -> Callable[[], tuple[Any, Any, Any]]:
        """Return a call that takes the step: scores, parents and tokens of the beams kept."""
        import torch
        from transformers import PrefixConstrainedLogitsProcessor

        batch, beams = level.totals.shape
        processor = PrefixConstrainedLogitsProcessor(self.allowed, num_beams=beams)
        prefixes, logprobs = torch.from_numpy(level.prefixes), torch.from_numpy(level.logprobs)
        totals, num_beams = torch.from_numpy(level.totals).reshape(-1, 1), level.scores.shape[1]

        def step() -> tuple[Any, Any, Any]:
            masked = processor(prefixes, logprobs) + totals
            scores, index = torch.topk(masked.view(batch, -1), num_beams)
            return scores, index // logprobs.shape[1], index % logprobs.shape[1]

        return step


class StaticPeer:
    """The method of STATIC; its states are carried from one level to the next."""

    def __init__(self, sids: NDArray[np.int64], vocabulary: int, batch: int) -> None:
        import torch
        from static_csr import StaticCsr

        say(f"  tables of the STATIC method, about {5 * len(sids) / 1e6:.0f} s ...")
        self.build_ms = median_ms(lambda: StaticCsr.build(sids, vocabulary), 3)
        self.index = StaticCsr.build(sids, vocabulary)
        self.states = torch.zeros((batch, 1), dtype=torch.long)

    def step(self, level: Level, cut: int | None = None) -> Callable[[], tuple[Any, Any, Any]]:
        """As above; with a cut, only the best `cut` tokens of each beam compete."""
        import torch

        logprobs, totals = torch.from_numpy(level.logprobs), torch.from_numpy(level.totals)
        states, num_beams = self.states, level.scores.shape[1]

        def step() -> tuple[Any, Any, Any]:
            kept = self.index.step(level.depth, logprobs, totals, states, num_beams, cut)
            return kept.scores, kept.parents, kept.tokens

        return step

    def advance(self, level: Level) -> None:
        """Go to the states of the beams kept."""
        import torch

        arrays = map(torch.from_numpy, (level.logprobs, level.totals))
        self.states = self.index.step(level.depth, *arrays, self.states, level.scores.shape[1]).states


def check(level: Level, found: tuple[Any, Any, Any], peer: str) -> None:
    """Refuse to time what does not give the same answer."""
    for ours, theirs in zip((level.scores, level.parents, level.tokens), found, strict=True):
        message = f"{peer} keeps other beams at depth {level.depth}; if scores tie, draw others with --seed"
        np.testing.assert_array_equal(ours, theirs.numpy(), err_msg=message)


# ---- the table


def bench(catalogue: Catalogue, size: Size, options: argparse.Namespace) -> Iterator[str]:
    sids = catalogue.sids()
    vocabulary = catalogue.vocabulary(sids)
    name = catalogue.name(vocabulary)
    say(f"{name}: {len(sids)} items of {sids.shape[1]} tokens")
    memory = list(memory_rows(name, catalogue, size.num_threads, not options.no_peers))
    trie = own_trie(sids, size.num_threads)
    build = median_ms(lambda: own_trie(sids, size.num_threads), 3)
    peers = None if options.no_peers else (DictPeer(sids), StaticPeer(sids, vocabulary, size.batch))
    yield row(f"{name}: build, ms", build, *([peer.build_ms for peer in peers] if peers else []))
    yield from memory
    say("  steps ...")
    rng = np.random.default_rng(catalogue.seed)
    yield from step_rows(name, trie, peers, walk(trie, vocabulary, size, rng), size, options)


def memory_rows(name: str, catalogue: Catalogue, num_threads: int, peers: bool) -> Iterator[str]:
    found = [fresh(own_memory, catalogue, num_threads)]
    if peers:
        say("  the peers' memory ...")
        found += [fresh(dict_memory, catalogue), fresh(static_memory, catalogue)]
    sizes, peaks = zip(*found, strict=True)
    yield row(f"{name}: memory, MB", *sizes)
    cells = [peak_cell(peak, size) for size, peak in found]
    relative = [ratio(peak, peaks[0]) for peak in peaks[1:]]
    yield table_row(f"{name}: peak while building, MB", *pad(cells, 3), *pad(relative, 2))


def step_rows(
    name: str,
    trie: SidTrie,
    peers: tuple[DictPeer, StaticPeer] | None,
    walked: Iterator[Level],
    size: Size,
    options: argparse.Namespace,
) -> Iterator[str]:
    levels: list[Level] = []
    for level in walked:
        levels.append(level)
        label = f"{name}: step at depth {level.depth}"
        if level.depth in depths_of(trie):
            own = step_ms(trie, levels, size, options.repeats)
            peer_ms = peer_times(level, peers, options.repeats) if peers else []
            yield row(f"{label} ({level.num_candidates} candidates), ms", own, *peer_ms)
            if peers and options.tokens_per_beam:
                cut = cut_time(level, peers[1], options)
                yield row(f"{label}, STATIC's cut of {options.tokens_per_beam} a beam, ms", own, None, cut)
        if peers:
            peers[1].advance(level)


def peer_times(level: Level, peers: tuple[DictPeer, StaticPeer], repeats: int) -> list[float]:
    steps = [peer.step(level) for peer in peers]
    for step, peer in zip(steps, ("the dict trie", "the STATIC method"), strict=True):
        check(level, step(), peer)
    return [median_ms(steps[0], max(3, repeats // 10)), median_ms(steps[1], repeats)]


def cut_time(level: Level, peer: StaticPeer, options: argparse.Namespace) -> float:
    step = peer.step(level, options.tokens_per_beam)
    if options.tokens_per_beam >= options.beams:  # no beam can give more than K of the best K
        check(level, step(), "STATIC's cut")
    return median_ms(step, options.repeats)


def pad(cells: list[Any], length: int) -> list[Any]:
    return cells + [None] * (length - len(cells))


def row(label: str, own: float, dicts: float | None = None, static: float | None = None) -> str:
    return table_row(label, own, dicts, static, ratio(dicts, own), ratio(static, own))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=100_000, help="items of a drawn catalogue (default: 100000)")
    parser.add_argument("--cases", nargs="+", choices=DRAWN, default=DRAWN, help="drawn catalogues (default: all)")
    parser.add_argument("--sids", metavar="FILE", help="instead of drawing: SIDs from .npy (N, L) or .parquet")
    parser.add_argument(
        "--columns", nargs="+", default=(), help="columns of the .parquet (default: code_0, code_1, ...)"
    )
    parser.add_argument("--variant", default="", help="which set of a .parquet with a column `variant`")
    parser.add_argument("--batch", type=int, default=14, help="prompts B (default: 14)")
    parser.add_argument("--beams", type=int, default=10, help="beams K of each (default: 10)")
    parser.add_argument("--repeats", type=int, default=50, help="timed steps per row; a tenth for dicts (default: 50)")
    parser.add_argument("--no-peers", action="store_true", help="this package alone")
    parser.add_argument(
        "--tokens-per-beam",
        type=int,
        help="also time STATIC's cut to the best few of each beam, exact from K on; 30 as published",
    )
    parser.add_argument("--threads", type=int, default=1, help="`num_threads` of this package (default: 1)")
    parser.add_argument("--peer-threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of SIDs and scores (default: 0)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if not options.no_peers:
        import torch

        torch.set_num_threads(options.peer_threads)
    kinds = (options.sids,) if options.sids else options.cases
    gradients = nullcontext() if options.no_peers else torch.inference_mode()
    source = (options.num_items, options.seed, tuple(options.columns), options.variant)
    size = Size(options.batch, options.beams, options.threads)
    print(f"{options.batch} prompts of {options.beams} beams, median of {options.repeats} steps\n")
    print(table_head(*COLUMNS), flush=True)
    with gradients:
        for kind in kinds:
            for line in bench(Catalogue(kind, *source), size, options):
                print(line, flush=True)


if __name__ == "__main__":
    main()
