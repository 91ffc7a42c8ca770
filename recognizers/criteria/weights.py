"""Criteria that look at a unit's own weights, or at nothing."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from recognizers.criteria.registry import register_criterion
from recognizers.recognizer import Recognizer


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
