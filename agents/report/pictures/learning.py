"""The learning curve of the controller."""

from dataclasses import replace

import numpy as np
from markupsafe import Markup

from agents.report.canvas import heading, look, mark, panel, thin, to_svg
from agents.report.palette import INK, MUTED, SURFACE, css
from agents.report.pictures.parts import Key, Section, policy_keys
from agents.report.plotting import Axes, FuncFormatter, MaxNLocator, NullFormatter
from agents.report.run import Entry, Run
from agents.report.words import counted, sentence
from envs.objectives import Budget, Tolerance

_STEPS = "environment_steps"
_LEVEL = (6, 3)
_RETURNS = ("episode_return_mean", "evaluation_return", "best_score")
_DIAGNOSTICS = (
    ("epsilon_max", "Exploration of the boldest actor (epsilon)"),
    ("loss", "Loss"),
    ("mean_q", "Mean Q"),
)


def learned(run: Run) -> bool:
    """Whether there is a learning curve to show."""
    return run.learning.shows(_STEPS, *_RETURNS)


def section(run: Run) -> Section:
    """Returns beside the figures that tell whether learning is healthy."""
    return Section(
        name="learning",
        title="Learning of the controller",
        text="Return against environment steps, all on the reward split: training episodes, greedy evaluations, and "
        "the best state seen so far. Dashed lines are the returns of the other policies' own episodes. The table above "
        "has less: there a mask must also hold on the selection split.",
        legend=(*_keys(run), *(replace(key, dashes="4 2") for key in policy_keys(run, entries=rivals(run)))),
        panels=_panels(run),
    )


def rivals(run: Run) -> list[Entry]:
    """The policies to pass: all but the controller, where they meet the objective."""
    return [entry for entry in run.entries if entry is not run.controller and entry.score is not None]


def draw_returns(axes: Axes, run: Run) -> None:
    """Draw training, evaluation and best score so far, and the others' returns as levels.

    All of these are on the reward split. The reductions of the results are not: they had to hold on the selection
    split, too, and would flatter the controller here.
    """
    colour = _colour(run)
    for entry in rivals(run):
        level = _scale(run) * entry.result.episode_return
        axes.axhline(level, color=entry.style.colour, linewidth=1.4, linestyle=(0, _LEVEL))
        mark(axes, 1, level, entry.style, size=7, clip_on=False, transform=axes.get_yaxis_transform())
    steps, returns = run.learning.series(_STEPS, "episode_return_mean")
    axes.plot(*thin(steps, _scale(run) * returns), color=MUTED, linewidth=1.1)
    steps, returns = run.learning.series(_STEPS, "evaluation_return")
    axes.plot(
        *thin(steps, _scale(run) * returns, 120),
        color=colour,
        linewidth=1.1,
        marker="o",
        markersize=5,
        markerfacecolor=SURFACE,
        markeredgecolor=colour,
        markeredgewidth=1.3,
    )
    steps, best = run.learning.series(_STEPS, "best_score")
    found = best > 0  # a score of 0 stands for nothing found yet
    axes.plot(steps[found], _on_axis(run, best[found]), color=colour, linewidth=2.6, drawstyle="steps-post")
    _steps_axis(axes)
    axes.margins(x=0.02)
    axes.set_xlabel("Environment steps")
    heading(axes, _unit(run))


def keys_of_lines(run: Run) -> tuple[tuple[str, str, float, str], ...]:
    """Label, colour, width and marker of the controller's own lines."""
    return (
        ("best score so far", _colour(run), 2.6, ""),
        ("greedy evaluation", _colour(run), 1.1, "o"),
        ("training episodes, mean", MUTED, 1.1, ""),
    )


def _keys(run: Run) -> tuple[Key, ...]:
    ring = "M8 5a3 3 0 1 0 6 0a3 3 0 1 0-6 0z"
    return tuple(Key(label, css(colour), ring if marker else "") for label, colour, _, marker in keys_of_lines(run))


def _panels(run: Run) -> tuple[Markup, ...]:
    with look():
        figure, (axes,) = panel(330)
        draw_returns(axes, run)
        panels = [to_svg(figure, "learning-returns", "Return and best score against environment steps")]
        present = [(key, title) for key, title in _DIAGNOSTICS if run.learning.shows(_STEPS, key)]
        if present:
            figure, rows = panel(72 + 86 * len(present), rows=len(present), gap=30)
            for axes, (key, title) in zip(rows, present, strict=True):
                _draw_diagnostic(axes, run, key, title)
            for axes in rows[:-1]:
                axes.tick_params(labelbottom=False)
            rows[-1].set_xlabel("Environment steps")
            panels.append(to_svg(figure, "learning-diagnostics", "Exploration, loss and mean Q of the controller"))
    return tuple(panels)


def _draw_diagnostic(axes: Axes, run: Run, key: str, title: str) -> None:
    steps, values = thin(*run.learning.series(_STEPS, key))
    axes.plot(steps, values, color=INK, linewidth=1.2)
    logarithmic = bool(values.min() > 0 and values.max() > 50 * values.min())
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3))
    all_steps, _ = run.learning.series(_STEPS, _STEPS)
    _steps_axis(axes)
    axes.set_xlim(all_steps.min(), max(all_steps.max(), all_steps.min() + 1))
    heading(axes, title + (", logarithmic" if logarithmic else ""))


def _steps_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    )


def _colour(run: Run) -> str:
    return run.controller.style.colour if run.controller else INK


def _scale(run: Run) -> float:
    return 100.0 if isinstance(run.objective, (Tolerance, Budget)) else 1.0


def _on_axis(run: Run, score: np.ndarray) -> np.ndarray:
    """A score in the units of the return: under a budget, the return is the accuracy gained over the baseline."""
    shift = run.baseline.baseline_validation_accuracy if isinstance(run.objective, Budget) else 0.0
    return _scale(run) * (score - shift)


def _unit(run: Run) -> str:
    if isinstance(run.objective, Tolerance):
        return sentence(f"{counted(run.objective.measure)} removed within tolerance, %")
    return "Accuracy minus baseline, points" if isinstance(run.objective, Budget) else "Return"
