"""What evaluations bought: the best score so far against the evaluations spent, policy by policy."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agents.benchmark import BenchmarkConfig, Key, Row
from agents.benchmark.rows import objective_of, results
from agents.report.canvas import heading, legend_beside, look, mark, panel, picture_of_panels, to_svg
from agents.report.palette import Style
from agents.report.pictures.parts import Section, style_key
from agents.report.plotting import Axes, FuncFormatter, Line2D, NullFormatter
from agents.report.standings import styles as styles_of
from agents.report.words import counted, sentence
from agents.results import Result
from agents.statistics import interval
from envs.objectives import Budget, Objective, Tolerance

BANDS = 6
"""Intervals of more policies would hide each other and the lines."""
_SEEDS = (
    ", mean over seeds{bands}. A line begins where the last of them meets the objective, and ends where the first has "
    "no evaluations left; if that comes before, there is only a mark"
)


def section(task: str, rows: Sequence[Row], styles: Mapping[str, Style], number: int) -> Section | None:
    """Mean best score so far of every policy on one task; None where no run recorded it.

    Args:
        task: its name in the benchmark.
        rows: of the benchmark.
        styles: of its policies by label; drawn in this order.
        number: of the task, for names that are unique within the page.
    """
    found = with_scores(task, rows)
    if not found:
        return None
    bands = len({key.label for key in found}) <= BANDS
    with look():
        figure, (axes,) = panel(330, width=640)
        drawn = draw(axes, found, styles, bands=bands)
        picture = to_svg(figure, f"scores-{number}", f"Best score so far against evaluations spent, {task}")
    several = _SEEDS.format(bands=", with 95 % intervals" if bands else "")
    return Section(
        name=f"scores-{number}",
        title=f"{task}: what evaluations bought",
        text=f"The best state so far by the reward split{several if len({key.seed for key in found}) > 1 else ''}. "
        "Evaluations of an iteration of a controller's training are spread evenly over the episodes that end in it.",
        legend=tuple(style_key(label, styles[label]) for label in drawn),
        panels=(picture,),
        wide=True,
    )


def save_scores(config: BenchmarkConfig, rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with a panel per task, without intervals; nothing where no run recorded its scores.

    Args:
        config: of the benchmark.
        rows: its finished runs.
        path: where to.

    Raises:
        FileError: the picture cannot be written.
    """
    of_task = {task.name: found for task in config.tasks if (found := with_scores(task.name, rows))}
    if not of_task:
        return
    appearance = styles_of(entry.name for entry in config.policies)
    with picture_of_panels(path, len(of_task)) as panels:
        for axes, (name, found) in zip(panels, of_task.items(), strict=True):
            drawn = draw(axes, found, appearance, bands=False, suffix=f" ({name})" if len(config.tasks) > 1 else "")
            legend_beside(axes, {label: _key(appearance[label]) for label in drawn})


def with_scores(task: str, rows: Sequence[Row]) -> dict[Key, Result]:
    """The runs of a task that recorded their best scores so far."""
    return {key: result for key, result in results(rows).items() if key.task == task and result.scores}


def _key(style: Style) -> Line2D:
    return Line2D([], [], color=style.colour, linestyle=style.line, marker=style.marker, markersize=8, **style.face)


def draw(
    axes: Axes, found: Mapping[Key, Result], styles: Mapping[str, Style], *, bands: bool, suffix: str = ""
) -> list[str]:
    """Draw all policies of a task; returns the labels of those that are drawn.

    Args:
        axes: where.
        found: runs of one task.
        styles: of the policies by label, in order.
        bands: whether intervals are drawn, too.
        suffix: of the heading.
    """
    objective = objective_of(next(iter(found.values())))
    drawn = []
    for label, style in styles.items():
        mine = [result for key, result in found.items() if key.label == label and objective_of(result) == objective]
        if mine:
            _draw(axes, mine, objective, style, bands=bands)
            drawn.append(label)
    if drawn:
        # The bands of a few seeds would dwarf the lines.
        means = np.concatenate([np.asarray(line.get_ydata()) for line in axes.get_lines()])
        margin = 0.08 * max(np.ptp(means), 1e-6)
        axes.set_ylim(means.min() - margin, means.max() + margin)
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Evaluations spent (steps and probes), logarithmic")
    heading(axes, _title(objective) + suffix)
    return drawn


def mean_of_steps(
    curves: Sequence[Sequence[tuple[float, float]]], ends: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of step curves, and half the width of its 95 % interval.

    Args:
        curves: of each run: where it rises, ascending, and to what.
        ends: of each curve.

    Returns:
        Where any curve rises, from 1 and where all have begun to where the first ends, both included; only where all
        have begun if the first ends before. Mean and half width there; each ``[P]``.
    """
    start = max([1.0, *(float(curve[0][0]) for curve in curves)])
    end = max(start, min(ends))
    places = {float(x) for curve in curves for x, _ in curve if start < x < end}
    grid = np.array(sorted({start, end} | places))
    values = []
    for curve in curves:
        x, y = np.array(curve, dtype=np.float64).T
        values.append(y[np.searchsorted(x, grid, side="right") - 1])
    mean, half = zip(*(interval(column) for column in np.array(values).T), strict=True)
    return grid, np.array(mean), np.array(half)


def _draw(axes: Axes, mine: Sequence[Result], objective: Objective, style: Style, *, bands: bool) -> None:
    curves = [[(x, _shown(score, result, objective)) for x, score in result.scores or ()] for result in mine]
    x, mean, half = mean_of_steps(curves, [result.evaluations for result in mine])
    axes.plot(x, mean, color=style.colour, linestyle=style.line, drawstyle="steps-post")
    if bands and len(mine) > 1:
        axes.fill_between(x, mean - half, mean + half, step="post", color=style.colour, alpha=0.13, linewidth=0)
    mark(axes, x[-1], mean[-1], style)


def _shown(score: float, result: Result, objective: Objective) -> float:
    """A score as the axis shows it: seeds differ in their baselines, so accuracies are changes."""
    if isinstance(objective, Budget):
        return 100 * (score - result.baseline_validation_accuracy)
    return 100 * score if isinstance(objective, Tolerance) else score


def _title(objective: Objective) -> str:
    if isinstance(objective, Tolerance):
        return sentence(f"{counted(objective.measure)} removed within tolerance, %")
    return "Accuracy minus baseline at the target, points" if isinstance(objective, Budget) else "Score"
