"""What PRO measured: the error of the logits as each layer, alone, loses units."""

import numpy as np
from pydantic import TypeAdapter, ValidationError

from agents.baselines.pro import Plan
from agents.report.canvas import heading, look, panel, to_svg
from agents.report.pictures.parts import Key, Section
from agents.report.plotting import Axes, FuncFormatter
from agents.report.run import Run
from recognizers.errors import FileError, first_fault
from recognizers.files import read_json

_DEEP, _SHALLOW = (0.04, 0.35, 0.70), (0.62, 0.78, 0.95)


def section(run: Run) -> Section | None:
    """The error against the share of units removed and against the MACs saved; None where PRO did not run."""
    path = run.directory / "polylines.json"
    if not path.is_file():
        return None
    try:
        rounds = TypeAdapter(list[Plan]).validate_python(read_json(path))
    except ValidationError as error:
        raise FileError(f"{path} is no record of PRO: {first_fault(error)}") from error
    last = rounds[-1]
    panels = []
    with look():
        for name, label in (("share", "Share of the layer's units removed"), ("macs", "Share of all MACs saved")):
            figure, (axes,) = panel(250)
            _draw(axes, last, name)
            heading(axes, "Squared error of the logits")
            axes.set_xlabel(label)
            panels.append(to_svg(figure, f"polylines-{name}", f"Error of the logits by layer: {label.lower()}"))
    count = len(last.polylines)
    legend = tuple(
        Key(last.polylines[index].layer, _hex(index, count), kind="line")
        for index in sorted({0, count // 2, count - 1})
    )
    return Section(
        name="polylines",
        title="What each layer can lose",
        text="Each line is one layer, pruned alone, from the first (dark) to the last (light); circles mark what PRO "
        "chose. The error is summed over the classes, a mean over reward images."
        + (f" Measured anew in {len(rounds)} rounds; this is the last one." if len(rounds) > 1 else ""),
        legend=legend,
        panels=tuple(panels),
    )


def _draw(axes: Axes, plan: Plan, against: str) -> None:
    count = len(plan.polylines)
    for index, (line, chosen) in enumerate(zip(plan.polylines, plan.chosen, strict=True)):
        if not line.removed:
            continue
        share = np.array(line.removed) / line.units
        x = np.array(line.macs) if against == "macs" else share
        errors = np.maximum(line.errors, 1e-4)
        axes.plot(x, errors, color=_hex(index, count), linewidth=1.1)
        if chosen:
            at = chosen / line.units
            error = np.exp(np.interp(at, share, np.log(errors)))
            axes.plot([np.interp(at, share, x)], [error], "o", color=_hex(index, count), markersize=4)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _hex(index: int, count: int) -> str:
    part = index / max(count - 1, 1)
    mixed = (deep + (shallow - deep) * part for deep, shallow in zip(_DEEP, _SHALLOW, strict=True))
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in mixed)
