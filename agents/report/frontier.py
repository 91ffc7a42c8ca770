"""The picture of a benchmark: test accuracy against what was removed, a line per policy or as the entries say."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agents.benchmark import BenchmarkConfig, Key, Row, TaskEntry
from agents.benchmark.rows import results
from agents.report.canvas import heading, legend_beside, picture_of_panels
from agents.report.palette import MUTED, Style
from agents.report.plotting import Axes, ScaledTranslation
from agents.report.standings import styles
from agents.report.words import removed, sentence
from agents.results import Result
from agents.statistics import interval
from envs.objectives import Objective
from recognizers.costs import Measure

_STEP = 0.03
"""From one line's points to those of the next, in inches."""


def save_frontier(config: BenchmarkConfig, rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with means over seeds and 95 % intervals; entries of one line are joined.

    Tasks on one network with one kind of objective (budgets of several sizes, say) share a panel. Accuracies are those
    after fine-tuning, where there was any. What is removed are MACs, counted against the unprepared network, or latency
    where that is what the objective counts.

    Args:
        config: of the benchmark.
        rows: its finished runs.
        path: where to.

    Raises:
        FileError: the picture cannot be written.
    """
    lines = styles(entry.joined for entry in config.policies)
    groups = _groups(config)
    with picture_of_panels(path, len(groups)) as panels:
        for axes, tasks in zip(panels, groups, strict=True):
            _draw(axes, config, tasks, results(rows), lines)


def _groups(config: BenchmarkConfig) -> list[list[TaskEntry]]:
    """Tasks that share a panel."""
    groups: dict[tuple[str, type[Objective], Measure], list[TaskEntry]] = {}
    for task in config.tasks:
        groups.setdefault((task.task, type(_objective(config, task)), _measure(config, task)), []).append(task)
    return list(groups.values())


def _objective(config: BenchmarkConfig, task: TaskEntry) -> Objective:
    return config.settings(Key(task.name, config.entries(task)[0].name, config.seeds[0])).objective


def _measure(config: BenchmarkConfig, task: TaskEntry) -> Measure:
    """What is shown of a task's reductions."""
    return "latency" if _objective(config, task).measure == "latency" else "macs"


def _draw(
    axes: Axes,
    config: BenchmarkConfig,
    tasks: Sequence[TaskEntry],
    found: Mapping[Key, Result],
    lines: dict[str, Style],
) -> None:
    measure = _measure(config, tasks[0])
    for index, (line, style) in enumerate(lines.items()):
        points = []
        for task, entry in itertools.product(tasks, config.policies):
            keys = [Key(task.name, entry.name, seed) for seed in config.seeds if entry.joined == line]
            mine = [found[key] for key in keys if key in found]
            if mine:
                gone, _ = interval([100 * result.removed.of(measure) for result in mine])
                points.append((gone, *interval([100 * each.final_test_accuracy for each in mine])))
        if not points:
            continue
        x, mean, half = np.nan_to_num(np.array(sorted(points))).T  # of a single run there is no interval
        for bound in (mean - half, mean + half):
            axes.update_datalim(np.column_stack([x, bound]))  # not found out under another transform
        # Several sizes share a panel: side by side, as the intervals at each of them would hide each other.
        places = (index - (len(lines) - 1) / 2) if len(tasks) > 1 else 0
        aside = ScaledTranslation(places * _STEP, 0, axes.figure.dpi_scale_trans)
        axes.errorbar(
            x,
            mean,
            half,
            color=style.colour,
            marker=style.marker,
            linestyle=style.line,
            label=line,
            capsize=2,
            markersize=8,
            transform=axes.transData + aside,
            **style.face,
        )
    # Others may start from a recognizer that is prepared, or not trained at all.
    first = [Key(tasks[0].name, config.entries(tasks[0])[0].name, seed) for seed in config.seeds]
    baselines = [100 * found[key].baseline_test_accuracy for key in first if key in found]
    if baselines:
        axes.axhline(sum(baselines) / len(baselines), color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    if any(key.task in {task.name for task in tasks} for key in found):
        legend_beside(axes)
    name = tasks[0].name if len(tasks) == 1 else tasks[0].task
    heading(axes, f"Test accuracy, % ({name}; dashed: unpruned)")
    axes.set_xlabel(sentence(f"{removed(measure)}, %"))
