"""Kept filters per layer."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from agents.report.canvas import PANEL_WIDTH, look, mark, panel, to_svg
from agents.report.palette import INK, MUTED, TRACK
from agents.report.pictures.parts import Section, policy_keys
from agents.report.plotting import Axes, Outline, PathPatch
from agents.report.run import Entry, Run

_ROW = 17.0
_HEAD = 20.0
_DIGIT = 6.5
_LABELS = 112.0
_TOTALS = 36.0
_ROOM_FOR_NUMBERS = 28.0
_WIDE = 880.0
_FEW_LAYERS = 14
_MOST_IN_A_PANEL = 7
"""More policies than this need the whole width of the page."""

_Box = tuple[float, float, float, float]


def section(run: Run) -> Section:
    """A row per layer, a column of bars per policy; many layers go on in the next panel."""
    layers = layer_sizes(run)
    wide = len(run.entries) > _MOST_IN_A_PANEL
    few = len(layers) <= _FEW_LAYERS
    parts = 1 if wide or few else 2 * math.ceil(len(layers) / 80)
    rows = math.ceil(len(layers) / parts)
    # Few layers leave the second panel free: half of the policies go there, and all bars become longer.
    columns = math.ceil(len(run.entries) / 2) if few and not wide and len(run.entries) > 2 else len(run.entries)
    panels = [
        _panel(
            f"layers-{top}-{first}",
            layers,
            range(top, min(top + rows, len(layers))),
            run.entries[first : first + columns],
            wide=wide,
        )
        for top in range(0, len(layers), rows)
        for first in range(0, len(run.entries), columns)
    ]
    return Section(
        name="layers",
        title="Kept filters per layer",
        text="Bars are the share of a layer's units that the final mask keeps; a full track is the complete layer. "
        "Numbers are kept units, beside each layer's own count.",
        legend=policy_keys(run, "marker"),
        panels=tuple(panels),
        wide=wide,
    )


def layer_sizes(run: Run) -> dict[str, int]:
    """Units per layer, in the order of the network."""
    sizes: dict[str, int] = {}
    for entry in run.entries:
        sizes.update(entry.result.units)
    return sizes


def draw_profiles(axes: Axes, run: Run) -> None:
    """Draw one row per policy with an upright bar per layer: the shape at a glance, however many layers."""
    layers = list(layer_sizes(run))
    height, gap = 1.0, 0.65
    named = len(run.entries) <= _MOST_IN_A_PANEL  # else the legend has to do
    for row, entry in enumerate(run.entries):
        bottom = -row * (height + gap)
        columns = [(index - 0.42, bottom, 0.84) for index in range(len(layers))]
        _fill(axes, [(x, y, width, height) for x, y, width in columns], TRACK)
        shares = [_share(entry, layer) for layer in layers]
        _fill(
            axes,
            [(x, y, width, height * share) for (x, y, width), share in zip(columns, shares, strict=True)],
            entry.style.colour,
        )
        if named:
            axes.text(-0.5, bottom + height + 0.06, _short(entry.label, 60), va="bottom", fontsize=8.5, color=INK)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_ylim(-(len(run.entries) - 1) * (height + gap) - 0.05, height + gap)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_xlabel("layers, from the first to the last")
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)


def _panel(name: str, sizes: dict[str, int], rows: range, entries: Sequence[Entry], *, wide: bool) -> Markup:
    layers = list(sizes)[rows.start : rows.stop]
    height = _HEAD + _ROW * len(layers) + 4
    with look():
        width = _WIDE if wide else PANEL_WIDTH
        figure, (axes,) = panel(height, width=width, left=0, right=0, top=0, bottom=0)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        _draw_names(axes, layers, sizes)
        column = (width - _LABELS - _TOTALS - 6) / len(entries)
        for index, entry in enumerate(entries):
            _draw_column(axes, entry, layers, _LABELS + _TOTALS + 6 + index * column, column)
        described = f"Kept units of {len(layers)} layers, from {layers[0]}, for {len(entries)} policies"
        return to_svg(figure, name, described)


def _draw_names(axes: Axes, layers: Sequence[str], sizes: dict[str, int]) -> None:
    axes.text(_LABELS + _TOTALS - 4, _HEAD / 2, "units", ha="right", va="center", fontsize=10, color=MUTED)
    for row, layer in enumerate(layers):
        middle = _HEAD + _ROW * (row + 0.5)
        axes.text(0, middle, _short(layer, 18), va="center", fontsize=10.5, color=INK)
        axes.text(_LABELS + _TOTALS - 4, middle, str(sizes[layer]), ha="right", va="center", fontsize=10.5, color=MUTED)


def _draw_column(axes: Axes, entry: Entry, layers: Sequence[str], left: float, width: float) -> None:
    mark(axes, left + 5, _HEAD / 2, entry.style)
    track, height, numbers = width - 5, _ROW - 3, width >= _ROOM_FOR_NUMBERS
    tracks: list[_Box] = []
    bars: list[_Box] = []
    ends: list[_Box] = []
    for row, layer in enumerate(layers):
        top, bar = _HEAD + _ROW * row + 1.5, track * _share(entry, layer)
        tracks.append((left, top, track, height))
        bars.append((left, top, bar, height))
        ends.append((left + max(bar - 2, 0), top, min(bar, 2), height))
        if numbers and layer in entry.result.kept_units:
            kept = str(entry.result.kept_units[layer])
            beside = left + (bar + 4 if bar < _DIGIT * len(kept) + 8 else 5)  # a bar's end never crosses its number
            axes.text(beside, top + height / 2, kept, va="center_baseline", fontsize=10, color=INK)
    _fill(axes, tracks, TRACK)
    _fill(axes, bars, entry.style.colour, 0.4 if numbers else 1.0)  # pale, so that the numbers stay readable
    _fill(axes, ends, entry.style.colour)


def _fill(axes: Axes, boxes: Sequence[_Box], colour: str, opacity: float = 1.0) -> None:
    """Fill boxes (left, edge, width, height) as one shape, which keeps the page small."""
    outlines = [
        Outline([(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)], closed=True)
        for x, y, width, height in boxes
    ]
    axes.add_patch(PathPatch(Outline.make_compound_path(*outlines), facecolor=colour, alpha=opacity, linewidth=0))


def _share(entry: Entry, layer: str) -> float:
    units = entry.result.units.get(layer, 0)
    return entry.result.kept_units[layer] / units if units else 0.0


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else "\N{HORIZONTAL ELLIPSIS}" + name[1 - most :]
