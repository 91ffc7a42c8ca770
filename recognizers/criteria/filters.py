"""Filters: the modules whose weights units are made of, and sums over the filters that are tied."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from recognizers.units import UnitTable


def filters(network: nn.Module, table: UnitTable) -> dict[str, nn.Conv2d | nn.Linear]:
    """The convolutions and linear layers that have prunable filters, by their path."""
    found = {}
    for path, slot in table.slots.items():
        module = network.get_submodule(path)
        if slot.out_units is not None and isinstance(module, nn.Conv2d | nn.Linear):
            found[path] = module
    return found


def per_filter(values: Tensor) -> Tensor:
    """Values of single weights, ``[out, ...]``, summed over each filter: ``[out]`` float64."""
    return values.detach().flatten(1).double().sum(1)


def per_unit(table: UnitTable, of_channels: Mapping[str, Tensor]) -> np.ndarray:
    """Values of modules' output channels, ``[out]`` by path, summed over the channels of each unit: ``[n_units]``."""
    scores = np.zeros(table.n_units)
    for path, values in of_channels.items():
        units = table.slots[path].out_units
        assert units is not None
        np.add.at(scores, units[units >= 0], values.detach().double().cpu().numpy()[units >= 0])
    return scores
