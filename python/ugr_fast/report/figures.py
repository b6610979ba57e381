"""How figures look: few fixed colours, axes, bands, legends that cover nothing, PNG and SVG.

Inside report.html the colours become CSS variables, which is how one SVG is legible on white, on black and on paper.
Runs differ in colour and in marker, sources of confidence in line style, so both are told apart in grey too.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#dde1e6", "#fdfdfd"
DARK = {INK: "#e6edf3", MUTED: "#9aa4af", GRID: "#343b44", PAPER: "#14181d"}
RUN_COLOURS = {  # on light ground: on dark ground
    "#1f6fd0": "#6cb0ff",
    "#ba5209": "#ff9d52",
    "#1a7f52": "#4fcf92",
    "#8347c9": "#c596ff",
    "#c4284b": "#ff7f99",
    "#087a89": "#46c8d8",
    "#766900": "#d8c645",
}
MARKERS = "osD^vPX"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--run{number}" for number, colour in enumerate(RUN_COLOURS)
}  # colour of the figures: its CSS variable in report.html
STYLE = {
    "text.usetex": False,
    "text.parse_math": False,  # a "$" in the name of a folder is a dollar
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "ugr-fast",  # the same report twice is the same file twice
}
SIZE, SMALL = (4.2, 3.0), (3.2, 2.5)
SOURCES = {"confidence": "-", "likelihood": ":", "fixed": "-.", "random": "--"}


class Picture(NamedTuple):
    """A drawn figure, the name of its files, its title, and how to read it."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


def draw(name: str, title: str, caption: str, figure: Figure) -> Picture:
    """Return the figure as SVG and as PNG."""
    svg, png = StringIO(), BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # keep the layout just found: to find it is half the work
    figure.savefig(png, format="png", dpi=160)
    return Picture(slug(name), title, caption, svg.getvalue(), png.getvalue())


def require_matplotlib() -> Any:
    """Return matplotlib.

    Raises:
        ImportError: it is missing; the message says how to get it.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("a report needs matplotlib for its figures: pip install ugr-fast[plot]") from error
    return matplotlib


def axes_of(title: str, across: str, up: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Return an empty figure with titled axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot(title=title, xlabel=across, ylabel=up)


def legend(figure: Figure, axes: Axes) -> None:
    """Put the legend below the axes, and make the figure higher by what it takes."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels))
    columns = min(len(labels), 4 if longest <= 8 else 3 if longest <= 12 else 2 if longest <= 24 else 1)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * math.ceil(len(labels) / columns))


def colour_of(run: int) -> str:
    """Return the colour of a run by its number; the eighth has that of the first, and another marker."""
    return [*RUN_COLOURS][run % len(RUN_COLOURS)]


def marker_of(run: int) -> str:
    """Return the marker of a run by its number."""
    return MARKERS[(run + run // len(RUN_COLOURS)) % len(MARKERS)]


def plot_bands(
    axes: Axes, across: Sequence[float], bands: Mapping[str, Mapping[str, Sequence[float]]], run: int
) -> None:
    """Plot the values of each source with its interval as a shade; the controls in grey."""
    for source, band in bands.items():
        value, low, high = (np.asarray(band[part], np.float64) for part in ("value", "low", "high"))
        own = source == "confidence"
        ink = colour_of(run) if own else INK if source == "likelihood" else MUTED
        marker, width = (marker_of(run), 1.8) if own else ("", 1.4)
        axes.plot(across, value, SOURCES[source], marker=marker, ms=3.5, lw=width, color=ink, label=source)
        axes.fill_between(across, low, high, color=ink, alpha=0.18 if own else 0.08, lw=0)


def slug(words: str) -> str:
    """Return words as the name of a file or an anchor.

    Example:
        >>> slug("RL: validation NDCG@10")
        'rl-validation-ndcg10'
    """
    return re.sub(r"[^a-z0-9]+", "-", words.lower().replace("@", "")).strip("-")


def inline_svg(picture: Picture) -> str:
    """Return the figure as SVG for the inside of report.html: no fixed size, own ids, colours as variables."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(picture.title)}" ', 1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
