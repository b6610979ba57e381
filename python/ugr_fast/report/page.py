"""The sections in order, as one Markdown file and one HTML file, written whole or not at all."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from ugr_fast.files import check_new_folder, new_folder
from ugr_fast.report import comparison, confidence, decisions, settings, training, users
from ugr_fast.report.blocks import Block, bullets
from ugr_fast.report.figures import DARK, RUN_COLOURS, STYLE, VARIABLES, require_matplotlib, slug
from ugr_fast.report.read import EvaluatedRun, Split, read_runs

if TYPE_CHECKING:
    from ugr_fast.configs import ReportConfig

TITLE = "ugr-fast report"
OWN_FILES = {"report.md", "report.html", "figures"}


def write(config: ReportConfig) -> Path:
    """Compare evaluated runs in one report.

    An earlier report in `out` is replaced once the new one is whole.

    Args:
        config: runs, split and folder to write.

    Returns:
        The folder, with report.md, report.html and figures.

    Raises:
        FileNotFoundError: a folder is no run, or was not evaluated; the message names the command.
        FileExistsError: `out` holds something other than a report.
        ValueError: an unreadable file, one of an older version, or runs that were evaluated on different rows.
        ImportError: matplotlib is missing.

    Example:
        write(ReportConfig(runs=(Path("runs/demo/sft"), Path("runs/demo/rl")), out=Path("runs/demo/report")))
    """
    matplotlib = require_matplotlib()
    out = config.out.resolve()
    if not _holds_report(out):
        check_new_folder(out)
    runs = read_runs(config.runs, config.split)
    with matplotlib.rc_context(STYLE):
        blocks = compose(runs, config.split)
    with new_folder(out, replaces=True) as folder:
        _write(folder, f"{TITLE}: {', '.join(run.label for run in runs)}", blocks)
    return config.out


def compose(runs: list[EvaluatedRun], split: Split) -> list[Block]:
    """Return the blocks of the report, in order."""
    best = comparison.best_of(runs)
    return [
        bullets([*comparison.headline(runs), confidence.headline(best), decisions.headline(best)]),
        *comparison.section(runs, split),
        *training.section(runs),
        *confidence.section(runs),
        *decisions.section(runs),
        *decisions.promises(runs),
        *users.section(runs),
        *settings.section(runs),
    ]


def markdown(blocks: list[Block]) -> str:
    """Return the report as Markdown."""
    return "\n\n".join([f"# {TITLE}", *(block.markdown for block in blocks)]) + "\n"


def page(title: str, blocks: list[Block]) -> str:
    """Return the report as one HTML page that fetches nothing."""
    sections = [block.markdown[3:] for block in blocks if block.markdown.startswith("## ")]
    links = "".join(f'<a href="#{slug(text)}">{text}</a>' for text in sections)
    body = "\n".join(block.html for block in blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{html.escape(title)}</title>'
        f"<style>{styles()}</style></head>\n"
        f'<body><a class="skip" href="#content">to the content</a><header><h1>{html.escape(title)}</h1>'
        f'<nav aria-label="Sections">{links}</nav></header>\n<main id="content">\n{body}\n</main>\n'
        f"<script>{_beside('page.js')}</script></body></html>\n"
    )


def styles() -> str:
    """Return the style sheet: the colours of figures and text as variables, light and dark, then page.css."""
    dark = {**DARK, **RUN_COLOURS}
    light = " ".join(f"{variable}: {colour};" for colour, variable in VARIABLES.items())
    night = " ".join(f"{variable}: {dark[colour]};" for colour, variable in VARIABLES.items())
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {night} }} }}\n{_beside('page.css')}"
    )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _holds_report(out: Path) -> bool:
    """Whether a folder holds a report and nothing else that replacing it would lose."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    return "report.md" in names and names <= OWN_FILES


def _write(folder: Path, title: str, blocks: list[Block]) -> None:
    (folder / "figures").mkdir()
    for block in blocks:
        for picture in block.pictures:
            (folder / "figures" / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
            (folder / "figures" / f"{picture.name}.png").write_bytes(picture.png)
    (folder / "report.md").write_text(markdown(blocks), encoding="utf-8")
    (folder / "report.html").write_text(page(title, blocks), encoding="utf-8")
