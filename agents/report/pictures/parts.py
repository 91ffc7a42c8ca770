"""What a section of the page is made of: panels under a legend."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from agents.report.palette import MARKERS, Style, css
from agents.report.run import Entry, Run


@dataclass(frozen=True)
class Key:
    """A line of a legend.

    Attributes:
        label: what it stands for.
        colour: as in the style sheet.
        marker: outline of the marker; empty for none.
        dashes: as of SVG; empty for a solid line.
        kind: drawn as a line, as the marker alone, or as a filled box.
        hollow: whether the marker is an outline.
    """

    label: str
    colour: str
    marker: str = ""
    dashes: str = ""
    kind: Literal["line", "marker", "box"] = "line"
    hollow: bool = False


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: of the element, for links.
        title: heading.
        text: what is seen, in a sentence or two.
        legend: keys of all its panels.
        panels: pictures, side by side where there is room.
        wide: whether the panels need the whole width.
    """

    name: str
    title: str
    text: str
    legend: tuple[Key, ...]
    panels: tuple[Markup, ...]
    wide: bool = False


def policy_keys(
    run: Run, kind: Literal["line", "marker", "box"] = "line", entries: Iterable[Entry] | None = None
) -> tuple[Key, ...]:
    """The legend of the policies."""
    return tuple(style_key(entry.label, entry.style, kind) for entry in (run.entries if entries is None else entries))


def style_key(label: str, style: Style, kind: Literal["line", "marker", "box"] = "line") -> Key:
    """The line of a legend for what is drawn in a style."""
    return Key(
        label=label,
        colour=css(style.colour),
        marker=MARKERS[style.marker],
        dashes=" ".join(f"{length:g}" for length in style.dashes),
        kind=kind,
        hollow=style.hollow,
    )
