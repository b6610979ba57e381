"""One report of evaluated runs, to look at: tables, curves, confidence, decisions, promises, users, settings.

Reads run directories only (config.json, metrics.jsonl, best.json, eval-SPLIT.json, outcomes-SPLIT.safetensors) and
writes::

    OUT/
      report.md     for a terminal or a code host; its figures are the PNG files
      report.html   the same in one file: figures inline, light and dark, nothing fetched from anywhere
      figures/      each figure as PNG and SVG

A report is a list of blocks, each made as Markdown and as HTML at once, so the two always say the same. Its rooms::

    shape ── what an evaluation must hold
    read ── what run directories say         tables ── cells and tables in both forms
    figures ── colours, axes, pictures       blocks ── headings, paragraphs, tables, galleries
        comparison · training · confidence · decisions · users · settings ── the sections, with their words
            page ── the sections in order, written to OUT

and each imports only those above it.
"""

from ugr_fast.report.comparison import FOOTNOTE, table
from ugr_fast.report.page import write

__all__ = ["FOOTNOTE", "table", "write"]
