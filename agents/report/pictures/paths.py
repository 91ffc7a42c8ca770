"""Accuracy against reduction along the episode of every policy."""

import numpy as np
from markupsafe import Markup

from agents.report.canvas import heading, look, mark, panel, thin, to_svg
from agents.report.palette import INK, MUTED
from agents.report.pictures.parts import Section, policy_keys
from agents.report.plotting import Axes
from agents.report.run import Entry, Run
from agents.report.words import counted, removed, sentence
from envs.objectives import Budget, Tolerance
from recognizers.costs import Measure


def section(run: Run) -> Section:
    """One panel for parameters, one for MACs, and one for latency where it was counted."""
    measures: list[Measure] = ["parameters", "macs"]
    if all(entry.result.curve.latency_reduction for entry in run.entries):
        measures.append("latency")
    return Section(
        name="paths",
        title="Accuracy along the episode",
        text="From the complete network at the left to the final mask, marked, after recovery. " + _bounds(run),
        legend=policy_keys(run),
        panels=tuple(_panel(run, measure) for measure in measures),
    )


def draw_paths(axes: Axes, run: Run, measure: Measure) -> None:
    """Draw every policy's path; bounds are named outside the axes, so that nothing covers the data."""
    lows, highs, reach = [run.baseline.baseline_validation_accuracy], [run.baseline.baseline_validation_accuracy], [0.0]
    for entry in reversed(run.entries):
        reduction, accuracy = _path(entry, measure)
        lows.append(accuracy.min())
        highs.append(accuracy.max())
        reach.append(reduction.max())
        axes.plot(
            *thin(100 * reduction, 100 * accuracy),
            color=entry.style.colour,
            linewidth=2.4 if entry.controller else 1.6,
            linestyle=entry.style.line,
        )
    for entry in reversed(run.entries):  # above all lines
        reduction, accuracy = _path(entry, measure)
        mark(axes, 100 * reduction[-1], 100 * accuracy[-1], entry.style, size=9, clip_on=False)
    _draw_bounds(axes, run, measure, lows, reach)
    margin = max(0.06 * (max(highs) - min(lows)), 0.002)
    axes.set_ylim(100 * (min(lows) - margin), 100 * (max(highs) + margin))
    axes.set_xlim(0, min(100, max(105 * max(reach), 1)))
    axes.set_xlabel(sentence(f"{removed(measure)}, %"))
    heading(axes, "Accuracy on the reward split, %")


def _draw_bounds(axes: Axes, run: Run, measure: Measure, lows: list[float], reach: list[float]) -> None:
    baseline = run.baseline.baseline_validation_accuracy
    _draw_level(axes, baseline, "baseline", INK, upwards=True)
    if isinstance(run.objective, Tolerance):
        floor = baseline - run.objective.drop
        lows.append(floor)
        _draw_level(axes, floor, "floor", MUTED, upwards=False)
    if isinstance(run.objective, Budget) and run.objective.measure == measure:
        target = run.objective.target
        reach.append(target)
        axes.axvline(100 * target, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"target {100 * target:.4g}",
            (100 * target, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            color=MUTED,
        )


def _draw_level(axes: Axes, accuracy: float, name: str, colour: str, *, upwards: bool) -> None:
    axes.axhline(100 * accuracy, color=colour, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"{name}\n{100 * accuracy:.1f}",
        (1, 100 * accuracy),
        xycoords=("axes fraction", "data"),
        xytext=(5, -4 if upwards else 4),
        textcoords="offset points",
        va="bottom" if upwards else "top",
        color=colour,
        linespacing=1.1,
    )


def _panel(run: Run, measure: Measure) -> Markup:
    with look():
        figure, (axes,) = panel(310, right=58)
        draw_paths(axes, run, measure)
        return to_svg(figure, f"paths-{measure}", f"Accuracy against {removed(measure)}, for every policy")


def _path(entry: Entry, measure: Measure) -> tuple[np.ndarray, np.ndarray]:
    curve = entry.result.curve
    return np.array(curve.reduction(measure)), np.array(curve.accuracy)


def _bounds(run: Run) -> str:
    if isinstance(run.objective, Tolerance):
        drop = f"{100 * run.objective.drop:.4g}"
        return f"The episode ends where accuracy falls below the floor, {drop} points under the baseline."
    if isinstance(run.objective, Budget):
        target = f"{100 * run.objective.target:.4g}"
        return f"The episode ends at the target, {target} % of the {counted(run.objective.measure)}."
    return ""
