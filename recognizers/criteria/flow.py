"""SynFlow: how much of what could flow through a network goes through a unit; no data are needed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from recognizers.criteria.filters import filters, per_filter, per_unit
from recognizers.criteria.registry import register_criterion
from recognizers.recognizer import Recognizer
from recognizers.zero_out import set_mask

ROUNDS = 100


@register_criterion("synflow", across_layers=True)
def synflow(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """The order in which iterated synaptic flow removes units (Tanaka et al. 2020, "SynFlow", structured).

    A unit's flow is ``|dR/dtheta * theta|``, summed over its filters' weights, in the network of :func:`linearised`. In
    each of 100 rounds the units with the least flow go, as many as leave the next number of an exponential schedule,
    down to one in every layer. Scores count the removals: 0 for the first unit that went.
    """
    network, table, kept = linearised(recognizer.network), recognizer.table, recognizer.mask != 0
    # float64: the flow of a deep network may be beyond the range of float32.
    image = torch.ones(1, *recognizer.splits.train.images.shape[1:], dtype=torch.float64, device=recognizer.device)

    def flows() -> np.ndarray:
        set_mask(network, kept.astype(np.int8))
        modules = filters(network, table)
        values = flow(network, list(modules.values()), image)
        return per_unit(table, {path: per_filter(value) for path, value in zip(modules, values, strict=True)})

    order = [np.flatnonzero(~kept)]
    for left in schedule(int(kept.sum()), len(table.layers)):
        if left == kept.sum():
            continue
        scores = np.where(kept, flows(), -np.inf)
        removable = kept.copy()
        removable[[layer.start + int(scores[layer.units].argmax()) for layer in table.layers]] = False
        units = np.flatnonzero(removable)
        gone = units[np.argsort(scores[units], kind="stable")][: kept.sum() - left]
        order.append(gone)
        kept[gone] = False
    order.append(np.flatnonzero(kept))
    result = np.empty(recognizer.n_units)
    result[np.concatenate(order)] = np.arange(recognizer.n_units)
    return result


def schedule(units: int, least: int) -> list[int]:
    """How many units are left after each round: an exponential descent from ``units`` to ``least``."""
    return [round(units * (least / units) ** (number / ROUNDS)) for number in range(1, ROUNDS + 1)]


@torch.no_grad()
def linearised(network: nn.Module) -> nn.Module:
    """The network, changed in place: all weights by their absolute values, offsets 0, in float64.

    Batch norms become factors, ``|gamma|`` over the standard deviation. So ReLUs pass all, and the summed outputs ``R``
    grow with each layer's weights in proportion.
    """
    network.double().eval()
    for module in network.modules():
        if isinstance(module, BatchNorm) and module.running_mean is not None:
            module.running_mean.zero_()
        if isinstance(module, nn.Conv2d | nn.Linear | BatchNorm) and module.bias is not None:
            module.bias.zero_()
    for parameter in network.parameters():
        parameter.abs_()
    return network


@torch.enable_grad()
def flow(network: nn.Module, modules: Sequence[nn.Conv2d | nn.Linear], image: Tensor) -> list[Tensor]:
    """``|dR/dtheta * theta|`` of the modules' weights, ``R`` the sum of the outputs for an image of ones."""
    weights = [module.weight.requires_grad_() for module in modules]
    slopes = torch.autograd.grad(network(image).sum(), weights, allow_unused=True, materialize_grads=True)
    return [(slope * weight).abs() for slope, weight in zip(slopes, weights, strict=True)]
