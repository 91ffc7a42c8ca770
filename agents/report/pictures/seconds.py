"""Where the time of every policy went."""

from agents.report.canvas import look, panel, to_svg, without_vertical_axis
from agents.report.palette import INK, PHASES, css
from agents.report.pictures.parts import Key, Section
from agents.report.plotting import FuncFormatter, MaxNLocator
from agents.report.run import Run
from agents.report.words import duration, shortened
from agents.results import Result

_INSIDE = ("zero_out", "recover", "measure")
_NAMES = {
    "zero_out": "zero out",
    "recover": "recover",
    "measure": "measure",
    "policy": "policy itself (choosing actions, learning)",
    "choose": "choose among masks",
}


def phases(result: Result) -> dict[str, float]:
    """Seconds per phase, as disjoint parts: ``policy`` is what is left of it without the environment's phases."""
    parts = dict.fromkeys((*_NAMES, *result.seconds), 0.0) | result.seconds
    # Runners work side by side, so that their phases can sum up to more than the policy's own clock shows.
    parts["policy"] = max(0.0, parts["policy"] - sum(parts[phase] for phase in _INSIDE))
    return {phase: seconds for phase, seconds in parts.items() if seconds > 0}


def total(result: Result) -> float:
    """Seconds by the clock: the policy, all of it, and what came after it."""
    if "policy" not in result.seconds:
        return sum(result.seconds.values())
    return sum(seconds for phase, seconds in result.seconds.items() if phase not in _INSIDE)


def section(run: Run) -> Section | None:
    """A stacked bar per policy; None where no seconds were recorded."""
    spent = [phases(entry.result) for entry in run.entries]
    names = list(dict.fromkeys([*_NAMES, *(phase for parts in spent for phase in parts)]))
    present = [name for name in names if any(name in parts for parts in spent)]
    if not present:
        return None
    colours = {name: PHASES[names.index(name) % len(PHASES)] for name in names}
    row, top, bottom = 38.0, 6.0, 40.0
    with look():
        figure, (axes,) = panel(top + bottom + row * len(spent), left=4, right=66, top=top, bottom=bottom)
        for index, (entry, parts) in enumerate(zip(run.entries, spent, strict=True)):
            left = 0.0
            for name in present:
                axes.barh(index, parts.get(name, 0.0), 0.36, left, color=colours[name])
                left += parts.get(name, 0.0)
            axes.annotate(
                duration(left), (left, index), xytext=(5, 0), textcoords="offset points", va="center", color=INK
            )
            axes.annotate(
                shortened(entry.label, 64),
                (0, index - 0.25),
                xytext=(0, 1),
                textcoords="offset points",
                va="bottom",
                color=INK,
            )
        axes.set_ylim(len(spent) - 0.6, -0.75)
        without_vertical_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("Seconds")
        picture = to_svg(figure, "seconds-phases", "Seconds per phase, for every policy")
    legend = tuple(Key(_NAMES.get(name, name), css(colours[name]), kind="box") for name in present)
    text = (
        "Seconds per phase. Environments that ran side by side are summed up, "
        "so a bar can exceed the time on the clock."
    )
    return Section("seconds", "Where the time went", text, legend, (picture,))
