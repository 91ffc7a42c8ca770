"""From figures to pictures: the common look, and SVG that can stand inside a page beside other SVG."""

import html
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from agents.report.palette import AXIS, GRID, INK, MUTED, Style, with_variables
from agents.report.plotting import Artist, Axes, Figure, MaxNLocator, rc_context, rcdefaults, rcParams
from recognizers.files import atomic_path

PANEL_WIDTH = 410.0
"""Width of a panel in its own pixels. Narrow, so that text stays readable where a phone shrinks it."""

_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": AXIS,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.7,
    "lines.solid_joinstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "zeroout",  # the same page for the same figures
    "text.color": INK,
    "text.parse_math": False,  # names of policies and layers are no formulas
    "xtick.color": AXIS,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.color": AXIS,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 10.5,
}


@contextmanager
def look() -> Iterator[None]:
    """Draw and save within this context; matplotlib's settings are as before afterwards."""
    settings: Any = rcParams  # typed with the literal names of all settings, which a plain dictionary never has
    with rc_context():
        rcdefaults()
        settings.update(_STYLE)
        yield


def panel(
    height: float,
    *,
    width: float = PANEL_WIDTH,
    left: float = 46,
    right: float = 14,
    top: float = 26,
    bottom: float = 42,
    rows: int = 1,
    gap: float = 0,
) -> tuple[Figure, list[Axes]]:
    """A figure with axes one above the other; all lengths in pixels of the picture."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    inner = (height - top - bottom - gap * (rows - 1)) / rows
    axes = [
        figure.add_axes(
            (left / width, (bottom + (rows - 1 - row) * (inner + gap)) / height, (width - left - right) / width,
             inner / height)
        )
        for row in range(rows)
    ]  # fmt: skip
    return figure, axes


@contextmanager
def picture_of_panels(path: Path, count: int) -> Iterator[list[Axes]]:
    """A PNG with so many panels one above the other, and room for a legend beside each; written at the end.

    Raises:
        FileError: the picture cannot be written.
    """
    with look(), atomic_path(path) as temporary:
        figure, panels = panel(68 + 392 * count + 76 * (count - 1), width=760, right=190, rows=count, gap=76)
        figure.set_facecolor("white")
        yield panels
        # Tight: names of lines may be longer than the margin.
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None}, bbox_inches="tight")


def legend_beside(axes: Axes, lines: Mapping[str, Artist] | None = None) -> None:
    """A legend to the right of the axes: of what was drawn with a label, or of ``lines`` by name."""
    named = {} if lines is None else {"handles": [*lines.values()], "labels": [*lines]}
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, handlelength=3, **named)


def heading(axes: Axes, text: str) -> None:
    """Say what the vertical axis shows: above it, so that nobody has to turn the head."""
    axes.set_title(text, loc="left", fontsize=rcParams["axes.labelsize"], color=MUTED, pad=9)


def mark(axes: Axes, x: float, y: float, style: Style, *, size: float = 8, **settings: Any) -> None:
    """Draw a policy's marker, above all lines; ``settings`` are those of ``Axes.plot``."""
    axes.plot(x, y, style.marker, markersize=size, zorder=5, **style.face, **settings)


def without_vertical_axis(axes: Axes) -> None:
    """Leave the vertical axis out, where rows are named within the picture."""
    axes.set_yticks([])
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)


def whole_ticks(axes: Axes, count: int = 6) -> None:
    """At most ``count`` ticks along the horizontal axis, at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(count, integer=True))


def thin(x: np.ndarray, y: np.ndarray, most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring points where there are more than a picture can show; the ends stay as they are."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most - 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    xs, ys = np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts
    return np.concatenate((x[:1], xs[1:-1], x[-1:])), np.concatenate((y[:1], ys[1:-1], y[-1:]))


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an SVG element for a page.

    Args:
        figure: drawn within :func:`look`.
        name: prefix of all ids, unique within the page.
        label: what the picture shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    start = text.index("<svg")
    body = text[text.index(">", start) + 1 :].replace("xlink:href", "href")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{name}-", body)
    width, height = figure.get_size_inches() * 72
    opening = (
        f'<svg class="picture" viewBox="0 0 {width:g} {height:g}" style="max-width: {1.3 * width:g}px" '
        f'role="img" aria-label="{html.escape(label)}">'
    )
    # matplotlib escapes the text of a figure; the rest is its own markup.
    return Markup(opening + with_variables(body))
