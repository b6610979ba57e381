"""Filters, changes, draws and files at catalogue scale, beside what one would do without them.

    python benches/bench_catalogue.py                           # a million items: a minute
    python benches/bench_catalogue.py --num-items 100000

SIDs have 8 tokens: uniform codes, codes by Zipf's law, and eight codebooks behind a language model's vocabulary. A step
has 140 rows, 14 prompts of 10 beams; depths count the tokens chosen before. Without filters one would build a trie of
what is left for every request; without changes, build anew. Times are medians of one thread, in milliseconds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from catalogues import DRAWN, Catalogue
from numpy.typing import NDArray
from searches import random_logprobs
from timing import median_ms, median_ms_from, ratio, say, seconds, table_head, table_row
from ugr_fast import BeamSearch, SidTrie

BATCH, BEAMS = 14, 10
Rows = Iterator[tuple[str, float, float | None]]


def step_ms(trie: SidTrie, vocabulary: int, depth: int, repeats: int, **settings: Any) -> float:
    """Median milliseconds of the step after `depth` tokens; those before it are replayed untimed."""
    rng = np.random.default_rng(depth)
    search = BeamSearch(trie, BATCH, BEAMS, **settings)
    scores = []
    for _ in range(depth + 1):
        scores.append(random_logprobs(search.num_rows, vocabulary, rng))
        search.step(scores[-1])

    def replay() -> BeamSearch:
        again = BeamSearch(trie, BATCH, BEAMS, **settings)
        for earlier in scores[:-1]:
            again.step(earlier)
        return again

    return median_ms_from(replay, lambda search: search.step(scores[-1]), repeats)


def filters(trie: SidTrie, sids: NDArray[np.int64], vocabulary: int, repeats: int) -> Rows:
    first = seconds(lambda: trie.filter(deny=[0]))
    yield "the first filter or change, which indexes the items", 1e3 * first, None
    plain = [step_ms(trie, vocabulary, depth, repeats) for depth in (0, 1, 4)]
    for depth, spent in zip((0, 1, 4), plain, strict=True):
        yield f"step at depth {depth}, no filter", spent, None
    chosen = np.random.default_rng(1).permutation(len(sids))[: len(sids) // 100]
    left = np.delete(np.arange(len(sids)), chosen)
    for name, kept in (("deny", left), ("allow", chosen)):
        prepare = median_ms(lambda name=name: trie.filter(**{name: chosen}), repeats)
        rebuild = median_ms(lambda kept=kept: SidTrie.build(sids[kept], kept), 3)
        yield f"{name} {len(chosen)} items: prepare, beside a trie of what is left", prepare, rebuild
        lists = [np.random.default_rng(row).permutation(len(sids))[: len(chosen)] for row in range(BATCH)]
        narrow = trie.filter(**{name: lists})
        for depth in (0, 1, 4):
            spent = step_ms(trie, vocabulary, depth, repeats, filter=narrow)
            yield f"{name} {len(chosen)} items, a list for each prompt: step at depth {depth}", spent, None


def changes(trie: SidTrie, sids: NDArray[np.int64], vocabulary: int, repeats: int) -> Rows:
    rng = np.random.default_rng(2)
    new = np.stack([rng.permutation(column)[:1000] for column in sids.T], axis=1)
    ids, old = np.arange(len(sids), len(sids) + 1000), rng.permutation(len(sids))[:1000]
    more = trie.add(new, ids)
    whole, every = np.concatenate([sids, new]), np.arange(len(sids) + 1000)
    rebuild = median_ms(lambda: SidTrie.build(whole, every), 3)
    yield "add 1000 items, beside a build", median_ms(lambda: trie.add(new, ids), repeats), rebuild
    yield "remove 1000 items, beside a build", median_ms(lambda: trie.remove(old), repeats), rebuild
    yield "add 1 item, beside a build", median_ms(lambda: trie.add(new[:1], ids[:1]), repeats), rebuild
    yield "remove 1 item after those 1000, beside a build", median_ms(lambda: more.remove(old[:1]), repeats), rebuild
    yield "compact", median_ms(more.compact, 3), None
    yield "step at depth 1 on the changed trie", step_ms(more, vocabulary, 1, repeats), None


def rules(trie: SidTrie, vocabulary: int, repeats: int) -> Rows:
    ways: list[tuple[str, dict[str, Any]]] = [
        ('normalize="allowed"', {"normalize": "allowed"}),
        ('normalize="full"', {"normalize": "full"}),
        ('normalize="full", 2 threads', {"normalize": "full", "num_threads": 2}),
        ("stochastic", {"method": "stochastic"}),
        ("sample", {"method": "sample"}),
        ("5 groups", {"num_groups": 5, "diversity": 1.0}),
    ]
    for name, settings in ways:
        for depth in (1, 4):
            yield f"step at depth {depth}, {name}", step_ms(trie, vocabulary, depth, repeats, **settings), None


def files(trie: SidTrie, repeats: int) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "items.safetensors")
        yield "save", median_ms(lambda: trie.save(path), 3), None
        checked = median_ms(lambda: SidTrie.load(path), 3)
        yield "load, checked", checked, None
        yield "load(check=False)", median_ms(lambda: SidTrie.load(path, check=False), repeats), checked
        mapped: Callable[[], SidTrie] = lambda: SidTrie.load(path, check=False, mmap=True)  # noqa: E731
        yield "load(check=False, mmap=True)", median_ms(mapped, repeats), checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=1_000_000, help="items of a catalogue (default: 1000000)")
    parser.add_argument("--cases", nargs="+", choices=DRAWN, default=DRAWN, help="catalogues (default: all)")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls per row (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of SIDs (default: 0)")
    options = parser.parse_args()
    print(table_head("", "ugr-fast, ms", "beside, ms", "ratio"), flush=True)
    for kind in options.cases:
        catalogue = Catalogue(kind, options.num_items, options.seed, (), "")
        sids = catalogue.sids()
        vocabulary = catalogue.vocabulary(sids)
        say(f"{catalogue.name(vocabulary)} ...")
        trie = SidTrie.build(sids)
        for part in (
            filters(trie, sids, vocabulary, options.repeats),
            changes(trie, sids, vocabulary, options.repeats),
            rules(trie, vocabulary, options.repeats),
            files(trie, options.repeats),
        ):
            for label, spent, beside in part:
                name = f"{catalogue.name(vocabulary)}: {label}"
                print(table_row(name, spent, beside, ratio(beside, spent)), flush=True)


if __name__ == "__main__":
    main()
