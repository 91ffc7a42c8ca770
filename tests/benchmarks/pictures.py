"""Pictures of the tables: what a step costs against what remains of the network, and the ratios to the naive loop."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.report.canvas import heading, look
from agents.report.palette import COLOURS, INK, MUTED, SURFACE
from agents.report.plotting import Axes, Figure, FuncFormatter, rcParams
from recognizers.files import atomic_path
from tests.benchmarks.cases import FLOORS, KEY
from tests.benchmarks.tables import read_rows

_WINDOW = 9
"""Steps that a running median is taken over."""
_STYLES = {"auto": ("series-0", "o"), "float32": ("series-1", "^"), "bfloat16": ("series-2", "s")}
"""Colour and marker by precision; the markers and the labels tell them apart without colour."""

Rows = Sequence[dict[str, str]]


def draw_pictures(folder: Path) -> list[Path]:
    """Draw the tables in ``folder`` into ``step-costs.svg`` and ``ratios.svg`` beside them.

    Args:
        folder: holds ``steps.csv`` and ``per_step.csv``; no pictures come of empty tables.
    """
    cases, steps = read_rows(folder / "steps.csv"), read_rows(folder / "per_step.csv")
    if not cases or not steps:
        return []
    paths = [folder / "step-costs.svg", folder / "ratios.svg"]
    with look():
        rcParams["svg.hashsalt"] = "zeroout"  # the same figures give the same file
        for path, figure in zip(paths, (step_costs(cases, steps), ratios(cases)), strict=True):
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format="svg", facecolor=SURFACE, metadata={"Date": None})
    return paths


def step_costs(cases: Rows, steps: Rows) -> Figure:
    """A panel per task and recovery: milliseconds of every step against the MACs that remain after it."""
    tasks, recoveries = (list(dict.fromkeys(case[column] for case in cases)) for column in ("task", "recovery"))
    width, height = 3.7 * len(recoveries) + 0.2, 2.8 * len(tasks) + 0.9
    figure = Figure(figsize=(width, height))
    figure.text(
        0.12 / width,
        1 - 0.12 / height,
        "Milliseconds per step (vertical) against the share of MACs that remains, % (horizontal)",
        va="top",
        fontsize=12,
    )
    figure.text(
        0.12 / width,
        1 - 0.38 / height,
        f"points: steps; lines: running median of {_WINDOW} steps; dashed: in proportion to the MACs, "
        "from the first step without caches",
        va="top",
        color=MUTED,
    )
    for row, task in enumerate(tasks):
        for column, recovery in enumerate(recoveries):
            mine = [case for case in cases if (case["task"], case["recovery"]) == (task, recovery)]
            if not mine:
                continue
            corner = ((3.7 * column + 0.7) / width, (height - 0.9 - 2.8 * (row + 1) + 0.5) / height)
            axes = figure.add_axes((*corner, 2.3 / width, 1.95 / height))
            heading(axes, f"{task}, {recovery}")
            _costs(axes, mine, steps)
    return figure


def _costs(axes: Axes, cases: Rows, steps: Rows) -> None:
    labels: list[tuple[float, str, str]] = []
    for case in cases:
        own = [step for step in steps if all(step[column] == case[column] for column in KEY)]
        remaining = np.array([100 * (1 - float(step["macs_reduction"])) for step in own])
        cost = np.array([1e3 * float(step["zeroout_s"]) for step in own])
        name, marker = _STYLES[case["precision"]]
        colour = COLOURS[name][0]
        full = 1e3 * float(case["full_first_step_s"])
        axes.plot([0, 100], [0, full * 100 / remaining[0]], color=colour, linewidth=1, dashes=(4, 3), alpha=0.7)
        axes.scatter(remaining, cost, 10, color=colour, marker=marker, alpha=0.35, linewidths=0)
        median = running_median(cost, _WINDOW)
        axes.plot(remaining, median, color=colour)
        labels.append((float(median[0]), case["precision"], colour))
    axes.set_xlim(0, 102)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    top = axes.get_ylim()[1]
    place = -np.inf
    for height, text, colour in sorted(labels):  # beside the lines' right ends, pushed apart where they would overlap
        place = max(height, place + 0.1 * top)
        axes.annotate(text, (103, place), color=colour, va="center", annotation_clip=False)


def ratios(cases: Rows) -> Figure:
    """A bar per case: seconds of the naive loop over those of zeroout; dashes mark floors."""
    values = [float(case["ratio"]) for case in cases]
    width, height = 8.4, 0.27 * len(cases) + 1.2
    figure = Figure(figsize=(width, height))
    figure.text(
        0.12 / width,
        1 - 0.12 / height,
        "An episode: seconds of the naive loop / seconds of zeroout",
        va="top",
        fontsize=12,
    )
    axes = figure.add_axes((0.36, 0.4 / height, 0.56, 1 - 1.1 / height))
    colours = [COLOURS[_STYLES[case["precision"]][0]][0] for case in cases]
    axes.barh(range(len(cases)), values, 0.72, color=colours)
    for index, (case, value) in enumerate(zip(cases, values, strict=True)):
        floor = FLOORS.get((case["task"], case["recovery"])) if case["precision"] != "float32" else None
        missed = floor is not None and value < floor
        if floor:
            axes.plot([floor, floor], [index - 0.45, index + 0.45], color=INK, linewidth=1.5, dashes=(2, 1.5))
            side, colour = ("left", INK) if missed else ("right", "white")
            axes.annotate(f" floor {floor:g} ", (floor, index), ha=side, va="center", color=colour, fontsize=8)
        # Where the bar ends before the floor its figure would lie on the dashes.
        shift, side, colour = (-4, "right", "white") if missed else (4, "left", INK)
        axes.annotate(
            *(f"{value:.3g}", (value, index), (shift, 0)),
            textcoords="offset points",
            ha=side,
            va="center",
            color=colour,
        )
    axes.set_yticks(range(len(cases)), [f"{case['task']}, {case['recovery']}, {case['precision']}" for case in cases])
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max(values))
    axes.grid(False, axis="y")
    return figure


def running_median(values: np.ndarray, window: int) -> np.ndarray:
    """Median over the ``window`` values around each of ``values``, ``[n]``; fewer at the ends."""
    half = window // 2
    return np.array([np.median(values[max(0, index - half) : index + half + 1]) for index in range(len(values))])
