"""One report of evaluated runs: tables, training curves, reliability, risk and coverage, examples, settings.

Reads run directories only (config.json, metrics.jsonl, best.json, eval-SPLIT.json) and writes::

    OUT/
      report.md     for a terminal or a code host; its figures are the PNG files
      report.html   the same in one file: figures inline, light and dark, nothing fetched from anywhere
      figures/      each figure as PNG and SVG

A report is a list of blocks; every block knows how to write itself as Markdown and as HTML, so the two always say the
same. Figures are drawn once, in a few fixed colours; inside report.html those become CSS variables, which is how one SVG
is legible on white, on black and on paper.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ugr_fast.files import check_new_folder, new_folder, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ugr_fast.configs import ReportConfig

Rows = list[list[str]]
Split = Literal["valid", "test"]

DASH = "–"
MARK = "†"
FOOTNOTE = f"{MARK} The run's confidence tokens are untrained: the beam's likelihood, exp(score), stands in."
LOWER_IS_BETTER = ("ECE", "AURC")
BASELINES = {"popularity": "popularity", "markov": "last-item Markov"}
REWARDS = {"uncertainty_weighted": "uncertainty-weighted reward", "ranking": "ranking reward", "match": "0/1 reward"}
EVALUATION = ("split", "num_rows", "num_beams", "normalize", "checkpoint", "step")
OWN_FILES = {"report.md", "report.html", "figures"}
FEWEST_USERS = 20  # a risk over fewer users is noise, and would set the scale of the plot

# ----------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class EvaluatedRun:
    """What a run directory says about a run."""

    label: str
    """Shortest name that tells it from the others: its folder, with as many parents as that takes."""
    config: dict[str, Any]
    """Command, settings, environment."""
    lines: list[dict[str, Any]]
    """metrics.jsonl."""
    best: dict[str, Any]
    """best.json, empty where there is none."""
    found: dict[str, Any]
    """eval-SPLIT.json."""

    @property
    def command(self) -> str:
        """The command that made it: sft or rl."""
        return str(self.config["command"])

    @property
    def name(self) -> str:
        """The label, and in words what was trained."""
        return f"{self.label} ({_describe(self.command, self.config['settings'])})"

    @property
    def trained(self) -> bool:
        """Whether its confidence tokens were trained."""
        return self.command == "rl" and self.config["settings"].get("confidence") != "none"

    @property
    def signal(self) -> str:
        """What it says about how sure it is: its confidence if that was trained, else the beam's likelihood."""
        return "confidence" if self.trained else "likelihood"

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Return where (epochs of sft, updates of rl) `key` was logged, and its values; "valid.…" is one on valid."""
        at = "epoch" if self.command == "sft" else "step"
        on_valid = key.startswith("valid.")
        pairs = [
            (line.get(at), (line.get("valid", {}) if on_valid else line).get(key.removeprefix("valid.")))
            for line in self.lines
        ]
        kept = [(float(x), float(y)) for x, y in pairs if _is_number(x) and _is_number(y)]
        return [x for x, _ in kept], [y for _, y in kept]


def read_runs(folders: Sequence[Path], split: Split = "test") -> list[EvaluatedRun]:
    """Read run directories that were evaluated on the same rows.

    Raises:
        FileNotFoundError: a folder is no run, or was not evaluated on `split`; the message names the command.
        ValueError: no folder or one twice, an unreadable file, runs that were evaluated on different rows.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"`runs` must name at least one run directory, each once, got {[*map(str, folders)]}")
    runs = [
        _read_run(folder, label, split) for folder, label in zip(map(Path, folders), _labels(paths), strict=True)
    ]
    for run in runs[1:]:
        if _rows_seen(run) != _rows_seen(runs[0]):
            raise ValueError(
                f"`runs` must be evaluated on the same rows, and {run.label} and {runs[0].label} were not; "
                "evaluate both again on one `data`"
            )
    return runs


def _read_run(folder: Path, label: str, split: Split) -> EvaluatedRun:
    config = read_json(folder / "config.json", "ugr-fast sft")
    _require(config, ("command", "settings", "environment"), folder / "config.json", "train again")
    command = f"ugr-fast eval --run {folder} --data {config['settings'].get('data', 'DATA')}"
    command += "" if split == "test" else f" --split {split}"
    path = folder / f"eval-{split}.json"
    found = read_json(path, command)
    parts = ("num_rows", "num_beams", "ranking", "confidence", "likelihood", "kept_half", "baselines", "examples")
    _require(found, parts, path, f"make it again with `{command}`")
    best = folder / "best.json"
    return EvaluatedRun(
        label=label,
        config=config,
        lines=_read_lines(folder / "metrics.jsonl"),
        best=read_json(best, "ugr-fast sft") if best.exists() else {},
        found=found,
    )


def _require(value: Any, keys: Iterable[str], path: Path, remedy: str) -> None:
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {remedy}")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; a last line that was cut off is dropped."""
    kept: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            kept.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path} is not JSON in line {number} ({error}); remove that line") from error
    return kept


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell all of them apart."""
    depth, labels = 0, [""]
    while len(set(labels)) < len(paths) or not depth:
        depth += 1
        labels = ["/".join(path.parts[-depth:]) for path in paths]
    return labels


def _rows_seen(run: EvaluatedRun) -> tuple[Any, ...]:
    shown = [(example["user"], example["target"]) for example in run.found["examples"]]
    return run.found["num_rows"], run.found["baselines"], shown


def _describe(command: str, settings: dict[str, Any]) -> str:
    """Return in words what a command with these settings trains."""
    if command != "rl":
        return "supervised fine-tuning"
    reward, difficulty, confidence = (settings.get(key) for key in ("reward", "difficulty", "confidence"))
    if reward == "uncertainty_weighted" and difficulty and confidence != "none":
        return f"UGR, {confidence} confidence"
    if reward == "match" and not difficulty and confidence == "none":
        return "GRPO, 0/1 reward"
    weight = ["difficulty weight"] if difficulty else []
    objective = ["no confidence" if confidence == "none" else f"{confidence} confidence"]
    return ", ".join([REWARDS.get(str(reward), str(reward)), *weight, *objective])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# ------------------------------------------------------------------------------------------------------ tables


def table(runs: Sequence[Path], split: Split = "test") -> Rows:
    """Return the comparison table: the simple baselines, then every run.

    Args:
        runs: run directories, evaluated on the same rows.
        split: which evaluation to show.

    Returns:
        Rows of cells, the header first; a missing value is an en dash. HR and NDCG are at item level; ECE, AUROC and
        the last column use the confidence, or where it is untrained the likelihood, marked: see `FOOTNOTE`.

    Raises:
        FileNotFoundError: a folder is no run, or was not evaluated.
        ValueError: runs that were evaluated on different rows.
    """
    return comparison_table(read_runs(runs, split))


def comparison_table(runs: list[EvaluatedRun]) -> Rows:
    """Return `table` of runs already read."""
    widths = {run.found["num_beams"] for run in runs}
    same = f" (beam width {min(widths)})" if len(widths) == 1 else ""
    ranking = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10")
    rows = [[f"model{same}", *ranking, "ECE", "AUROC", "HR@10 kept half"]]
    for key, name in BASELINES.items():
        values = runs[0].found["baselines"].get(key, {})
        rows.append([name, *(_cell(values.get(column.lower())) for column in ranking), DASH, DASH, DASH])
    for run in runs:
        values, mark = run.found["ranking"], "" if run.trained else MARK
        sure = run.found[run.signal]["user"]
        cells = [_cell(sure.get("ece"), 3), _cell(sure.get("auroc"), 3), _cell(_kept(run, run.signal, "hr@10"))]
        name = run.name if same else f"{run.name}, beam width {run.found['num_beams']}"
        numbers = [_cell(values.get(column.lower())) for column in ranking]
        rows.append([name, *numbers, *(cell if cell == DASH else cell + mark for cell in cells)])
    return rows


def confidence_table(runs: list[EvaluatedRun]) -> Rows:
    """Return what each run's confidence is worth, beside its two controls: the beam's likelihood, and random."""
    rows = [["model: users sorted by", "ECE", "Brier skill", "AUROC", "AURC", "HR@10 kept half", "NDCG@10 kept half"]]
    for run in runs:
        for source in ("confidence", "likelihood", "random"):
            values = run.found[source]["user"] if source != "random" else {}
            mark = MARK if source == "confidence" and not run.trained else ""
            kept = [_cell(_kept(run, source, key)) for key in ("hr@10", "ndcg@10")]
            scalars = [_cell(values.get(key), 3) for key in ("ece", "brier_skill", "auroc", "aurc")]
            rows.append([f"{run.label}: {source}{mark}", *scalars, *kept])
    return rows


def sid_table(runs: list[EvaluatedRun]) -> Rows:
    """Return HR and NDCG at the level of semantic IDs: any item with the target's semantic ID is a hit."""
    columns = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10")
    rows = [["model, semantic-ID level", *columns]]
    for run in runs:
        values = run.found["ranking"]
        rows.append([run.label, *(_cell(values.get(f"sid_{column.lower()}")) for column in columns)])
    return rows


def markdown_table(rows: Rows, *, bold: bool = True) -> str:
    """Return rows of cells, header first, as a Markdown table; the best value of each column in bold.

    Example:
        >>> print(markdown_table([["model", "HR@10", "ECE"], ["a", "0.10", "0.3"], ["b", "0.20", "0.4"]]))
        | model | HR@10 | ECE |
        |:--|--:|--:|
        | a | 0.10 | **0.3** |
        | b | **0.20** | 0.4 |
    """
    best = _best_cells(rows) if bold else set()
    cells = [
        [f"**{_markdown(cell)}**" if (y, x) in best else _markdown(cell) for x, cell in enumerate(row)]
        for y, row in enumerate(rows)
    ]
    side = "--:" if bold else ":--"
    rule = "|".join([":--", *[side] * (len(rows[0]) - 1)])
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _html_table(rows: Rows, *, bold: bool = True) -> str:
    best = _best_cells(rows) if bold else set()
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
    body = []
    for y, row in enumerate(rows[1:], start=1):
        cells = [
            f"<td><b>{html.escape(cell)}</b></td>" if (y, x) in best else f"<td>{html.escape(cell)}</td>"
            for x, cell in enumerate(row)
            if x
        ]
        body.append(f'<tr><th scope="row">{html.escape(row[0])}</th>{"".join(cells)}</tr>')
    kind = "numbers" if bold else "settings"
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _best_cells(rows: Rows) -> set[tuple[int, int]]:
    """Return (row, column) of the best value of each column, as shown: equal digits are equally good."""
    best = set()
    for x, header in enumerate(rows[0][1:], start=1):
        shown = {y: float(row[x].rstrip(MARK)) for y, row in enumerate(rows[1:], start=1) if row[x] != DASH}
        if len(shown) > 1:
            top = min(shown.values()) if header in LOWER_IS_BETTER else max(shown.values())
            best |= {(y, x) for y, value in shown.items() if value == top}
    return best


def _kept(run: EvaluatedRun, source: str, key: str) -> Any:
    return run.found["kept_half"].get(source, {}).get(key)


def _cell(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if _is_number(value) else DASH


def _settings_table(runs: list[EvaluatedRun], part: Callable[[EvaluatedRun], dict[str, Any]], name: str) -> Rows:
    keys = list(dict.fromkeys(key for run in runs for key in part(run)))
    rows = [[name, *(run.label for run in runs)]]
    return rows + [[key, *(_setting(part(run).get(key)) for run in runs)] for key in keys]


def _setting(value: Any) -> str:
    if value is None or value == "":
        return DASH
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _outcome(run: EvaluatedRun) -> dict[str, Any]:
    seconds = [line["seconds"] for line in run.lines if _is_number(line.get("seconds"))]
    time = {"training time": f"{seconds[-1] / 60:.1f} min"} if seconds else {}
    return {**{key: run.found.get(key) for key in EVALUATION}, **time}


# ----------------------------------------------------------------------------------------------------- figures

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#dde1e6", "#fdfdfd"
DARK = {INK: "#e6edf3", MUTED: "#9aa4af", GRID: "#343b44", PAPER: "#14181d"}
RUN_COLOURS = {  # on light ground: on dark ground
    "#1f6fd0": "#6cb0ff",
    "#c2560a": "#ff9d52",
    "#1a7f52": "#4fcf92",
    "#8347c9": "#c596ff",
    "#c4284b": "#ff7f99",
    "#087a89": "#46c8d8",
    "#766900": "#d8c645",
}
VARIABLES = {
    colour: f"--c{index}" for index, colour in enumerate([INK, MUTED, GRID, PAPER, *RUN_COLOURS])
}  # colour of the figures: CSS variable of report.html
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
CURVES = {  # command: (key, control drawn dotted, title, label of the y axis)
    "sft": (
        ("loss", None, "Fine-tuning: training loss", "cross-entropy per token (nats)"),
        ("valid.ndcg@10", None, "Fine-tuning: NDCG@10 on valid", "NDCG@10"),
        ("valid.hr@10", None, "Fine-tuning: HR@10 on valid", "HR@10"),
        ("valid.hr@1", None, "Fine-tuning: HR@1 on valid", "HR@1"),
    ),
    "rl": (
        ("valid.ndcg@10", None, "RL: NDCG@10 on valid", "NDCG@10"),
        ("valid.hr@10", None, "RL: HR@10 on valid", "HR@10"),
        ("valid.hr@1", None, "RL: HR@1 on valid", "HR@1"),
        ("valid.confidence_auroc", "valid.likelihood_auroc", "RL: confidence AUROC on valid", "AUROC"),
        ("hit_rate", None, "RL: rollout hit rate", "prompts with a hit (share)"),
        ("reward", None, "RL: reward", "mean reward per candidate"),
        ("loss", None, "RL: training loss", "loss"),
    ),
}


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its files, and how to read it."""

    name: str
    caption: str
    figure: Figure


def _require_matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("a report needs matplotlib for its figures: pip install ugr-fast[plot]") from error
    return matplotlib


def _axes(title: str, across: str, up: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.7, 3.5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=across, ylabel=up)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if max(map(len, labels)) < 30 else 1)


def _colour(number: int) -> str:
    return [*RUN_COLOURS][number % len(RUN_COLOURS)]


def _colours(runs: list[EvaluatedRun]) -> dict[str, str]:
    return {run.label: _colour(number) for number, run in enumerate(runs)}


def training_pictures(runs: list[EvaluatedRun]) -> list[Picture]:
    """Draw what was logged in training and on valid, one picture for each quantity that some run logged."""
    drawn = []
    for command, curves in CURVES.items():
        chosen = [run for run in runs if run.command == command]
        for key, control, title, up in curves:
            if any(run.series(key)[0] for run in chosen):
                figure = _training_figure(runs, chosen, key, control, title, up)
                drawn.append(Picture(_slug(f"{command} {key}"), f"{title}.", figure))
    return drawn


def _training_figure(
    runs: list[EvaluatedRun], chosen: list[EvaluatedRun], key: str, control: str | None, title: str, up: str
) -> Figure:
    colours = _colours(runs)
    command = chosen[0].command
    figure, axes = _axes(title, "epoch" if command == "sft" else "update", up)
    for run in chosen:
        _plot_series(axes, *run.series(key), colour=colours[run.label], label=run.label)
        if control:
            x, y = run.series(control)
            axes.plot(x, y, ":", color=colours[run.label], label=f"{run.label}: likelihood (control)")
    for run in runs if command == "rl" else []:
        value = run.best.get((control or key).removeprefix("valid."))
        if run.command == "sft" and key.startswith("valid.") and _is_number(value):
            label = f"{run.label}: best{' (likelihood)' if control else ''}"
            axes.axhline(value, ls="--", lw=1.4, color=colours[run.label], label=label)
    if command == "sft":
        axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, axes)
    return figure


def _plot_series(axes: Axes, x: list[float], y: list[float], colour: str, label: str) -> None:
    """Plot points that are few as they are, and many as a running mean over their shadow."""
    if len(x) <= 30:
        axes.plot(x, y, "o-", ms=3.5, color=colour, label=label)
        return
    width = max(5, len(y) // 15)
    smooth = np.convolve(y, np.full(width, 1 / width), "valid")
    axes.plot(x, y, lw=0.7, alpha=0.35, color=colour)
    axes.plot(x[width - 1 :], smooth, color=colour, label=f"{label}, mean of {width}")


def reliability_picture(run: EvaluatedRun, number: int) -> Picture:
    """Draw how often recommendations of like confidence are right, and how many there are of them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(4.7, 4.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], "--", lw=1, color=MUTED, label="perfectly calibrated")
    shown = [("likelihood", MUTED, "s")] + ([("confidence", _colour(number), "o")] if run.trained else [])
    limit = 0.0
    for source, ink, marker in shown:
        bins = {name: np.asarray(column, float) for name, column in run.found[source]["reliability"].items()}
        limit = max(limit, *bins["upper"], *bins["accuracy"])
        bars = np.abs([bins["accuracy"] - bins["accuracy_low"], bins["accuracy_high"] - bins["accuracy"]])
        face = ink if source == "confidence" else PAPER
        axes.errorbar(
            bins["confidence"], bins["accuracy"], bars, fmt=marker, ms=5, mfc=face, lw=1.1, color=ink, label=source
        )
        below.bar(
            bins["lower"],
            bins["count"],
            bins["upper"] - bins["lower"],
            align="edge",
            color=ink if source == "confidence" else "none",
            edgecolor=ink,
            alpha=0.6 if source == "confidence" else 1.0,
        )
    axes.set(title=f"Reliability: {run.label}", ylabel="hit rate in the bin", xlim=(0, limit), ylim=(0, limit))
    below.set(xlabel="confidence of the top recommendation", ylabel="users", yscale="log", ylim=(0.7, None))
    below.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    below.yaxis.set_minor_formatter(NullFormatter())
    _legend(figure, axes)
    caption = "Dots: hit rate of users with like confidence, with 95% Wilson intervals. Below: how many they are."
    return Picture(_slug(f"reliability {number} {run.label}"), caption, figure)


def risk_picture(run: EvaluatedRun, number: int) -> Picture:
    """Draw the share of wrong top recommendations among the users kept, against the share kept."""
    figure, axes = _axes(f"Risk and coverage: {run.label}", "coverage (share of users kept)", "risk (1 − HR@1)")
    base = run.found[run.signal]["user"].get("base_rate")
    lows = []
    for source, style in (("confidence", "-"), ("likelihood", ":")):
        if source == "likelihood" or run.trained:
            coverage, risk = (np.asarray(run.found[source]["risk_coverage"][key]) for key in ("coverage", "risk"))
            kept = coverage * run.found["num_rows"] >= min(FEWEST_USERS, run.found["num_rows"])
            axes.plot(coverage[kept], risk[kept], style, color=_colour(number), label=source)
            lows.append(risk[kept].min())
    if _is_number(base):
        axes.axhline(1 - base, ls="--", lw=1.2, color=MUTED, label="random")
        coverage = np.linspace(0.005, 1, 200)
        axes.plot(coverage, np.maximum(0, 1 - base / coverage), "-.", lw=1.2, color=MUTED, label="oracle")
        lows.append(1 - base)
    room = 0.05 + 0.1 * (max(lows) - min(lows))
    axes.set(xlim=(0, 1), ylim=(max(0, min(lows) - room), min(1, max(lows) + room)))
    _legend(figure, axes)
    caption = f"Lower is better. The curves start at {FEWEST_USERS} users; the oracle keeps all hits before any miss."
    return Picture(_slug(f"risk {number} {run.label}"), caption, figure)


def rejection_picture(runs: list[EvaluatedRun], key: str) -> Picture:
    """Draw HR@10 or NDCG@10 of the users kept, against the share kept."""
    colours, name = _colours(runs), key.upper()
    figure, axes = _axes(f"{name} of the users kept", "coverage (share of users kept)", name)
    for run in runs:
        for source, style in (("confidence", "-"), ("likelihood", ":")):
            if source == "likelihood" or run.trained:
                curve = run.found[source]["rejection"]
                axes.plot(
                    curve["coverage"], curve[key], style, color=colours[run.label], label=f"{run.label}: {source}"
                )
        everyone = _kept(run, "random", key)
        if _is_number(everyone):
            axes.axhline(everyone, ls="--", lw=1, color=colours[run.label], label=f"{run.label}: random")
    axes.set(xlim=(0, 1), ylim=(0, None))
    _legend(figure, axes)
    return Picture(_slug(f"kept {key}"), "Higher is better; at full coverage all users are kept.", figure)


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _inline_svg(picture: Picture) -> str:
    """Return the figure as SVG for the inside of report.html: no fixed size, own ids, colours as variables."""
    buffer = StringIO()
    picture.figure.savefig(buffer, format="svg", metadata=NO_DATE)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


# ------------------------------------------------------------------------------------------------------ blocks


class Block(Protocol):
    """A part of the report that knows how to write itself."""

    def markdown(self) -> str:
        """Return it as Markdown."""

    def html(self) -> str:
        """Return it as HTML."""


@dataclass(frozen=True)
class Heading:
    """A heading of a section, or of a part of one."""

    text: str
    level: int = 2

    def markdown(self) -> str:
        """Return it as Markdown."""
        return f"{'#' * self.level} {_markdown(self.text)}"

    def html(self) -> str:
        """Return it as HTML."""
        return f'<h{self.level} id="{_slug(self.text)}">{html.escape(self.text)}</h{self.level}>'


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str
    note: bool = False

    def markdown(self) -> str:
        """Return it as Markdown."""
        return _markdown(self.text)

    def html(self) -> str:
        """Return it as HTML."""
        return f"<p{' class=note' if self.note else ''}>{html.escape(self.text)}</p>"


@dataclass(frozen=True)
class Grid:
    """A table; of numbers, with the best of each column in bold, or of settings."""

    rows: Rows
    numbers: bool = True

    def markdown(self) -> str:
        """Return it as Markdown."""
        return markdown_table(self.rows, bold=self.numbers)

    def html(self) -> str:
        """Return it as HTML."""
        return _html_table(self.rows, bold=self.numbers)


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    pictures: list[Picture]

    def markdown(self) -> str:
        """Return it as Markdown."""
        return "\n\n".join(
            f"![{_markdown(picture.caption)}](figures/{picture.name}.png)\\\n*{_markdown(picture.caption)}*"
            for picture in self.pictures
        )

    def html(self) -> str:
        """Return it as HTML."""
        shown = [
            f"<figure>{_inline_svg(picture)}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
            for picture in self.pictures
        ]
        return f'<div class="gallery">{"".join(shown)}</div>'


@dataclass(frozen=True)
class Recommended:
    """What one run recommends to one user, with bars in [0, 1] of the longest of all."""

    run: str
    titles: list[str]
    values: list[float]
    bars: list[float]
    hits: list[bool]


@dataclass(frozen=True)
class User:
    """A user of the examples: what came before, what came next, what each run recommended."""

    user: int
    history: list[str]
    target: str
    recommended: list[Recommended]

    @property
    def outcome(self) -> str:
        """In words, where the runs ranked what came next."""
        ranks = [f"{shown.run} rank {shown.hits.index(True) + 1}" for shown in self.recommended if any(shown.hits)]
        return ", ".join(ranks) if ranks else "not among the recommended"

    def markdown(self) -> str:
        """Return it as Markdown."""
        width = max(len(shown.titles) for shown in self.recommended)
        rows = [[str(rank + 1), *(_text_cell(shown, rank) for shown in self.recommended)] for rank in range(width)]
        head = ["#", *(_markdown(shown.run) for shown in self.recommended)]
        lines = [f"| {' | '.join(row)} |" for row in [head, ["--:", *[":--"] * (len(head) - 1)], *rows]]
        return "\n".join(
            [
                f"<details><summary>User {self.user}: {html.escape(self.outcome)}</summary>\n",
                f"History: {' → '.join(map(_markdown, self.history))}\\",
                f"Next: **{_markdown(self.target)}**\n",
                *lines,
                "\n</details>",
            ]
        )

    def html(self) -> str:
        """Return it as HTML."""
        kind = "user hit" if any(any(shown.hits) for shown in self.recommended) else "user"
        history = "".join(f"<li>{html.escape(title)}</li>" for title in self.history)
        return (
            f'<details class="{kind}"><summary><b>User {self.user}</b> next: {html.escape(self.target)}'
            f'<span class="outcome">{html.escape(self.outcome)}</span></summary><div class="lists">'
            f'<section><h4>History</h4><ol class="history">{history}</ol>'
            f'<p class="next">Next: <b>{html.escape(self.target)}</b></p></section>'
            f"{''.join(map(_html_list, self.recommended))}</div></details>"
        )


@dataclass(frozen=True)
class Examples:
    """A browsable list of users."""

    users: list[User]

    def markdown(self) -> str:
        """Return it as Markdown."""
        return "\n\n".join(user.markdown() for user in self.users)

    def html(self) -> str:
        """Return it as HTML."""
        users = "".join(user.html() for user in self.users).replace("<details ", "<details open ", 1)
        return (
            '<input type="checkbox" id="only-hits"><label for="only-hits"> only users with a hit</label>'
            f'<div class="users">{users}</div>'
        )


def _text_cell(shown: Recommended, rank: int) -> str:
    if rank >= len(shown.titles):
        return DASH
    title = _markdown(shown.titles[rank])
    title = f"**{title}** ✓" if shown.hits[rank] else title
    return f"{title} `{'█' * max(1, round(8 * shown.bars[rank]))}` {shown.values[rank]:.3f}"


def _html_list(shown: Recommended) -> str:
    items = [
        f'<li{" class=hit" if hit else ""}><span class="title">{html.escape(title)}{" ✓" if hit else ""}</span>'
        f'<span class="bar"><i style="width:{100 * bar:.1f}%"></i></span><span class="value">{value:.3f}</span></li>'
        for title, value, bar, hit in zip(shown.titles, shown.values, shown.bars, shown.hits, strict=True)
    ]
    return f'<section><h4>{html.escape(shown.run)}</h4><ol class="recommended">{"".join(items)}</ol></section>'


def _markdown(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", escaped)


# ------------------------------------------------------------------------------------------------------ report


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
        ValueError: an unreadable file, or runs that were evaluated on different rows.
        ImportError: matplotlib is missing.

    Example:
        write(ReportConfig(runs=(Path("runs/demo/sft"), Path("runs/demo/rl")), out=Path("runs/demo/report")))
    """
    matplotlib = _require_matplotlib()
    out = config.out.resolve()
    if not _holds_report(out):
        check_new_folder(out)
    runs = read_runs(config.runs, config.split)
    with matplotlib.rc_context(STYLE):
        blocks = compose(runs, config.split)
        if _holds_report(out):
            _replace(out, blocks)
        else:
            with new_folder(out) as folder:
                _write(folder, blocks)
    return config.out


def compose(runs: list[EvaluatedRun], split: Split) -> list[Block]:
    """Return the blocks of the report, in order."""
    return [
        Heading("Comparison"),
        Paragraph(_headline(runs)),
        *_comparison(runs, split),
        Heading("Training"),
        Paragraph("Of what was measured on valid, the best checkpoint by NDCG@10 was kept and is compared above."),
        Gallery(training_pictures(runs)),
        Heading("Reliability"),
        Paragraph(RELIABILITY_GUIDE),
        Gallery([reliability_picture(run, number) for number, run in enumerate(runs)]),
        Heading("Risk and coverage"),
        Paragraph(RISK_GUIDE),
        Gallery(
            [
                *(risk_picture(run, number) for number, run in enumerate(runs)),
                *(rejection_picture(runs, key) for key in ("hr@10", "ndcg@10")),
            ]
        ),
        Heading("Examples"),
        *_examples(runs),
        Heading("Settings"),
        *_settings(runs),
    ]


RELIABILITY_GUIDE = (
    "A confidence is calibrated when recommendations of confidence c are right in a share c of cases: dots on the "
    "diagonal. Below it the model is over-confident, above it too modest. Counted for each user's top recommendation, "
    "right when it has the semantic ID of the next item. The likelihood is the beam's exp(score)."
)
RISK_GUIDE = (
    "Reject the least confident users, recommend to the rest: a useful confidence leaves fewer errors the fewer users "
    "are kept. The likelihood is the control that needs no training; random keeps users blindly. Only confidences that "
    "were trained are drawn."
)


def _headline(runs: list[EvaluatedRun]) -> str:
    value = "ndcg@10"
    best = max(runs, key=lambda run: float(run.found["ranking"].get(value) or 0))
    simple = {key: float(values.get(value) or 0) for key, values in runs[0].found["baselines"].items()}
    strongest = max(simple, key=lambda key: simple[key], default="")
    reached = f"Highest NDCG@10: {best.label}, {_cell(best.found['ranking'].get(value))}"
    if not strongest:
        return f"{reached}."
    name = BASELINES.get(strongest, strongest)
    below = [run.label for run in runs if float(run.found["ranking"].get(value) or 0) <= simple[strongest]]
    warning = f" Not above it, so not working yet: {', '.join(below)}." if below else ""
    return f"{reached}; strongest simple baseline: {name}, {simple[strongest]:.4f}.{warning}"


def _comparison(runs: list[EvaluatedRun], split: Split) -> list[Block]:
    rows = runs[0].found["num_rows"]
    rate = max(float(run.found["ranking"].get("hr@10") or 0) for run in runs)
    error = math.sqrt(rate * (1 - rate) / max(rows, 1))
    guide = (
        f"How to read it. {rows} rows of the {split} split, one user's next item each; every run ranks the whole catalogue "
        "by beam search over its semantic IDs. HR@k is the share of users whose next item is among the first k, NDCG@k "
        "also rewards a high rank; both at item level. ECE (lower is better) is how far the confidence of the top "
        "recommendation lies from how often it is right, AUROC how well it tells right from wrong (0.5 is chance). Last "
        "column: HR@10 of the users left when the least confident half is rejected. The baselines are counted on the "
        f"training split. Bold is best. With so many rows, an HR@10 of {rate:.3f} has a standard error of {error:.4f}."
    )
    footnote = [] if all(run.trained for run in runs) else [Paragraph(FOOTNOTE, note=True)]
    return [
        Grid(comparison_table(runs)),
        *footnote,
        Paragraph(guide),
        Heading("What the confidence is worth", 3),
        Grid(confidence_table(runs)),
        Paragraph(
            "Brier skill is 0 for always saying the base rate, and negative for worse. AURC is the mean error rate over "
            "all coverages; lower is better."
            + (f" {MARK} Untrained confidence tokens." if footnote else ""),
            note=True,
        ),
        Heading("At the level of semantic IDs", 3),
        Grid(sid_table(runs)),
        Paragraph("Differs from item level only where several items share a semantic ID.", note=True),
    ]


def _examples(runs: list[EvaluatedRun]) -> list[Block]:
    longest = {
        run.label: max((r[run.signal] for e in run.found["examples"] for r in e["recommended"]), default=0.0)
        for run in runs
    }
    users = [_user(runs, shown, longest) for shown in zip(*(run.found["examples"] for run in runs), strict=True)]
    hits = sum(any(any(shown.hits) for shown in user.recommended) for user in users)
    scales = ", ".join(f"{run.label} {run.signal}, longest bar {longest[run.label]:.3f}" for run in runs)
    text = (
        f"{len(users)} users drawn at random, hit or miss; for {hits} of them some run has the next item among its ten, "
        f"marked ✓. Beside each title: {scales}."
    )
    return [Paragraph(text), Examples(users)]


def _user(runs: list[EvaluatedRun], shown: Sequence[dict[str, Any]], longest: dict[str, float]) -> User:
    recommended = []
    for run, example in zip(runs, shown, strict=True):
        values = [float(item[run.signal]) for item in example["recommended"]]
        recommended.append(
            Recommended(
                run=run.label,
                titles=[item["title"] for item in example["recommended"]],
                values=values,
                bars=[value / longest[run.label] if longest[run.label] else 0.0 for value in values],
                hits=[item["hit"] for item in example["recommended"]],
            )
        )
    history = max((example["history"] for example in shown), key=len)
    return User(shown[0]["user"], history, shown[0]["target"], recommended)


def _settings(runs: list[EvaluatedRun]) -> list[Block]:
    parts: list[tuple[str, Callable[[EvaluatedRun], dict[str, Any]]]] = [
        ("evaluation", _outcome),
        ("environment", lambda run: run.config["environment"]),
        ("setting", lambda run: {"command": run.command, **run.config["settings"]}),
    ]
    return [Grid(_settings_table(runs, part, name), numbers=False) for name, part in parts]


def _write(folder: Path, blocks: list[Block]) -> None:
    (folder / "figures").mkdir()
    for block in blocks:
        for picture in block.pictures if isinstance(block, Gallery) else []:
            for kind in ("png", "svg"):
                metadata = NO_DATE if kind == "svg" else None
                picture.figure.savefig(folder / "figures" / f"{picture.name}.{kind}", dpi=160, metadata=metadata)
    text = "\n\n".join(block.markdown() for block in blocks)
    (folder / "report.md").write_text(f"# {TITLE}\n\n{text}\n", encoding="utf-8")
    (folder / "report.html").write_text(_page(blocks), encoding="utf-8")


def _page(blocks: list[Block]) -> str:
    sections = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<a href="#{_slug(text)}">{html.escape(text)}</a>' for text in sections)
    body = "\n".join(block.html() for block in blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{TITLE}</title><style>{_css()}</style></head>\n'
        f"<body><h1>{TITLE}</h1><nav>{links}</nav>\n{body}\n</body></html>\n"
    )


def _holds_report(out: Path) -> bool:
    """Whether a folder holds a report and nothing else that replacing it would lose."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    return "report.md" in names and names <= OWN_FILES


def _replace(out: Path, blocks: list[Block]) -> None:
    """Write a new report beside the old one, and swap them when it is whole."""
    new, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    for left in (new, old):  # by a killed process that had this number
        shutil.rmtree(left, ignore_errors=True)
    with new_folder(new) as folder:
        _write(folder, blocks)
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old)


TITLE = "ugr-fast report"
NO_DATE = {"Date": None}
CSS = """
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.25rem 4rem; background: var(--c3); color: var(--c0);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 1rem 0 .25rem; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; } h4 { font-size: .9rem; margin: .25rem 0 .5rem; }
p { max-width: 46rem; } a { color: var(--c4); } .note { color: var(--c1); font-size: .87rem; margin-top: .4rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .95rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .75rem 0; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--c2); text-align: left; vertical-align: baseline; }
thead th { color: var(--c1); font-weight: 600; vertical-align: bottom; } tbody th { font-weight: 500; min-width: 9rem; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
.settings td { overflow-wrap: anywhere; min-width: 6rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { color: var(--c1); font-size: .82rem; line-height: 1.4; }
.user { border-bottom: 1px solid var(--c2); padding: .45rem 0; } summary { cursor: pointer; }
.outcome { color: var(--c1); font-size: .85rem; margin-left: .75rem; } .hit .outcome { color: var(--c6); }
#only-hits:checked ~ .users .user:not(.hit) { display: none; }
.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: .5rem 2rem;
  padding: .75rem 0 .5rem; font-size: .87rem; line-height: 1.4; }
.lists ol { margin: 0; padding-left: 1.6rem; } .next { margin: .6rem 0; }
.recommended li { display: grid; grid-template-columns: 1fr 5rem 2.8rem; gap: .6rem; align-items: center;
  position: relative; counter-increment: rank; }
.recommended { counter-reset: rank; } .recommended li::before { content: counter(rank); position: absolute;
  left: -1.6rem; width: 1.2rem; text-align: right; color: var(--c1); }
.bar { background: var(--c2); height: .55rem; border-radius: .3rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--c4); } .hit .bar i, .recommended .hit .bar i { }
.value { text-align: right; font-variant-numeric: tabular-nums; color: var(--c1); }
.recommended .hit .title { font-weight: 700; color: var(--c6); } .recommended .hit .bar i { background: var(--c6); }
@media print { body { max-width: none; font-size: 10pt; padding: 0; } nav, #only-hits, label { display: none; }
  figure, tr, .user { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .gallery { grid-template-columns: 1fr 1fr; } * { print-color-adjust: exact; } }
"""


def _css() -> str:
    dark = {**DARK, **RUN_COLOURS}
    light = " ".join(f"{variable}: {colour};" for colour, variable in VARIABLES.items())
    night = " ".join(f"{variable}: {dark[colour]};" for colour, variable in VARIABLES.items())
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {night} }} }}{CSS}"
