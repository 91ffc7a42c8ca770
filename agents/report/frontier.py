"""The picture of a benchmark: test accuracy against what was removed, a line per policy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.benchmark import BenchmarkConfig, Row, TaskEntry
from agents.benchmark.rows import results
from agents.report.canvas import heading, look, panel
from agents.report.palette import Style, assign
from agents.report.plotting import Axes
from agents.results import Result
from agents.statistics import interval
from recognizers.files import atomic_path


def save_frontier(config: BenchmarkConfig, rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with means over seeds and 95 % intervals, a panel per task; entries of one policy are joined.

    Args:
        config: of the benchmark.
        rows: its finished runs.
        path: where to.

    Raises:
        FileError: the picture cannot be written.
    """
    styles = assign(list(dict.fromkeys(entry.policy for entry in config.policies)), None)
    tasks = len(config.tasks)
    with look(), atomic_path(path) as temporary:
        figure, panels = panel(68 + 392 * tasks + 76 * (tasks - 1), width=760, right=190, rows=tasks, gap=76)
        figure.set_facecolor("white")
        for axes, task in zip(panels, config.tasks, strict=True):
            found = [(key.label, result) for key, result in results(rows).items() if key.task == task.name]
            _draw(axes, config, task, found, styles)
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _draw(
    axes: Axes,
    config: BenchmarkConfig,
    task: TaskEntry,
    found: Sequence[tuple[str, Result]],
    styles: dict[str, Style],
) -> None:
    for policy, style in styles.items():
        points = []
        for entry in config.entries(task):
            mine = [result for label, result in found if label == entry.name and entry.policy == policy]
            if mine:
                removed, _ = interval([100 * result.macs_reduction for result in mine])
                points.append((removed, *interval([100 * result.test_accuracy for result in mine])))
        if not points:
            continue
        x, mean, half = zip(*sorted(points), strict=True)
        axes.errorbar(
            x,
            mean,
            np.nan_to_num(half),  # of a single run there is no interval
            color=style.colour,
            marker=style.marker,
            linestyle=(0, style.dashes) if style.dashes else "-",
            label=policy,
            capsize=2,
        )
    baselines = [100 * result.baseline_test_accuracy for _, result in found]
    if baselines:
        axes.axhline(sum(baselines) / len(baselines), color="#5c6570", linestyle=(0, (4, 3)), linewidth=1)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    heading(axes, f"Test accuracy, % ({task.name}; dashed: unpruned)")
    axes.set_xlabel("MACs removed, %")
