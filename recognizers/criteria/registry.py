"""The table of criteria."""

from collections.abc import Callable

import numpy as np

from recognizers.recognizer import Recognizer
from recognizers.registry import Registry

Criterion = Callable[[Recognizer, np.random.Generator], np.ndarray]
"""From a recognizer (in its current state) to scores, ``[n_units]`` float64; a higher score is more important."""

_CRITERIA = Registry[Criterion]("criterion")


def register_criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion under ``name``."""
    return _CRITERIA.register(name)


def criterion(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        UnknownNameError: there is none.
    """
    return _CRITERIA[name]


def criteria() -> list[str]:
    """Names of all criteria."""
    return sorted(_CRITERIA)


def layer_normalised(scores: np.ndarray, recognizer: Recognizer) -> np.ndarray:
    """Scores divided by the mean of their layer, so that layers of different width and fan-in compare."""
    normalised = np.empty_like(scores)
    for layer in recognizer.table.layers:
        part = scores[layer.start : layer.stop]
        normalised[layer.start : layer.stop] = part / max(part.mean(), np.finfo(np.float64).tiny)
    return normalised
