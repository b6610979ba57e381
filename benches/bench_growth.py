"""How build, memory and step grow with the catalogue: 10,000 to 20 million items of 8 tokens, V = 2048.

    python benches/bench_growth.py --max-items 1000000                        # a minute
    python benches/bench_growth.py --plot docs/growth.png                     # to 2e7: minutes, and 6 GB of memory

Prints a Markdown table and draws it. Codes are uniform, or by Zipf's law. Each size has a process of its own. A build
takes an int64 table in no order and includes sorting; the peak is by how much the process grows at its highest
meanwhile, without the input (in brackets: of the trie). A step scores 140 rows, 14 prompts of 10 beams; its time
follows the number of allowed candidates (shown at depth 1), which the vocabulary bounds, and not the number of items.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from catalogues import Catalogue
from searches import DEPTHS, Size, step_ms, walk
from timing import fresh, memory_of, peak_cell, say, seconds, table_head, table_row, timed
from ugr_fast import SidTrie

SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 20_000_000)
KINDS = ("uniform", "zipf")
COLUMNS = ("items", "codes", "build, s", "trie, MB", "peak, MB", "candidates", *(f"step {d}, ms" for d in DEPTHS))
COLOURS = {"uniform": "#1f6f8b", "zipf": "#d1793b"}


@dataclass(frozen=True)
class Point:
    """What was measured for one catalogue: seconds, megabytes (of the trie, at the peak) and milliseconds per depth."""

    kind: str
    num_items: int
    build: float
    size: float
    peak: float
    candidates: int
    steps: tuple[float, ...]

    def row(self) -> str:
        """The point as a row of the table."""
        peak = peak_cell(self.peak, self.size)
        numbers = (self.build, self.size, peak, str(self.candidates), *self.steps)
        return table_row(f"{self.num_items:.0e}".replace("e+0", "e"), self.kind, *numbers)


def point(catalogue: Catalogue, num_threads: int, repeats: int) -> Point:
    """Measure one catalogue; to be run in a fresh process."""
    sids = catalogue.sids()
    build = partial(SidTrie.build, num_threads=num_threads)
    build(sids[:1])
    (trie, first), peak, _ = memory_of(lambda: timed(lambda: build(sids)))
    again = [seconds(lambda: build(sids)) for _ in range(4 if len(sids) <= 1_000_000 else 0)]
    size = sum(array.nbytes for array in trie.arrays().values()) / 1e6
    levels, steps = [], {}
    search_size = Size(num_threads=num_threads)
    for level in walk(trie, catalogue.vocabulary(sids), search_size, np.random.default_rng(catalogue.seed)):
        levels.append(level)
        if level.depth in DEPTHS:
            steps[level.depth] = step_ms(trie, levels, search_size, repeats)
    median = float(np.median([first, *again]))
    candidates = levels[DEPTHS[0]].num_candidates
    return Point(catalogue.kind, len(sids), median, size, peak, candidates, tuple(steps.values()))


def draw(points: list[Point], path: Path) -> None:
    """Draw three panels over the number of items, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (builds, sizes, steps) = pyplot.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for kind in dict.fromkeys(point.kind for point in points):
        line = [point for point in points if point.kind == kind]
        items = [point.num_items for point in line]
        look = {"color": COLOURS[kind], "marker": "o", "markersize": 4}
        builds.plot(items, [point.build for point in line], label=kind, **look)
        sizes.plot(items, [point.size for point in line], label=f"{kind}, trie", **look)
        sizes.plot(items, [point.peak for point in line], label=f"{kind}, peak of build", linestyle=":", **look)
        for i, (depth, style) in enumerate(zip(DEPTHS, ("-", "--", ":"), strict=True)):
            took = [point.steps[i] for point in line]
            steps.plot(items, took, label=f"{kind}, depth {depth}", linestyle=style, **look)
    for axes, title in zip((builds, sizes, steps), ("build, s", "memory, MB", "beam step, ms"), strict=True):
        finish(axes, title)
    steps.set_ylim(1e-3, 1)  # two decades more than it needs, or a rise by half would look like growth
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def finish(axes: Any, title: str) -> None:
    axes.set(xscale="log", yscale="log", title=title, xlabel="items")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-items", type=int, default=SIZES[-1], help="leave out larger sizes (default: 20000000)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="how codes are drawn (default: both)")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="write the figure there, e.g. docs/growth.png")
    parser.add_argument("--repeats", type=int, default=200, help="timed steps (default: 200)")
    parser.add_argument("--threads", type=int, default=1, help="`num_threads` of build and search (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of SIDs and scores (default: 0)")
    options = parser.parse_args()
    print(table_head(*COLUMNS), flush=True)
    points = []
    for num_items in (size for size in SIZES if size <= options.max_items):
        for kind in options.kinds:
            say(f"{kind}, {num_items} items ...")
            points.append(fresh(point, Catalogue(kind, num_items, options.seed), options.threads, options.repeats))
            print(points[-1].row(), flush=True)
    if options.plot:
        draw(points, options.plot)


if __name__ == "__main__":
    main()
