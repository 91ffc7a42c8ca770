"""The table of criteria."""

from collections.abc import Callable

import numpy as np

from recognizers.recognizer import Recognizer
from recognizers.registry import Registry

Criterion = Callable[[Recognizer, np.random.Generator], np.ndarray]
"""From a recognizer (in its current state) to scores, ``[n_units]`` float64; a higher score is more important."""

_CRITERIA = Registry[Criterion]("criterion")
_ACROSS_LAYERS: set[Criterion] = set()


def register_criterion(name: str, *, across_layers: bool = False) -> Callable[[Criterion], Criterion]:
    """Register a criterion under ``name``.

    Args:
        name: of the criterion.
        across_layers: its scores rank units of different layers as they are, as its authors use them; by default
            they are divided by the mean of their layer first.
    """

    def register(criterion: Criterion) -> Criterion:
        if across_layers:
            _ACROSS_LAYERS.add(criterion)
        return _CRITERIA.register(name)(criterion)

    return register


def criterion(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        UnknownNameError: there is none.
    """
    return _CRITERIA[name]


def criteria() -> list[str]:
    """Names of all criteria."""
    return sorted(_CRITERIA)


def comparable_scores(criterion: Criterion, recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """Scores, ``[n_units]``, that rank units of different layers: the criterion's own, or divided by layer means."""
    scores = criterion(recognizer, generator)
    return scores if criterion in _ACROSS_LAYERS else layer_normalised(scores, recognizer)


def layer_normalised(scores: np.ndarray, recognizer: Recognizer) -> np.ndarray:
    """Scores divided by the mean of their layer, so that layers of different width and fan-in compare."""
    normalised = np.empty_like(scores)
    for layer in recognizer.table.layers:
        part = scores[layer.start : layer.stop]
        normalised[layer.start : layer.stop] = part / max(part.mean(), np.finfo(np.float64).tiny)
    return normalised
