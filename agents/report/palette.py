"""Colours and markers. Every colour has a light and a dark form; pictures are drawn in the light one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS: dict[str, tuple[str, str]] = {
    "page": ("#f5f6f8", "#101317"),
    "surface": ("#fffffe", "#191d23"),
    "ink": ("#1b2027", "#e8ebef"),
    "muted": ("#5c6570", "#a3acb8"),
    "axis": ("#9aa3ae", "#5d6671"),
    "grid": ("#e6e9ed", "#2a3038"),
    "track": ("#eceff2", "#272d35"),
    "accent": ("#0a5dab", "#79b8ff"),
    "best": ("#e3f0fc", "#17324d"),
    "series-0": ("#0b64b8", "#6db3ff"),
    "series-1": ("#d35400", "#ff8f45"),
    "series-2": ("#00805c", "#3fd0a0"),
    "series-3": ("#a83f89", "#ea93cb"),
    "series-4": ("#a87900", "#e6bd3f"),
    "series-5": ("#46a5dd", "#a6dcff"),
    "series-6": ("#79492a", "#cda07b"),
    "series-7": ("#6a6e77", "#b0b5bd"),
    "phase-0": ("#2f4b6e", "#c9d8ec"),
    "phase-1": ("#4f7fa8", "#86b3da"),
    "phase-2": ("#8fb8cf", "#4f86ad"),
    "phase-3": ("#c2a878", "#c2a87a"),
    "phase-4": ("#8a6f4e", "#8d7250"),
    "phase-5": ("#b9bfc7", "#59616b"),
}
"""Custom properties of the style sheet: name to light and dark colour. No two light colours are equal."""

PAGE, SURFACE, INK, MUTED, AXIS, GRID, TRACK = (
    COLOURS[name][0] for name in ("page", "surface", "ink", "muted", "axis", "grid", "track")
)
PHASES = tuple(light for name, (light, _) in COLOURS.items() if name.startswith("phase-"))
_SERIES = tuple(light for name, (light, _) in COLOURS.items() if name.startswith("series-"))
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in COLOURS.items()}

MARKERS = {
    "o": "M8 5a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "s": "M8.2 2.2h5.6v5.6h-5.6z",
    "^": "M11 1.6l3.6 6.4h-7.2z",
    "D": "M11 1.4l3.6 3.6l-3.6 3.6l-3.6-3.6z",
    "v": "M11 8.4l3.6-6.4h-7.2z",
    "P": "M9.9 1.5h2.2v2.4h2.4v2.2h-2.4v2.4h-2.2v-2.4h-2.4v-2.2h2.4z",
    "p": "M11 1.3l3.6 2.7l-1.4 4.3h-4.4l-1.4-4.3z",
    "X": "M9 1.4l2 2l2-2l1.6 1.6l-2 2l2 2l-1.6 1.6l-2-2l-2 2l-1.6-1.6l2-2l-2-2z",
}
"""Markers by matplotlib's name, each with the outline that the page's legends draw in a box of 22 by 10."""

_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5))


@dataclass(frozen=True)
class Style:
    """How a policy looks, in every picture alike.

    Attributes:
        colour: its light form.
        marker: of matplotlib; tells policies apart without colour.
        dashes: lengths of line and gap; empty for a solid line.
        hollow: whether the marker is an outline.
    """

    colour: str
    marker: str
    dashes: tuple[float, ...] = ()
    hollow: bool = False

    @property
    def line(self) -> Any:
        """The kind of line, as matplotlib takes it."""
        return (0, self.dashes) if self.dashes else "-"

    @property
    def face(self) -> dict[str, Any]:
        """Inside and edge of the marker, as matplotlib takes them."""
        inside, edge, width = (SURFACE, self.colour, 1.5) if self.hollow else (self.colour, SURFACE, 1.1)
        return {"markerfacecolor": inside, "markeredgecolor": edge, "markeredgewidth": width}


def css(colour: str) -> str:
    """The style sheet's variable for a light colour."""
    return _VARIABLES[colour]


def with_variables(svg: str) -> str:
    """Put variables in place of the light colours, so that a picture follows the page's colour scheme."""
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def assign(labels: Sequence[str], controller: str | None) -> dict[str, Style]:
    """A style for every policy. The first colour is the controller's, whether or not it takes part."""
    markers = tuple(MARKERS)
    styles, slot = {}, 1
    for label in labels:
        if label == controller:
            styles[label] = Style(_SERIES[0], markers[0])
            continue
        turn, index = divmod(slot, len(_SERIES))
        # Beyond the palette, colours come again with other markers, as outlines, and with dashes.
        marker, dashes = markers[(index + turn) % len(markers)], _DASHES[turn % len(_DASHES)]
        styles[label] = Style(_SERIES[index], marker, dashes, hollow=turn % 2 == 1)
        slot += 1
    return styles
