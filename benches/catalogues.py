"""The SID tables that the benchmarks search: three that anyone can draw, or one from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LENGTH, CODES, BOOK = 8, 2048, 128
BOOKS = 151_669 + BOOK * np.arange(LENGTH)  # eight codebooks behind a language model's vocabulary
DRAWN = ("uniform", "zipf", "codebooks")


@dataclass(frozen=True)
class Catalogue:
    """How to get a table; drawn or read anew in every process that needs it.

    Attributes:
        kind: one of `DRAWN`, or the path of a file.
        num_items: rows to draw.
        seed: of the drawn ones.
        columns: of the file, where their names do not tell.
        variant: of the file, where it holds several sets.
    """

    kind: str
    num_items: int = 0
    seed: int = 0
    columns: tuple[str, ...] = ()
    variant: str = ""

    def sids(self) -> NDArray[np.int64]:
        """Draw or read the (N, L) table: repeats and all, in no order."""
        if self.kind not in DRAWN:
            return read_sids(Path(self.kind), self.columns, self.variant)
        rng = np.random.default_rng(self.seed)
        table = np.empty((self.num_items, LENGTH), np.int64)
        for level in range(LENGTH):  # column by column: 20 million rows leave little room for temporaries
            table[:, level] = self._column(level, rng)
        return table

    def _column(self, level: int, rng: np.random.Generator) -> NDArray[np.int64]:
        if self.kind == "zipf":
            popularity = 1 / np.arange(1, CODES + 1)
            return rng.choice(CODES, self.num_items, p=popularity / popularity.sum())
        if self.kind == "codebooks":
            return BOOKS[level] + rng.integers(0, BOOK, self.num_items)
        return rng.integers(0, CODES, self.num_items)

    def vocabulary(self, sids: NDArray[np.int64]) -> int:
        """Count the columns of the scores: the vocabulary that the tokens live in."""
        if self.kind == "codebooks":
            return int(BOOKS[-1]) + BOOK
        return CODES if self.kind in DRAWN else int(sids.max()) + 1

    def name(self, vocabulary: int) -> str:
        """Name the table in a row of results."""
        label = self.kind if self.kind in DRAWN else f"{Path(self.kind).stem} {self.variant}".strip()
        return f"{label}, V={vocabulary}"


def read_sids(path: Path, columns: tuple[str, ...], variant: str) -> NDArray[np.int64]:
    """Read SIDs of one length from .npy (a 2-d array) or .parquet (a row per item, as `ugr-fast sids` writes it)."""
    if path.suffix == ".npy":
        sids = np.load(path).astype(np.int64)
    else:
        from ugr_fast.sids import read_codes

        sids = np.ascontiguousarray(read_codes(path, columns, variant=variant), np.int64)
    if sids.ndim != 2 or sids.shape[1] < 2 or sids.min() < 0:
        raise SystemExit(
            f"{path} must hold SIDs of one length, at least 2, with no padding: the tables of STATIC need it"
        )
    return sids
