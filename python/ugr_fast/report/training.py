"""How training went: what was logged, runs over one another, and where the time of an update goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ugr_fast.report.blocks import Block, gallery, heading, numbers, paragraph
from ugr_fast.report.figures import PAPER, Picture, axes_of, colour_of, draw, legend, marker_of
from ugr_fast.report.read import EvaluatedRun, is_number
from ugr_fast.report.tables import Rows, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
            "Not logged for UGR's reward: a hit earns what the misses beside it lose, 0 in every group.",
        ),
        Curve("loss", "RL: training loss", "loss", "Policy and confidence; it need not fall as the policy improves."),
    ),
}
PARTS = {"rollout": 1.0, "reward": 0.6, "update": 0.35, "other": 0.12}  # of an update: how dark its bar is


def section(runs: list[EvaluatedRun]) -> list[Block]:
    """Return the section on training."""
    galleries = [gallery(pictures) for command in CURVES if (pictures := pictures_of(runs, command))]
    blocks = [heading("Training"), *(galleries or [paragraph("The runs logged nothing.")])]
    timed = {run.label: times for run in runs if (times := step_times(run))}
    if timed:
        blocks += [heading("Time of an update", 3), numbers(time_table(timed), "Seconds of an update")]
        blocks += [gallery([_time_picture(timed)])]
    return blocks


def pictures_of(runs: list[EvaluatedRun], command: str) -> list[Picture]:
    """Draw what runs of `command` logged, a picture for each quantity that is not missing or 0 throughout."""
    logged = [run for run in runs if run.command == command]
    curves = [
        curve for curve in CURVES[command] if any(abs(y) > 1e-6 for run in logged for y in run.series(curve.key)[1])
    ]
    return [
        draw(f"{command} {curve.key}", curve.title, curve.caption, training_figure(runs, command, curve))
        for curve in curves
    ]


def training_figure(runs: list[EvaluatedRun], command: str, curve: Curve) -> Figure:
    """Draw one quantity of all runs of `command`; with validation of rl, what fine-tuning had reached as a line."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = axes_of(curve.title, "epoch" if command == "sft" else "update", curve.unit)
    for run in runs:
        if run.command == command:
            _plot_run(axes, run, curve)
        elif command == "rl" and curve.key.startswith("valid."):
            value = run.best.get((curve.control or curve.key).removeprefix("valid."))
            if is_number(value):
                label = f"{run.label}: {'likelihood' if curve.control else 'best'}"
                axes.axhline(value, ls="--", lw=1.4, color=colour_of(run.number), label=label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    legend(figure, axes)
    return figure


def _plot_run(axes: Axes, run: EvaluatedRun, curve: Curve) -> None:
    label = f"{run.label}: confidence" if curve.control else run.label
    _plot_series(axes, *run.series(curve.key), run.number, label)
    if curve.control:
        axes.plot(
            *run.series(curve.control),
            linestyle=":",
            marker=marker_of(run.number),
            ms=4,
            mfc=PAPER,
            color=colour_of(run.number),
            label=f"{run.label}: likelihood",
        )


def _plot_series(axes: Axes, x: list[float], y: list[float], run: int, label: str) -> None:
    """Plot points that are few as they are, and many as a running mean over their shadow."""
    colour, marker = colour_of(run), marker_of(run)
    if len(x) <= 30:
        axes.plot(x, y, marker=marker, ms=4, color=colour, label=label)
        return
    width = max(5, len(y) // 15)
    smooth = np.convolve(y, np.full(width, 1 / width), "valid")
    axes.plot(x, y, lw=0.7, alpha=0.35, color=colour)
    every = max(1, len(smooth) // 6)
    axes.plot(
        x[width - 1 :], smooth, color=colour, marker=marker, ms=4, markevery=every, label=f"{label}, mean of {width}"
    )


def step_times(run: EvaluatedRun) -> dict[str, float]:
    """Return the mean seconds of an update by what they went to; empty where that was not logged."""
    keys = [f"seconds_{part}" for part in PARTS if part != "other"]
    lines = [line for line in run.lines if all(is_number(line.get(key)) for key in keys)]
    if not lines:
        return {}
    times = {key.removeprefix("seconds_"): float(np.mean([line[key] for line in lines])) for key in keys}
    total = float(lines[-1]["seconds"]) / len(lines) if is_number(lines[-1].get("seconds")) else 0.0
    return {**times, "other": max(0.0, total - sum(times.values()))}


def time_table(timed: dict[str, dict[str, float]]) -> Rows:
    """Return the seconds of an update, and the share that each part takes."""
    parts = _parts(timed)
    rows = [["mean over all updates", "seconds of an update", *parts]]
    for label, times in timed.items():
        total = sum(times.values())
        rows.append([label, number(total, 3), *(percent(times[part] / total if total else None) for part in parts)])
    return rows


def _parts(timed: dict[str, dict[str, float]]) -> list[str]:
    """Return the parts that take any time worth showing."""
    return [part for part in PARTS if any(times[part] > 0.0005 * sum(times.values()) for times in timed.values())]


def _time_picture(timed: dict[str, dict[str, float]]) -> Picture:
    title = "RL: time of an update"
    figure, axes = axes_of(title, "seconds", "", size=(4.2, 1.1 + 0.35 * len(timed)))
    start = np.zeros(len(timed))
    for part in _parts(timed):
        seconds = np.array([times[part] for times in timed.values()])
        bars = axes.barh([*timed], seconds, left=start, height=0.6, color=colour_of(0), edgecolor=PAPER, label=part)
        for bar in bars:
            bar.set_alpha(PARTS[part])
        start += seconds
    axes.invert_yaxis()
    axes.grid(visible=False)
    legend(figure, axes)
    rest = ", and what else the log counts" if "other" in _parts(timed) else "; validation is not in the log"
    caption = f"From the left: candidates by the current policy, their rewards, the gradient step{rest}."
    return draw("rl time of an update", title, caption, figure)
