"""The parts of a report, each as Markdown and as HTML at once."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ugr_fast.report.figures import Picture, inline_svg, slug
from ugr_fast.report.tables import Rows, html_table, markdown_table, plain


class Block(NamedTuple):
    """A part of the report, in both forms."""

    markdown: str
    html: str
    pictures: Sequence[Picture] = ()


def heading(text: str, level: int = 2) -> Block:
    """Return a heading that can be linked to."""
    return Block(f"{'#' * level} {plain(text)}", f'<h{level} id="{slug(text)}">{html.escape(text)}</h{level}>')


def paragraph(text: str) -> Block:
    """Return a paragraph."""
    return Block(plain(text), f"<p>{html.escape(text)}</p>")


def note(text: str) -> Block:
    """Return a paragraph in small print: how to read what stands above it."""
    return Block(plain(text), f'<p class="note">{html.escape(text)}</p>')


def bullets(texts: Sequence[str]) -> Block:
    """Return a list, of which the first entry is the most important."""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return Block("\n".join(f"* {plain(text)}" for text in texts), f'<ul class="headline">{items}</ul>')


def numbers(rows: Rows, name: str, *, bold: bool = False) -> Block:
    """Return a table, header first; with `bold`, the best value of each column stands out."""
    return Block(markdown_table(rows, bold=bold), html_table(rows, name, bold=bold))


def gallery(pictures: Sequence[Picture], kind: Literal["", "pairs", "small"] = "") -> Block:
    """Return pictures side by side: as many as there is room for, in pairs, or small ones."""
    shown = [
        f"![{plain(picture.title)}](figures/{picture.name}.png)\n\n*{plain(picture.caption)}*" for picture in pictures
    ]
    drawn = [
        f"<figure>{inline_svg(picture)}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
        for picture in pictures
    ]
    return Block("\n\n".join(shown), f'<div class="{f"gallery {kind}".strip()}">{"".join(drawn)}</div>', pictures)
