"""The picture of a benchmark: test accuracy against what was removed, a line per policy or as the entries say."""

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
    """Write a PNG with means over seeds and 95 % intervals, a panel per task; entries of one line are joined.

    Accuracies are those after fine-tuning, where there was any; MACs are counted against the unprepared network.

    Args:
        config: of the benchmark.
        rows: its finished runs.
        path: where to.

    Raises:
        FileError: the picture cannot be written.
    """
    styles = assign(list(dict.fromkeys(entry.joined for entry in config.policies)), None)
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
    for line, style in styles.items():
        points = []
        for entry in config.entries(task):
            mine = [result for label, result in found if label == entry.name and entry.joined == line]
            if mine:
                removed, _ = interval([100 * result.removed[1] for result in mine])
                points.append((removed, *interval([100 * (each.finetuned or each).test_accuracy for each in mine])))
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
            label=line,
            capsize=2,
        )
    first = config.entries(task)[0].name  # others may start from a recognizer that is prepared, or not trained at all
    baselines = [100 * result.baseline_test_accuracy for label, result in found if label == first]
    if baselines:
        axes.axhline(sum(baselines) / len(baselines), color="#5c6570", linestyle=(0, (4, 3)), linewidth=1)
    if found:
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    heading(axes, f"Test accuracy, % ({task.name}; dashed: unpruned)")
    axes.set_xlabel("MACs removed, %")
