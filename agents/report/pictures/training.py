"""Training and fine-tuning of the recognizer, per epoch."""

from typing import Literal

import numpy as np
from markupsafe import Markup

from agents.report.canvas import heading, look, panel, thin, to_svg, whole_ticks
from agents.report.palette import AXIS, COLOURS, INK, css
from agents.report.pictures.parts import Key, Section
from agents.report.plotting import Axes, MaxNLocator
from agents.report.run import History

_ACCENT = COLOURS["accent"][0]
_ACCURACIES = (("train_accuracy", "training images", AXIS), ("held_out_accuracy", "held-out images", _ACCENT))
_REST = (("loss", "Loss on training images"), ("learning_rate", "Learning rate"))
_TITLES = {"training": "Training of the recognizer", "finetuning": "Fine-tuning of the final network"}
_TEXTS = {
    "training": "How the complete network came to its baseline accuracy.",
    "finetuning": "Training of the compact network that the best mask leaves.",
}


def section(history: History, which: Literal["training", "finetuning"]) -> Section | None:
    """Accuracy beside loss and learning rate; None where nothing was recorded."""
    panels = _panels(history, which)
    if not panels:
        return None
    legend = tuple(Key(label, css(colour)) for key, label, colour in _ACCURACIES if history.shows("epoch", key))
    return Section(which, _TITLES[which], _TEXTS[which], legend, panels)


def _panels(history: History, which: str) -> tuple[Markup, ...]:
    panels = []
    with look():
        accuracies = [(key, colour) for key, _, colour in _ACCURACIES if history.shows("epoch", key)]
        if accuracies:
            figure, (axes,) = panel(240)
            for key, colour in accuracies:
                epochs, values = thin(*history.series("epoch", key))
                _draw(axes, epochs, 100 * values, colour)
            heading(axes, "Accuracy, %")
            axes.set_xlabel("Epoch")
            panels.append(to_svg(figure, f"{which}-accuracy", "Accuracy per epoch"))
        rest = [(key, title) for key, title in _REST if history.shows("epoch", key)]
        if rest:
            figure, rows = panel(240 if len(rest) == 2 else 160, rows=len(rest), gap=34)
            for axes, (key, title) in zip(rows, rest, strict=True):
                _draw(axes, *thin(*history.series("epoch", key)), INK)
                axes.yaxis.set_major_locator(MaxNLocator(3))
                heading(axes, title)
            for axes in rows[:-1]:
                axes.tick_params(labelbottom=False)
            rows[-1].set_xlabel("Epoch")
            panels.append(to_svg(figure, f"{which}-loss", "Loss and learning rate per epoch"))
    return tuple(panels)


def _draw(axes: Axes, epochs: np.ndarray, values: np.ndarray, colour: str) -> None:
    axes.plot(epochs, values, color=colour, linewidth=1.8, marker="o" if len(epochs) <= 12 else "", markersize=4)
    whole_ticks(axes)
