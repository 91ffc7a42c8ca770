"""Feature maps of units, where the layers that read them find them."""

from collections.abc import Callable, Iterable
from math import isqrt

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.evaluation import training_mode
from recognizers.units import UnitTable

Visit = Callable[[int, Tensor], None]
"""Takes the index of a layer and maps of its units, ``[M, n, H, W]``: of each unit one in every row."""


@torch.no_grad()
def visit_maps(network: nn.Module, table: UnitTable, batches: Iterable[Tensor], visit: Visit) -> None:
    """Run a network over images, and hand over the maps of each layer's units wherever they are read.

    Maps are taken where a ZeroOut sits: behind batch norm, activation, pooling, sums and concatenations. Units that are
    read in several places (residual stages) or twice in one (repeated concatenation) give maps at each. A linear layer
    reads maps flattened: they are folded again to the height nearest to their width.

    Args:
        network: with or without ZeroOut layers; it runs in evaluation mode and is left as it was.
        table: its units.
        batches: images as the network takes them, ``[N, C, H, W]``.
        visit: is called in forward order, batch after batch. Maps are views, to be read at once.
    """
    handles = []
    for path, slot in table.slots.items():
        if slot.in_units is None:
            continue
        consumer = network.get_submodule(path)
        for layer, places in _places(table, slot.in_units):

            def read(
                module: nn.Module, inputs: tuple[Tensor, ...], layer: int = layer, places: Tensor = places
            ) -> None:
                visit(layer, _maps(module, inputs[0], places))

            handles.append(consumer.register_forward_pre_hook(read))
    try:
        with training_mode(network, False):
            for batch in batches:
                network(batch)
    finally:
        for handle in handles:
            handle.remove()


def _places(table: UnitTable, in_units: np.ndarray) -> list[tuple[int, Tensor]]:
    """The layers whose units a consumer reads: index, and at which inputs each unit is found, ``[n, R]`` int64."""
    found = []
    for index, layer in enumerate(table.layers):
        of_units = [np.flatnonzero(in_units == unit) for unit in layer.units]
        if repeats := min(map(len, of_units)):
            found.append((index, torch.from_numpy(np.stack([places[:repeats] for places in of_units]))))
    return found


def _maps(consumer: nn.Module, inputs: Tensor, places: Tensor) -> Tensor:
    """Maps ``[M, n, H, W]`` of units that are found at ``places``, ``[n, R]``, of a consumer's inputs."""
    places = places.to(inputs.device)
    if isinstance(consumer, nn.Conv2d):  # [N, C, H, W]: every place is a map
        return inputs[:, places].transpose(1, 2).flatten(0, 1)
    values = inputs[..., places].movedim(-2, 1)  # [N, ..., C] -> [N, n, ..., R]
    if values.dim() == 5 and values.shape[-1] == 1:  # channels last
        return values.squeeze(-1)
    values = values.flatten(2)
    size = values.shape[2]
    height = next(height for height in range(isqrt(size), 0, -1) if size % height == 0)
    return values.reshape(*values.shape[:2], height, size // height)
