"""A step of the search with tensors beside the kernel's, for log-probs that lie on a device.

    python benches/bench_device.py                      # CPU: a minute
    python benches/bench_device.py --device cuda        # or another accelerator

Both take the same step from the same beams, and must keep the same ones before anything is timed. On an accelerator the
kernel's time holds what it needs there: its candidates go up, their log-probs come down, and both ends wait. "cells":
what the tensors hold, padding included. "x": so many times slower than the kernel.

The second table times ways to select the best with the exact order of ties: "sort", a stable sort of all; "count", the
places of the kept ones by a running count and a scatter; "pack", `topk` of value and column in 64 bits, for float32
alone; and, beside them, `topk` alone, which leaves ties open.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from catalogues import DRAWN, Catalogue
from searches import Level, Size, depths_of, walk
from timing import median_ms, median_ms_from, say, shown, table_head, table_row
from torch import Tensor
from ugr_fast import BeamSearch, SidTrie
from ugr_fast.device import DeviceSearch, DeviceTrie, _best

COLUMNS = ("SIDs", "depth", "candidates", "cells", "kernel, ms", "tensors, ms", "x")
SHAPES = ((14, 10, 434), (4, 16, 512))


def kernel_step(search: BeamSearch, logprobs: Tensor) -> None:
    """Take a step where the log-probs are: as they lie in memory, or those of the candidates brought from a device."""
    if logprobs.device.type == "cpu":
        search.step(logprobs.numpy())
    else:
        candidates = torch.from_numpy(search.candidates).to(logprobs.device)
        search.step(logprobs.gather(1, candidates.clamp(min=0)).cpu().numpy(), over="candidates")


def tensor_step(search: DeviceSearch, logprobs: Tensor) -> None:
    search.step(logprobs)
    wait(logprobs.device)


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def step_row(name: str, trie: SidTrie, device_trie: DeviceTrie, levels: list[Level], size: Size, repeats: int) -> str:
    """Time the step of the last level; those before it are replayed untimed."""
    logprobs = [torch.from_numpy(level.logprobs).to(device_trie.device) for level in levels]

    def at_kernel() -> BeamSearch:
        search = BeamSearch(trie, size.batch, size.num_beams)
        for level in levels[:-1]:
            search.step(level.logprobs)
        return search

    def at_tensors() -> DeviceSearch:
        search = DeviceSearch(device_trie, size.batch, size.num_beams)
        for scores in logprobs[:-1]:
            tensor_step(search, scores)
        return search

    search = at_tensors()
    cells = search.candidates.numel()
    tensor_step(search, logprobs[-1])
    for found, expected in ((search.parents, levels[-1].parents), (search.last_tokens, levels[-1].tokens)):
        np.testing.assert_array_equal(found.cpu().numpy(), expected)
    kernel = median_ms_from(at_kernel, lambda search: kernel_step(search, logprobs[-1]), repeats)
    tensors = median_ms_from(at_tensors, lambda search: tensor_step(search, logprobs[-1]), repeats)
    last = levels[-1]
    times = shown(tensors / kernel) + "x"
    return table_row(name, str(last.depth), str(last.num_candidates), str(cells), kernel, tensors, times)


def steps_table(catalogue: Catalogue, size: Size, device: torch.device, repeats: int) -> None:
    say(f"{catalogue.kind} ...")
    sids = catalogue.sids()
    trie, vocabulary = SidTrie.build(sids), catalogue.vocabulary(sids)
    device_trie = DeviceTrie(trie, device)
    levels = list(walk(trie, vocabulary, size, np.random.default_rng(1)))
    for depth in depths_of(trie):
        row = step_row(catalogue.name(vocabulary), trie, device_trie, levels[: depth + 1], size, repeats)
        print(row, flush=True)


# ---- selection


def sort(keys: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    values, columns = keys.sort(dim=1, descending=True, stable=True)
    return values[:, :num_best], columns[:, :num_best]


def count(keys: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    last = keys.topk(num_best, 1).values[:, -1:]
    above, equal = keys > last, keys == last
    kept = above | (equal & (equal.cumsum(1) <= num_best - above.sum(1, keepdim=True)))
    place = torch.where(kept, kept.cumsum(1) - 1, num_best)
    columns = torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
    columns = torch.zeros_like(columns[:, : num_best + 1]).scatter_(1, place, columns)[:, :num_best]
    values, order = keys.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def pack(keys: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    bits = keys.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers, in the order of the floats
    countdown = torch.arange(keys.shape[1] - 1, -1, -1, device=keys.device)
    best = ((ordered.long() << 32) | countdown).topk(num_best, 1).values
    columns = keys.shape[1] - 1 - (best & 0xFFFFFFFF)
    return keys.gather(1, columns), columns


def topk(keys: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    return tuple(keys.topk(num_best, 1))


WAYS: tuple[Callable[[Tensor, int], tuple[Tensor, Tensor]], ...] = (_best, sort, count, pack, topk)


def selection_row(batch: int, width: int, cells: int, num_best: int, device: torch.device, repeats: int) -> str:
    keys = torch.randn(batch * width, cells, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    keys = keys.view(batch, -1).to(device)
    coarse = keys.mul(2).round()
    for way in WAYS[1:4]:
        for values in (keys, coarse):
            assert all(map(torch.equal, _best(values, num_best), way(values, num_best)))

    def timed(way: Callable[[Tensor, int], object]) -> float:
        return median_ms(lambda: (way(keys, num_best), wait(device)), repeats)

    return table_row(f"({batch}, {width} * {cells}), K={num_best}", *map(timed, WAYS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--num-items", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=14, help="prompts")
    parser.add_argument("--beams", type=int, default=10, help="of each prompt")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = Size(options.batch, options.beams)
    threads = f"{options.threads} thread(s)"
    print(f"{options.num_items} items, B={size.batch}, K={size.num_beams}, {options.device}, {threads}")
    print(f"\n{table_head(*COLUMNS)}", flush=True)
    for kind in DRAWN:
        steps_table(Catalogue(kind, options.num_items), size, options.device, options.repeats)
    print(f"\n{table_head('keys', *(way.__name__.strip('_') for way in WAYS))}", flush=True)
    for batch, width, cells in SHAPES:
        print(selection_row(batch, width, cells, max(width, size.num_beams), options.device, options.repeats))


if __name__ == "__main__":
    main()
