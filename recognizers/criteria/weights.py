"""Criteria: how important each unit is. The least important go first."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

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


@register_criterion("l1")
def l1(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """L1 norm of a unit's filter weights (Li et al. 2017); summed over the filters that are tied."""
    return _filter_norms(recognizer, lambda weight: weight.abs().sum(dim=1))


@register_criterion("random")
def random(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """Uniform random scores."""
    return generator.random(recognizer.n_units)


@torch.no_grad()
def _filter_norms(recognizer: Recognizer, norm: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    scores, network = np.zeros(recognizer.n_units), recognizer.network
    for path, slot in recognizer.table.slots.items():
        module = network.get_submodule(path)
        if slot.out_units is None or not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        filters = norm(module.weight.flatten(1).double()).cpu().numpy()  # [out]
        prunable = slot.out_units >= 0
        np.add.at(scores, slot.out_units[prunable], filters[prunable])
    return scores
