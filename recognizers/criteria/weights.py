"""Criteria that look at a unit's own weights, or at nothing."""

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from recognizers.criteria.filters import filters, per_filter, per_unit
from recognizers.criteria.registry import register_criterion
from recognizers.recognizer import Recognizer
from recognizers.units import UnitTable


@register_criterion("l1")
def l1(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """L1 norm of a unit's filter weights (Li et al. 2017); summed over the filters that are tied."""
    modules = filters(recognizer.network, recognizer.table)
    return per_unit(recognizer.table, {path: per_filter(module.weight.abs()) for path, module in modules.items()})


@register_criterion("l2")
def l2(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """L2 norm of a unit's filter weights; summed over the filters that are tied."""
    return _l2(recognizer.network, recognizer.table)


@register_criterion("bn")
def bn(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """Scale of a unit's batch norm, ``|gamma|`` (Liu et al. 2017, "Network slimming"); summed over all that it passes.

    The scale is the standard deviation that the filter's output has behind the batch norm. A unit that passes no batch
    norm gets what its output would have on white inputs: the L2 norm of its filters. A batch norm without parameters
    has scale 1.
    """
    network, table = recognizer.network, recognizer.table
    scales = {}
    for path, slot in table.slots.items():
        module = network.get_submodule(path)
        if slot.out_units is not None and isinstance(module, BatchNorm):
            scales[path] = module.weight.abs() if module.affine else torch.ones(module.num_features)
    passed = per_unit(table, {path: torch.ones_like(scale) for path, scale in scales.items()})
    return np.where(passed > 0, per_unit(table, scales), _l2(network, table))


@register_criterion("random")
def random(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """Uniform random scores."""
    return generator.random(recognizer.n_units)


def _l2(network: nn.Module, table: UnitTable) -> np.ndarray:
    modules = filters(network, table)
    return per_unit(
        table, {path: per_filter(module.weight.double().square()).sqrt() for path, module in modules.items()}
    )
