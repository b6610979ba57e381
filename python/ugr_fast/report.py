"""One report of evaluated runs: tables, training curves, reliability, risk and coverage, examples, settings.

Reads run directories only (config.json, metrics.jsonl, best.json, eval-SPLIT.json) and writes::

    OUT/
      report.md     for a terminal or a code host; its figures are the PNG files
      report.html   the same in one file: figures inline, light and dark, nothing fetched from anywhere
      figures/      each figure as PNG and SVG

A report is a list of blocks, each made as Markdown and as HTML at once, so the two always say the same. Figures are
drawn in a few fixed colours; inside report.html those become CSS variables, which is how one SVG is legible on white,
on black and on paper.
"""

from __future__ import annotations

import html
import math
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard

import numpy as np

from ugr_fast.configs import RlConfig
from ugr_fast.files import check_new_folder, new_folder, read_json, read_json_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ugr_fast.configs import ReportConfig

Rows = list[list[str]]
Split = Literal["valid", "test"]

DASH = "–"
MARK = "†"
FOOTNOTE = f"{MARK} The model's confidence tokens are untrained: the beam's likelihood, exp(score), stands in."
LOWER_IS_BETTER = ("ECE", "AURC")
BASELINES = {"popularity": "popularity", "markov": "last-item Markov", "cosine_markov": "cosine + Markov"}
TOLD = ("reward_score", "scale", "loss", "rollout", "beta", "drop_constant_groups", "lora")  # where not the default
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
        """Whether the confidence tokens of the checkpoint that was evaluated were trained."""
        return self.command == "rl" and self.config["settings"].get("confidence") != "none" and not self.at_start

    @property
    def at_start(self) -> bool:
        """Whether the checkpoint that was evaluated is the model that reinforcement learning started from."""
        return self.command == "rl" and self.found.get("step") == 0

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
    runs = [_read_run(folder, label, split) for folder, label in zip(map(Path, folders), _labels(paths), strict=True)]
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
        lines=read_json_lines(folder / "metrics.jsonl"),
        best=read_json(best, "ugr-fast sft") if best.exists() else {},
        found=found,
    )


def _require(value: Any, keys: Iterable[str], path: Path, remedy: str) -> None:
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {remedy}")


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell all apart; none starts with "_", which legends leave out."""
    depth, labels = 0, [""]
    while not depth or len(set(labels)) < len(paths) or any(label.startswith("_") for label in labels):
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
    known = {field.name: field.default for field in fields(RlConfig)}
    more = [f"{name} {settings[name]}" for name in TOLD if settings.get(name, known[name]) != known[name]]
    if reward == "uncertainty_weighted" and difficulty == "rank" and confidence != "none":
        return ", ".join([f"UGR, {confidence} confidence", *more])
    if reward == "match" and difficulty == confidence == "none":
        return ", ".join(["GRPO, 0/1 reward", *more])
    weight = {"none": [], "rank": ["difficulty weight"]}.get(str(difficulty), [f"difficulty by {difficulty}"])
    objective = ["no confidence" if confidence == "none" else f"{confidence} confidence"]
    return ", ".join([REWARDS.get(str(reward), str(reward)), *weight, *objective, *more])


def _is_number(value: Any) -> TypeGuard[float]:
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
        values = runs[0].found["baselines"].get(key)
        if values is None:
            continue
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


class Curve(NamedTuple):
    """A quantity that training logs, and how to draw it."""

    key: str
    title: str
    unit: str
    caption: str
    control: str | None = None
    """Drawn dotted beside it."""


ON_VALID = "Item level, over the validation rows."
CURVES = {
    "sft": (
        Curve(
            "loss",
            "Fine-tuning: training loss",
            "cross-entropy (nats per token)",
            "Mean over each epoch, with dropout.",
        ),
        Curve("valid.ndcg@10", "Fine-tuning: validation NDCG@10", "NDCG@10", ON_VALID),
        Curve("valid.hr@10", "Fine-tuning: validation HR@10", "HR@10", ON_VALID),
        Curve("valid.hr@1", "Fine-tuning: validation HR@1", "HR@1", ON_VALID),
    ),
    "rl": (
        Curve("valid.ndcg@10", "RL: validation NDCG@10", "NDCG@10", ON_VALID),
        Curve("valid.hr@10", "RL: validation HR@10", "HR@10", ON_VALID),
        Curve("valid.hr@1", "RL: validation HR@1", "HR@1", ON_VALID),
        Curve(
            "valid.confidence_auroc",
            "RL: validation AUROC of the confidence",
            "AUROC",
            "How well the top recommendation's confidence tells right from wrong; dotted, its likelihood.",
            "valid.likelihood_auroc",
        ),
        Curve(
            "hit_rate",
            "RL: hit rate of the rollouts",
            "prompts with a hit (share)",
            "Prompts whose next item is among their candidates: only they earn a reward.",
        ),
        Curve("rollout_ndcg", "RL: NDCG of the rollouts", "NDCG over all candidates", "Prompts of the training split."),
        Curve(
            "reward",
            "RL: reward",
            "mean reward of a candidate",
            "Exactly 0 in every group, by construction, for UGR's reward and the ranking reward.",
        ),
        Curve("loss", "RL: training loss", "loss", "Policy and confidence; it need not fall as the policy improves."),
    ),
}


class Picture(NamedTuple):
    """A drawn figure, the name of its files, its title, and how to read it."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


def _draw(name: str, title: str, caption: str, figure: Figure) -> Picture:
    svg, png = StringIO(), BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # keep the layout just found: to find it is half the work
    figure.savefig(png, format="png", dpi=160)
    return Picture(_slug(name), title, caption, svg.getvalue(), png.getvalue())


def _require_matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("a report needs matplotlib for its figures: pip install ugr-fast[plot]") from error
    return matplotlib


def _axes(title: str, across: str, up: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.7, 3.2), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=across, ylabel=up)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """Put the legend below the axes, and make the figure higher by what it takes."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) < 30 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * math.ceil(len(labels) / columns))


def _colour(number: int) -> str:
    return [*RUN_COLOURS][number % len(RUN_COLOURS)]


def training_pictures(runs: list[EvaluatedRun], command: str) -> list[Picture]:
    """Draw what runs of `command` logged, a picture for each quantity that is not missing or 0 throughout."""
    logged = [run for run in runs if run.command == command]
    curves = [
        curve for curve in CURVES[command] if any(abs(y) > 1e-6 for run in logged for y in run.series(curve.key)[1])
    ]
    return [
        _draw(f"{command} {curve.key}", curve.title, curve.caption, _training_figure(runs, command, curve))
        for curve in curves
    ]


def _training_figure(runs: list[EvaluatedRun], command: str, curve: Curve) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(curve.title, "epoch" if command == "sft" else "update", curve.unit)
    for number, run in enumerate(runs):
        if run.command == command:
            label = f"{run.label}: confidence" if curve.control else run.label
            _plot_series(axes, *run.series(curve.key), _colour(number), label)
            if curve.control:
                label = f"{run.label}: likelihood"
                axes.plot(*run.series(curve.control), ":", color=_colour(number), label=label)
        elif command == "rl" and curve.key.startswith("valid."):
            value = run.best.get((curve.control or curve.key).removeprefix("valid."))
            if _is_number(value):
                label = f"{run.label}: {'likelihood' if curve.control else 'best'}"
                axes.axhline(value, ls="--", lw=1.4, color=_colour(number), label=label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
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

    figure = Figure(figsize=(4.7, 4.3), layout="constrained")
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
    axes.set(title=f"Reliability of {run.label}", ylabel="hit rate in the bin")
    axes.set(xlim=(0, 1.04 * limit), ylim=(-0.04 * limit, 1.04 * limit))
    below.set(xlabel="confidence of the top recommendation", ylabel="users", yscale="log", ylim=(0.7, None))
    below.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    below.yaxis.set_minor_formatter(NullFormatter())
    _legend(figure, axes)
    caption = "Dots: hit rate of users with like confidence, with 95% Wilson intervals. Below: how many they are."
    return _draw(f"reliability {number} {run.label}", f"Reliability of {run.label}", caption, figure)


def risk_picture(run: EvaluatedRun, number: int) -> Picture:
    """Draw the share of wrong top recommendations among the users kept, against the share kept."""
    figure, axes = _axes(f"Risk and coverage of {run.label}", "coverage (share of users kept)", "risk (1 − HR@1)")
    base = run.found[run.signal]["user"].get("base_rate")
    drawn = []
    for source, style in (("confidence", "-"), ("likelihood", ":")):
        if source == "likelihood" or run.trained:
            coverage, risk = (np.asarray(run.found[source]["risk_coverage"][key]) for key in ("coverage", "risk"))
            kept = coverage * run.found["num_rows"] >= min(FEWEST_USERS, run.found["num_rows"])
            axes.plot(coverage[kept], risk[kept], style, color=_colour(number), label=source)
            drawn.extend(risk[kept])
    if _is_number(base):
        axes.axhline(1 - base, ls="--", lw=1.2, color=MUTED, label="random")
        coverage = np.linspace(0.005, 1, 200)
        axes.plot(coverage, np.maximum(0, 1 - base / coverage), "-.", lw=1.2, color=MUTED, label="oracle")
        drawn.append(1 - base)
    room = 0.01 + 0.1 * (max(drawn) - min(drawn))  # the oracle runs out of the frame
    axes.set(xlim=(0, 1), ylim=(min(drawn) - room, max(drawn) + room))
    _legend(figure, axes)
    caption = f"Lower is better. The curves start at {FEWEST_USERS} users; the oracle keeps all hits before any miss."
    return _draw(f"risk {number} {run.label}", f"Risk and coverage of {run.label}", caption, figure)


def rejection_picture(runs: list[EvaluatedRun], key: str) -> Picture:
    """Draw HR@10 or NDCG@10 of the users kept, against the share kept."""
    title = f"{key.upper()} of the users kept"
    figure, axes = _axes(title, "coverage (share of users kept)", key.upper())
    for number, run in enumerate(runs):
        for source, style in (("confidence", "-"), ("likelihood", ":")):
            if source == "likelihood" or run.trained:
                curve = run.found[source]["rejection"]
                axes.plot(curve["coverage"], curve[key], style, color=_colour(number), label=f"{run.label}: {source}")
        everyone = _kept(run, "random", key)
        if _is_number(everyone):
            axes.axhline(everyone, ls="--", lw=1, color=_colour(number), label=f"{run.label}: random")
    axes.set(xlim=(0, 1), ylim=(0, None))
    _legend(figure, axes)
    return _draw(f"kept {key}", title, "Higher is better; at full coverage all users are kept.", figure)


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower().replace("@", "")).strip("-")


def _inline_svg(picture: Picture) -> str:
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


# ------------------------------------------------------------------------------------------------------ blocks


class Block(NamedTuple):
    """A part of the report, in both forms."""

    markdown: str
    html: str
    pictures: Sequence[Picture] = ()


def _heading(text: str, level: int = 2) -> Block:
    return Block(f"{'#' * level} {_markdown(text)}", f'<h{level} id="{_slug(text)}">{html.escape(text)}</h{level}>')


def _paragraph(text: str) -> Block:
    return Block(_markdown(text), f"<p>{html.escape(text)}</p>")


def _note(text: str) -> Block:
    return Block(_markdown(text), f'<p class="note">{html.escape(text)}</p>')


def _numbers(rows: Rows) -> Block:
    return Block(markdown_table(rows), _html_table(rows))


def _gallery(pictures: Sequence[Picture]) -> Block:
    shown = [
        f"![{_markdown(picture.title)}](figures/{picture.name}.png)\n\n*{_markdown(picture.caption)}*"
        for picture in pictures
    ]
    figures = [
        f"<figure>{_inline_svg(picture)}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
        for picture in pictures
    ]
    return Block("\n\n".join(shown), f'<div class="gallery">{"".join(figures)}</div>', pictures)


class Recommended(NamedTuple):
    """What one run recommends to one user, with bars in [0, 1] of the longest of all."""

    run: str
    colour: str
    titles: list[str]
    values: list[float]
    bars: list[float]
    hits: list[bool]


class User(NamedTuple):
    """A user of the examples: what came before, what came next, what each run recommended, where it was right."""

    user: int
    history: list[str]
    target: str
    recommended: list[Recommended]
    outcome: str


def _users(users: list[User]) -> Block:
    shown = "".join(map(_html_user, users)).replace("<details ", "<details open ", 1)
    return Block(
        "\n\n".join(map(_markdown_user, users)),
        '<input type="checkbox" id="only-hits"><label for="only-hits"> only users with a hit</label>'
        f'<div class="users">{shown}</div>',
    )


def _markdown_user(user: User) -> str:
    width = max(len(shown.titles) for shown in user.recommended)
    head = ["#", *(_markdown(shown.run) for shown in user.recommended)]
    rows = [[str(rank + 1), *(_markdown_cell(shown, rank) for shown in user.recommended)] for rank in range(width)]
    lines = [f"| {' | '.join(row)} |" for row in [head, ["--:", *[":--"] * len(user.recommended)], *rows]]
    return "\n".join(
        [
            f"<details><summary>User {user.user}: {html.escape(user.outcome)}</summary>\n",
            f"History: {' → '.join(map(_markdown, user.history))}\n",
            f"Next: **{_markdown(user.target)}**\n",
            *lines,
            "\n</details>",
        ]
    )


def _markdown_cell(shown: Recommended, rank: int) -> str:
    if rank >= len(shown.titles):
        return DASH
    title = _markdown(shown.titles[rank])
    title = f"**{title}** ✓" if shown.hits[rank] else title
    return f"{title} {'█' * max(1, round(8 * shown.bars[rank]))} {shown.values[rank]:.3f}"


def _html_user(user: User) -> str:
    kind = "user hit" if any(any(shown.hits) for shown in user.recommended) else "user"
    history = "".join(f"<li>{html.escape(title)}</li>" for title in user.history)
    return (
        f'<details class="{kind}"><summary><b>User {user.user}</b> next: {html.escape(user.target)} '
        f'<span class="outcome">{html.escape(user.outcome)}</span></summary><div class="lists">'
        f"<section><h4>History</h4><ol>{history}</ol>"
        f'<p class="next">Next: <b>{html.escape(user.target)}</b></p></section>'
        f"{''.join(map(_html_list, user.recommended))}</div></details>"
    )


def _html_list(shown: Recommended) -> str:
    items = [
        f'<li class="{"hit" if hit else "miss"}"><span class="title">{html.escape(title)}{" ✓" if hit else ""}</span>'
        f'<span class="bar"><i style="width:{100 * bar:.1f}%"></i></span><span class="value">{value:.3f}</span></li>'
        for title, value, bar, hit in zip(shown.titles, shown.values, shown.bars, shown.hits, strict=True)
    ]
    return (
        f'<section style="--bar: var({VARIABLES[shown.colour]})"><h4>{html.escape(shown.run)}</h4>'
        f'<ol class="recommended">{"".join(items)}</ol></section>'
    )


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
        _publish(out, compose(runs, config.split))
    return config.out


def compose(runs: list[EvaluatedRun], split: Split) -> list[Block]:
    """Return the blocks of the report, in order."""
    return [
        _heading("Comparison"),
        _paragraph(_headline(runs)),
        *_comparison(runs, split),
        _heading("Training"),
        *_training(runs),
        _heading("Reliability"),
        _paragraph(RELIABILITY_GUIDE),
        _gallery([reliability_picture(run, number) for number, run in enumerate(runs)]),
        _heading("Risk and coverage"),
        _paragraph(RISK_GUIDE),
        _gallery([risk_picture(run, number) for number, run in enumerate(runs)]),
        _gallery([rejection_picture(runs, key) for key in ("hr@10", "ndcg@10")]),
        _heading("Examples"),
        *_examples(runs),
        _heading("Settings"),
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
    name = BASELINES.get(strongest, strongest)
    baseline = f"; strongest simple baseline: {name}, {simple[strongest]:.4f}" if strongest else ""
    below = [run.label for run in runs if float(run.found["ranking"].get(value) or 0) <= simple.get(strongest, -1)]
    start = [run.label for run in runs if run.at_start]
    return "".join(
        [
            f"{reached}{baseline}.",
            f" Not above that baseline, so not working yet: {', '.join(below)}." if below else "",
            f" Evaluated at update 0, the best on valid, so the same model as before: {', '.join(start)}."
            if start
            else "",
        ]
    )


def _comparison(runs: list[EvaluatedRun], split: Split) -> list[Block]:
    rows = runs[0].found["num_rows"]
    rate = max(float(run.found["ranking"].get("hr@10") or 0) for run in runs)
    error = math.sqrt(rate * (1 - rate) / max(rows, 1))
    guide = (
        f"How to read it. {rows} rows of the {split} split, each one user's next item; every run ranks the whole "
        "catalogue by beam search over its semantic IDs. HR@k is the share of users whose next item is among the "
        "first k, NDCG@k also rewards a high rank; both at item level. ECE (lower is better) is how far the confidence "
        "of the top recommendation lies from how often it is right, AUROC how well it tells right from wrong (0.5 is "
        "chance). Last column: HR@10 of the users left when the least confident half is rejected. The baselines are "
        f"counted on the training split. Bold is best. With {rows} rows, an HR@10 of {rate:.3f} has a standard error "
        f"of {error:.4f}: a smaller difference may be chance."
    )
    footnote = [] if all(run.trained for run in runs) else [_note(FOOTNOTE)]
    return [
        _numbers(comparison_table(runs)),
        *footnote,
        _paragraph(guide),
        _heading("What the confidence is worth", 3),
        _numbers(confidence_table(runs)),
        _note(
            "Brier skill is 0 for always saying the base rate, and negative for worse. AURC is the mean error rate "
            "over all coverages; lower is better." + (f" {MARK} Untrained confidence tokens." if footnote else "")
        ),
        _heading("At the level of semantic IDs", 3),
        _numbers(sid_table(runs)),
        _note("Differs from item level only where several items share a semantic ID."),
    ]


def _training(runs: list[EvaluatedRun]) -> list[Block]:
    galleries = [_gallery(pictures) for command in CURVES if (pictures := training_pictures(runs, command))]
    return galleries if galleries else [_paragraph("The runs logged nothing.")]


def _examples(runs: list[EvaluatedRun]) -> list[Block]:
    longest = {
        run.label: max((r[run.signal] for e in run.found["examples"] for r in e["recommended"]), default=0.0)
        for run in runs
    }
    users = [_user(runs, shown, longest) for shown in zip(*(run.found["examples"] for run in runs), strict=True)]
    hits = sum(any(any(shown.hits) for shown in user.recommended) for user in users)
    scales = ", ".join(f"{run.label} {run.signal}, longest bar {longest[run.label]:.3f}" for run in runs)
    text = (
        f"{len(users)} users drawn at random, hit or miss; for {hits} of them some run has the next item among its "
        f"ten, marked ✓. Beside each title: {scales}."
    )
    return [_paragraph(text), _users(users)]


def _user(runs: list[EvaluatedRun], shown: Sequence[dict[str, Any]], longest: dict[str, float]) -> User:
    recommended = []
    for number, (run, example) in enumerate(zip(runs, shown, strict=True)):
        values = [float(item[run.signal]) for item in example["recommended"]]
        recommended.append(
            Recommended(
                run=run.label,
                colour=_colour(number),
                titles=[item["title"] for item in example["recommended"]],
                values=values,
                bars=[value / longest[run.label] if longest[run.label] else 0.0 for value in values],
                hits=[item["hit"] for item in example["recommended"]],
            )
        )
    history = max((example["history"] for example in shown), key=len)
    ranks = [f"{found.run} rank {found.hits.index(True) + 1}" for found in recommended if any(found.hits)]
    outcome = ", ".join(ranks) if ranks else "not among the recommended"
    return User(shown[0]["user"], history, shown[0]["target"], recommended, outcome)


def _settings(runs: list[EvaluatedRun]) -> list[Block]:
    parts: list[tuple[str, Callable[[EvaluatedRun], dict[str, Any]]]] = [
        ("evaluation", _outcome),
        ("environment", lambda run: run.config["environment"]),
        ("setting", lambda run: {"command": run.command, **run.config["settings"]}),
    ]
    tables = [_settings_table(runs, part, name) for name, part in parts]
    return [Block(markdown_table(rows, bold=False), _html_table(rows, bold=False)) for rows in tables]


def _write(folder: Path, blocks: list[Block]) -> None:
    (folder / "figures").mkdir()
    for block in blocks:
        for picture in block.pictures:
            (folder / "figures" / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
            (folder / "figures" / f"{picture.name}.png").write_bytes(picture.png)
    text = "\n\n".join(block.markdown for block in blocks)
    (folder / "report.md").write_text(f"# {TITLE}\n\n{text}\n", encoding="utf-8")
    (folder / "report.html").write_text(_page(blocks), encoding="utf-8")


def _page(blocks: list[Block]) -> str:
    sections = [block.markdown[3:] for block in blocks if block.markdown.startswith("## ")]
    links = "".join(f'<a href="#{_slug(text)}">{text}</a>' for text in sections)
    body = "\n".join(block.html for block in blocks)
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


def _publish(out: Path, blocks: list[Block]) -> None:
    """Write the report beside `out`, and swap it in when it is whole."""
    new, old = (out.with_name(f".{out.name}.{kind}") for kind in ("new", "old"))
    for left in (new, old):  # by a killed process
        shutil.rmtree(left, ignore_errors=True)
    with new_folder(new) as folder:
        _write(folder, blocks)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


TITLE = "ugr-fast report"
CSS = """
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 1rem 0 .25rem; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; } h4 { font-size: .9rem; margin: .25rem 0 .5rem; }
p { max-width: 46rem; } a { color: var(--run0); } .note { color: var(--muted); font-size: .87rem; margin-top: .4rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .95rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .75rem 0; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: baseline; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 9rem; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
.settings td { overflow-wrap: anywhere; min-width: 6rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.25rem;
  margin: 1rem 0 1.5rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { color: var(--muted); font-size: .82rem; line-height: 1.4; }
.user { border-bottom: 1px solid var(--grid); padding: .45rem 0; } summary { cursor: pointer; }
.outcome { color: var(--muted); font-size: .85rem; margin-left: .75rem; } .hit .outcome { color: var(--run2); }
#only-hits:checked ~ .users .user:not(.hit) { display: none; }
.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: .5rem 2rem;
  padding: .75rem 0 .5rem; font-size: .87rem; line-height: 1.4; }
.lists ol { margin: 0; padding-left: 1.6rem; } .next { margin: .6rem 0; }
.recommended li { display: grid; grid-template-columns: 1fr 5rem 2.8rem; gap: .6rem; align-items: center;
  position: relative; counter-increment: rank; }
.recommended { counter-reset: rank; } .recommended li::before { content: counter(rank); position: absolute;
  left: -1.6rem; width: 1.2rem; text-align: right; color: var(--muted); }
.bar { background: var(--grid); height: .55rem; border-radius: .3rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--bar); }
.value { text-align: right; font-variant-numeric: tabular-nums; color: var(--muted); }
.recommended .hit .title { font-weight: 700; color: var(--run2); }
@media print { body { max-width: none; font-size: 10pt; padding: 0; } nav, #only-hits, label { display: none; }
  figure, tr, .user { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .gallery { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; } table { font-size: 8pt; }
  th, td { padding: .15rem .4rem; } tbody th { min-width: 0; } * { print-color-adjust: exact; } }
"""


def _css() -> str:
    dark = {**DARK, **RUN_COLOURS}
    light = " ".join(f"{variable}: {colour};" for colour, variable in VARIABLES.items())
    night = " ".join(f"{variable}: {dark[colour]};" for colour, variable in VARIABLES.items())
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {night} }} }}{CSS}"
