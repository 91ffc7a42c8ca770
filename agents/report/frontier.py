"""The picture of a benchmark: test accuracy against what was removed, a line per policy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.benchmark import BenchmarkConfig, Row, interval
from agents.report.canvas import heading, look, panel
from agents.report.palette import assign
from recognizers.files import atomic_path


def save_frontier(config: BenchmarkConfig, rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with means over seeds and 95 % intervals; entries of one policy are joined.

    Args:
        config: of the benchmark.
        rows: its finished runs.
        path: where to.

    Raises:
        FileError: the picture cannot be written.
    """
    policies = list(dict.fromkeys(entry.policy for entry in config.policies))
    styles = assign(policies, None)
    with look(), atomic_path(path) as temporary:
        figure, (axes,) = panel(460, width=760, right=190)
        figure.set_facecolor("white")
        for policy in policies:
            points = []
            for entry in config.policies:
                results = [row.result for row in rows if row.label == entry.name and entry.policy == policy]
                if results:
                    removed, _ = interval([100 * result.macs_reduction for result in results])
                    points.append((removed, *interval([100 * result.test_accuracy for result in results])))
            if not points:
                continue
            x, mean, half = zip(*sorted(points), strict=True)
            style = styles[policy]
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
        baselines = {row.label: 100 * row.result.baseline_test_accuracy for row in rows}
        if baselines:
            axes.axhline(sum(baselines.values()) / len(baselines), color="#5c6570", linestyle=(0, (4, 3)), linewidth=1)
        heading(axes, f"Test accuracy, % ({config.task}; dashed: unpruned)")
        axes.set_xlabel("MACs removed, %")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
