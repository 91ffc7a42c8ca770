"""A benchmark in tables: Markdown with intervals, CSV with a row per run."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.benchmark.config import BenchmarkConfig, TaskEntry
from agents.benchmark.rows import Row, results, score
from agents.results import Result
from agents.statistics import interval

COLUMNS = {
    "parameter_reduction": "parameters removed %",
    "macs_reduction": "MACs removed %",
    "latency_reduction": "latency reduction %",
    "validation_change": "validation change (points)",
    "selection_change": "selection change (points)",
    "test_change": "test change (points)",
    "test_accuracy": "test accuracy %",
    "finetuned_test_accuracy": "test accuracy, fine-tuned %",
    "episode_return": "return of the own episode",
    "environment_steps": "environment steps",
    "evaluations": "evaluations",
    "seconds": "seconds",
}


DIGITS = {
    "validation_change": 2,
    "selection_change": 2,
    "test_change": 2,
    "test_accuracy": 2,
    "finetuned_test_accuracy": 2,
    "episode_return": 3,
    "environment_steps": 0,
    "evaluations": 0,
}
"""Decimals of a column, where not 1."""
COMPARED = (
    "parameter_reduction",
    "macs_reduction",
    "latency_reduction",
    "test_change",
    "finetuned_test_accuracy",
    "episode_return",
)
"""Columns whose differences between policies are shown."""


def figures(result: Result) -> dict[str, float]:
    """What a table shows of a run, in the units of :data:`COLUMNS`; reductions are those of the unprepared network."""
    parameters, macs, latency = result.removed
    return {
        "parameter_reduction": 100 * parameters,
        "macs_reduction": 100 * macs,
        "latency_reduction": float("nan") if latency is None else 100 * latency,
        "validation_change": 100 * (result.validation_accuracy - result.baseline_validation_accuracy),
        "selection_change": 100 * (result.selection_accuracy - result.baseline_selection_accuracy),
        "test_change": 100 * (result.test_accuracy - result.baseline_test_accuracy),
        "test_accuracy": 100 * result.test_accuracy,
        "finetuned_test_accuracy": 100 * result.finetuned.test_accuracy if result.finetuned else float("nan"),
        "episode_return": result.episode_return,
        "environment_steps": result.environment_steps,
        "evaluations": result.evaluations,
        "seconds": result.seconds["policy"],
    }


@dataclass(frozen=True)
class Grid:
    """A table of texts; the first column holds names."""

    titles: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def grids(config: BenchmarkConfig, task: TaskEntry, rows: Sequence[Row]) -> tuple[Grid, Grid]:
    """Mean and 95 % interval over seeds of every policy on a task, and of its seed-by-seed difference from the first.

    Columns that no policy has a figure for are left out.
    """
    of_policy: dict[str, dict[int, dict[str, float]]] = {entry.name: {} for entry in config.entries(task)}
    for key, result in results(rows).items():
        if key.task == task.name and key.label in of_policy:
            of_policy[key.label][key.seed] = figures(result)
    every = [figure for of_seed in of_policy.values() for figure in of_seed.values()]
    shown = [column for column in COLUMNS if not all(np.isnan(figure[column]) for figure in every)]
    lines = [
        (name, str(len(of_seed)), *(_cell(column, [figure[column] for figure in of_seed.values()]) for column in shown))
        for name, of_seed in of_policy.items()
        if of_seed
    ]
    compared = [column for column in COMPARED if column in shown]
    (first, of_first), *others = of_policy.items()
    differences = []
    for name, of_seed in others:
        seeds = sorted(of_first.keys() & of_seed.keys())
        if seeds:
            pairs = {column: [of_first[seed][column] - of_seed[seed][column] for seed in seeds] for column in compared}
            differences.append((name, str(len(seeds)), *(_cell(column, pairs[column]) for column in compared)))
    return (
        Grid(("policy", "runs", *(COLUMNS[column] for column in shown)), tuple(lines)),
        Grid((f"{first} minus", "runs", *(COLUMNS[column] for column in compared)), tuple(differences)),
    )


def markdown_table(config: BenchmarkConfig, rows: Sequence[Row]) -> str:
    """The grids of all tasks; failed runs are listed below."""
    blocks = []
    for task in config.tasks:
        if len(config.tasks) > 1:
            blocks.append(f"**{task.name}**")
        blocks += [_markdown(grid) for grid in grids(config, task, rows) if grid.lines]
    if failed := [row for row in rows if row.failure is not None]:
        blocks += ["Failed runs:", "\n".join(f"* {row.key}: {row.failure}" for row in failed)]
    return "\n\n".join(blocks)


def csv_table(rows: Sequence[Row]) -> str:
    """A line per run, in the units of :data:`COLUMNS`; a failed run has its reason and no figures."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["task", "policy", "seed", "failure", "score", "baseline_test_accuracy", *COLUMNS])
    for row in sorted(rows, key=lambda row: row.key):
        cells: list[object] = [""] * (2 + len(COLUMNS))
        if row.result is not None:
            values = figures(row.result).values()
            cells = [score(row.result), 100 * row.result.baseline_test_accuracy]
            cells += ["" if np.isnan(value) else value for value in values]
        writer.writerow([*row.key, row.failure or "", *cells])
    return buffer.getvalue()


def _markdown(grid: Grid) -> str:
    rule = "|---|" + "---:|" * (len(grid.titles) - 1)
    return "\n".join([_line(grid.titles), rule, *map(_line, grid.lines)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(column: str, values: Sequence[float]) -> str:
    mean, half = interval(values)
    digits = DIGITS.get(column, 1)
    if np.isnan(mean):
        return "-"
    return f"{mean:,.{digits}f}" + ("" if np.isnan(half) else f" ± {half:,.{digits}f}")
