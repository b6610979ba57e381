"""Tables as rows of cells, header first, and how they look in Markdown and in HTML.

A cell is text. What it ends with in brackets, the interval of a number as in "0.110 (0.101–0.119)", is set small below
the rest; a column of numbers is aligned to the right.
"""

from __future__ import annotations

import html
import re
from typing import Any, TypeAlias

from ugr_fast.report.read import is_number

Rows: TypeAlias = list[list[str]]

DASH = "–"
MARK = "†"
LOWER_IS_BETTER, NOT_GOOD_OR_BAD = ("ECE", "ECE recalibrated", "AURC"), ("base rate",)
NUMBER = re.compile(rf"[+−]?\d[\d.]*[%{MARK}]?(?: \(.*\))?|{DASH}")


def number(value: Any, digits: int = 4) -> str:
    """Return a number as a cell; a dash where there is none.

    Example:
        >>> number(0.5), number(None), number(-1, 1), number(-0.0001, 1)
        ('0.5000', '–', '−1.0', '0.0')
    """
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−") if is_number(value) else DASH


def measured(value: Any, low: Any, high: Any, digits: int = 4) -> str:
    """Return a number with its interval as a cell.

    Example:
        >>> measured(0.11, 0.101, 0.119, 3), measured(0.11, None, None, 3)
        ('0.110 (0.101–0.119)', '0.110')
    """
    band = f" ({number(low, digits)}{DASH}{number(high, digits)})" if is_number(low) and is_number(high) else ""
    return number(value, digits) + (band if is_number(value) else "")


def gained(value: Any, low: Any, high: Any, digits: int = 4) -> str:
    """Return a difference with its interval as a cell, all with their signs.

    Example:
        >>> gained(0.02, -0.01, 0.05, 2)
        '+0.02 (−0.01 to +0.05)'
    """
    value, low, high = (f"{x:+.{digits}f}".replace("-", "−") if is_number(x) else DASH for x in (value, low, high))
    return value if value == DASH else f"{value} ({low} to {high})"


def percent(value: Any) -> str:
    """Return a share as a cell.

    Example:
        >>> percent(0.1234)
        '12.3%'
    """
    return f"{100 * value:.1f}%" if is_number(value) else DASH


def plain(text: str) -> str:
    r"""Return text that Markdown shows as it is, on one line.

    Example:
        >>> print(plain("*a* | b"))
        \*a\* \| b
    """
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", escaped)


def markdown_table(rows: Rows, *, bold: bool = False) -> str:
    """Return rows of cells, header first, as a Markdown table; with `bold`, the best value of each column stands out.

    Example:
        >>> print(markdown_table([["model", "HR@10", "ECE"], ["a", "0.10", "0.3"], ["b", "0.20", "0.4"]], bold=True))
        | model | HR@10 | ECE |
        |:--|--:|--:|
        | a | 0.10 | **0.3** |
        | b | **0.20** | 0.4 |
    """
    best, numeric = best_cells(rows) if bold else set(), _numeric(rows)
    lines = [
        f"| {' | '.join(_markdown_cell(cell, best=(y, x) in best) for x, cell in enumerate(row))} |"
        for y, row in enumerate(rows)
    ]
    rule = "|".join("--:" if x in numeric else ":--" for x in range(len(rows[0])))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def html_table(rows: Rows, name: str, *, bold: bool = False) -> str:
    """Return rows of cells, header first, as an HTML table in a box that scrolls by itself, by keyboard too."""
    best, numeric = best_cells(rows) if bold else set(), _numeric(rows)
    kinds = [' class="n"' if x in numeric else "" for x in range(len(rows[0]))]
    head = "".join(f'<th scope="col"{kind}>{html.escape(cell)}</th>' for cell, kind in zip(rows[0], kinds, strict=True))
    body = []
    for y, row in enumerate(rows[1:], start=1):
        cells = [f"<td{kinds[x]}>{_html_cell(cell, best=(y, x) in best)}</td>" for x, cell in enumerate(row) if x]
        body.append(f'<tr><th scope="row">{html.escape(row[0])}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(name)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def best_cells(rows: Rows) -> set[tuple[int, int]]:
    """Return (row, column) of the best value of each column, as shown: equal digits are equally good."""
    best = set()
    for x in _numeric(rows):
        shown = {y: _value(row[x]) for y, row in enumerate(rows[1:], start=1) if row[x] != DASH}
        if len(shown) > 1 and rows[0][x] not in NOT_GOOD_OR_BAD:
            top = min(shown.values()) if rows[0][x] in LOWER_IS_BETTER else max(shown.values())
            best |= {(y, x) for y, value in shown.items() if value == top}
    return best


def _numeric(rows: Rows) -> set[int]:
    """Return the columns, but the first, that hold numbers."""
    columns = range(1, len(rows[0]))
    return {x for x in columns if all(NUMBER.fullmatch(row[x]) for row in rows[1:])}


def _value(cell: str) -> float:
    return float(cell.partition(" ")[0].rstrip(MARK + "%").replace("−", "-"))


def _markdown_cell(cell: str, *, best: bool) -> str:
    value, gap, band = cell.partition(" (") if best else (cell, "", "")
    return f"**{plain(value)}**{gap}{band}" if best else plain(cell)


def _html_cell(cell: str, *, best: bool) -> str:
    value, _, small = cell.removesuffix(")").partition(" (") if cell.endswith(")") else (cell, "", "")
    value = f"<b>{html.escape(value)}</b>" if best else html.escape(value)
    return f"{value}<small>{html.escape(small)}</small>" if small else value
