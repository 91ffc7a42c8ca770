"""The overview picture, for a README."""

from pathlib import Path

from agents.report.canvas import look
from agents.report.palette import INK
from agents.report.pictures.layers import draw_profiles
from agents.report.pictures.learning import draw_returns, keys_of_lines, learned
from agents.report.pictures.paths import draw_paths
from agents.report.plotting import Axes, Figure, Line2D
from agents.report.run import Run, read_run
from agents.report.words import shortened
from recognizers.files import atomic_path

_WIDTH, _HEIGHT, _DPI = 1400, 520, 100


def save_overview(directory: Path) -> Path:
    """Write ``overview.png`` into a run directory: accuracy along the episodes beside the learning curve.

    Where no controller learned, the kept filters per layer take the learning curve's place.

    Returns:
        The path of the picture.

    Raises:
        FileError: an input is missing or malformed, or the picture cannot be written.
    """
    run = read_run(directory)
    with look(), atomic_path(directory / "overview.png") as path:
        figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, facecolor="white")
        rows = -(-len(_policy_handles(run)) // _columns(run))
        bottom = ((88 if learned(run) else 60) + 24 * rows) / _HEIGHT
        left, right = (
            figure.add_axes((x / _WIDTH, bottom, width / _WIDTH, 1 - bottom - 62 / _HEIGHT))
            for x, width in ((62, 540), (772, 600))
        )
        draw_paths(left, run, run.objective.measure)
        _title(left, "Accuracy along the episode")
        if learned(run):
            draw_returns(right, run)
            _title(right, "Learning of the controller")
            lines = [
                Line2D([], [], color=colour, linewidth=width, marker=marker, label=label)
                for label, colour, width, marker in keys_of_lines(run)
            ]
            right.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.45, -0.13), ncols=3, frameon=False)
        else:
            draw_profiles(right, run)
            _title(right, "Kept filters per layer")
        figure.legend(handles=_policy_handles(run), loc="lower center", ncols=_columns(run), frameon=False)
        figure.savefig(path, format="png", metadata={"Software": None})
    return directory / "overview.png"


def _title(axes: Axes, text: str) -> None:
    axes.annotate(
        text, (0, 1), xycoords="axes fraction", xytext=(-30, 28), textcoords="offset points", fontsize=13, color=INK
    )


def _columns(run: Run) -> int:
    longest = max(len(str(handle.get_label())) for handle in _policy_handles(run))
    return max(1, min(len(run.entries), int(_WIDTH / (70 + 9.5 * longest))))


def _policy_handles(run: Run) -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            color=entry.style.colour,
            marker=entry.style.marker,
            markersize=7,
            linestyle=entry.style.line,
            label=shortened(entry.label, 40),
            **entry.style.face,
        )
        for entry in run.entries
    ]
