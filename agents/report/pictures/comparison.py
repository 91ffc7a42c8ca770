"""Pictures of a benchmark: accuracy against reduction with intervals, standings with intervals."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from agents.benchmark import BenchmarkConfig, Row, TaskEntry
from agents.benchmark.rows import objective_of, results
from agents.report.canvas import heading, look, mark, panel, to_svg, without_vertical_axis
from agents.report.palette import AXIS, INK, MUTED, Style
from agents.report.pictures.parts import Section, style_key
from agents.report.plotting import Axes
from agents.report.standings import Standing
from agents.report.words import removed, sentence, shortened
from agents.results import Result
from agents.statistics import Estimate, interval
from recognizers.costs import Measure

_GRID = 60
_MEAN = ", mean over seeds as far as all of them go"
_BANDS = " Bands, bars: 95 % intervals of the mean over seeds."


def task_section(
    config: BenchmarkConfig, task: TaskEntry, rows: Sequence[Row], styles: Mapping[str, Style], number: int
) -> Section | None:
    """Accuracy against reduction on one task; None where it has no results."""
    found = {key: result for key, result in results(rows).items() if key.task == task.name}
    of_policy = {
        entry.name: [result for key, result in found.items() if key.label == entry.name]
        for entry in config.entries(task)
    }
    of_policy = {label: mine for label, mine in of_policy.items() if mine}
    if not of_policy:
        return None
    measure = objective_of(next(iter(found.values()))).measure
    draws: dict[str, tuple[Callable[[Axes, str, Sequence[Result]], None], str]] = {
        "paths": (lambda axes, label, mine: _path(axes, mine, measure, styles[label]), "reward split, on the way"),
        "finals": (lambda axes, label, mine: _final(axes, mine, measure, styles[label]), "test set, final networks"),
    }
    panels = []
    with look():
        for name, (draw, split) in draws.items():
            figure, (axes,) = panel(310)
            axes.axhline(0, color=INK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
            for label, mine in of_policy.items():
                draw(axes, label, mine)
            axes.set_xlim(left=0)
            axes.set_xlabel(sentence(f"{removed(measure)}, %"))
            heading(axes, f"Change of accuracy, points ({split})")
            panels.append(
                to_svg(figure, f"{name}-{number}", f"Change of accuracy against {removed(measure)}, {task.name}")
            )
    return Section(
        name=f"task-{number}",
        title=f"{task.name}: accuracy against reduction",
        text=f"Left: from the complete network to the final mask{_MEAN if len(config.seeds) > 1 else ''}. Right: the "
        f"final networks (fine-tuned, where the entry says so).{_BANDS if len(config.seeds) > 1 else ''}",
        legend=tuple(style_key(label, styles[label]) for label in of_policy),
        panels=tuple(panels),
    )


def ranking_section(standing: Sequence[Standing]) -> Section | None:
    """Interquartile means with their intervals; None where no policy is ranked."""
    ranked = [place for place in standing if place.estimate is not None]
    if not ranked:
        return None
    with look():
        pairs = [(place, place.estimate) for place in ranked if place.estimate]
        picture = _intervals(pairs, "ranking", "Interquartile mean of the score")
    bars = "; bars are 95 % intervals by stratified bootstrap" if any(estimate.bounded for _, estimate in pairs) else ""
    return Section(
        name="ranking",
        title="Interquartile mean",
        text=f"The middle half of the scores of all runs{bars}.",
        legend=(),
        panels=(picture,),
    )


def improvement_section(standing: Sequence[Standing], first: str) -> Section | None:
    """How likely a run of each policy beats one of the first, and of the best; None where there is no pair."""
    best = next((place.label for place in standing if place.rank == 1), None)
    against = {first: "over_first"} | ({} if best is None else {best: "over_best"})
    panels, bounded = [], False
    with look():
        for number, (label, name) in enumerate(against.items()):
            pairs = [(place, getattr(place, name)) for place in standing if getattr(place, name) is not None]
            if pairs:
                panels.append(_intervals(pairs, f"improvement-{number}", f"Probability to beat {label}", middle=0.5))
                bounded = bounded or any(estimate.bounded for _, estimate in pairs)
    if not panels:
        return None
    return Section(
        name="improvement",
        title="Probability of improvement",
        text="How likely a run of a policy scores higher than one of the policy it is compared with, on the same task; "
        "a tie counts one half. "
        + (
            "Where the interval (95 %, stratified bootstrap) holds 0.5, the runs do not tell which is better."
            if bounded
            else "With one run per task it is the share of tasks won, and says nothing of chance."
        ),
        legend=(),
        panels=tuple(panels),
    )


def _path(axes: Axes, mine: Sequence[Result], measure: Measure, style: Style) -> None:
    paths = []
    for result in mine:
        change = np.array(result.curve.accuracy) - result.baseline_validation_accuracy
        paths.append((100 * np.array(result.curve.reduction(measure)), 100 * change))
    grid = np.linspace(0, min(gone[-1] for gone, _ in paths), _GRID)
    drawn = np.array([np.interp(grid, gone, change) for gone, change in paths])  # [seeds, GRID]
    mean, half = (np.array(part) for part in zip(*(interval(column) for column in drawn.T), strict=True))
    axes.plot(grid, mean, color=style.colour, linestyle=style.line)
    if len(paths) > 1:
        axes.fill_between(grid, mean - half, mean + half, color=style.colour, alpha=0.13, linewidth=0)
    mark(axes, grid[-1], mean[-1], style)


def _final(axes: Axes, mine: Sequence[Result], measure: Measure, style: Style) -> None:
    gone, wide = interval([100 * result.removed.of(measure) for result in mine])
    changes = [100 * (result.final_test_accuracy - result.baseline_test_accuracy) for result in mine]
    change, high = interval(changes)
    axes.errorbar(gone, change, np.nan_to_num(high), np.nan_to_num(wide), color=style.colour, linewidth=1.2, capsize=2)
    mark(axes, gone, change, style)


def _intervals(
    places: Sequence[tuple[Standing, Estimate]], name: str, title: str, *, middle: float | None = None
) -> Markup:
    """A row per policy: its name, its figure, its interval where there is one."""
    row, top, bottom = 34.0, 8.0, 40.0
    figure, (axes,) = panel(top + bottom + row * len(places), left=8, right=14, top=top, bottom=bottom)
    if middle is not None:
        axes.axvline(middle, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlim(-0.02, 1.02)
    for index, (place, estimate) in enumerate(places):
        if estimate.bounded:
            axes.plot([estimate.low, estimate.high], [index, index], color=place.style.colour, linewidth=2)
        mark(axes, estimate.value, index, place.style)
        axes.annotate(
            f"{shortened(place.label, 44)}   {estimate.value:.3f}",
            (0, index - 0.22),
            xycoords=("axes fraction", "data"),
            xytext=(2, 1),
            textcoords="offset points",
            va="bottom",
            color=INK,
        )
    axes.set_ylim(len(places) - 0.55, -0.8)
    without_vertical_axis(axes)
    axes.spines["bottom"].set_color(AXIS)
    axes.set_xlabel(title)
    return to_svg(figure, name, f"{title}, for every policy")
