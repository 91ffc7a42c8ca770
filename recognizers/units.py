"""The unit table: which channels can be pruned, which of them are tied, and where each of them occurs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn


@dataclass(frozen=True)
class Slot:
    """Where units occur in one module: the unit of each channel, or -1 for a channel that is always kept.

    Attributes:
        out_units: ``[out_channels]`` int64, or None where no output channel can be pruned. Modules that treat
            every channel on its own (batch norm, depthwise convolution, PReLU) have only this side.
        in_units: ``[in_channels]`` int64, or None where no input channel can be pruned.
    """

    out_units: np.ndarray | None = None
    in_units: np.ndarray | None = None


@dataclass(frozen=True)
class Layer:
    """A prunable layer: one module, or several whose output channels are tied by sums or channel-wise products.

    Attributes:
        name: module path of the first producer; names the layer everywhere.
        producers: module paths of all modules whose filters the units are.
        start: first unit.
        stop: one past the last unit.
    """

    name: str
    producers: tuple[str, ...]
    start: int
    stop: int

    @property
    def units(self) -> np.ndarray:
        """The units of this layer, ``[n]`` int64."""
        return np.arange(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Excluded:
    """Tied sets of channels that cannot be pruned, and why.

    Attributes:
        name: module path of the first producer.
        producers: module paths of all producers.
        sets: number of tied sets; each would be a unit.
        reason: why not.
    """

    name: str
    producers: tuple[str, ...]
    sets: int
    reason: str


@dataclass(frozen=True)
class UnitTable:
    """All prunable layers of a network, their units' positions in its modules, and what was left out."""

    layers: tuple[Layer, ...]
    slots: dict[str, Slot] = field(repr=False)
    excluded: tuple[Excluded, ...] = ()

    @property
    def n_units(self) -> int:
        """Number of units of the network."""
        return self.layers[-1].stop if self.layers else 0

    @property
    def layer_of_unit(self) -> np.ndarray:
        """Index of the layer of each unit, ``[n_units]`` int64."""
        return np.repeat(np.arange(len(self.layers)), [len(layer) for layer in self.layers])

    def layer(self, name: str) -> Layer:
        """The layer of that name.

        Raises:
            KeyError: there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def kept_per_layer(self, mask: np.ndarray) -> dict[str, int]:
        """Number of kept units of each layer under ``mask`` (``[n_units]``, 1 kept)."""
        return {layer.name: int(mask[layer.start : layer.stop].sum()) for layer in self.layers}

    def restricted(self, names: set[str], excluded: tuple[Excluded, ...] | None = None) -> UnitTable:
        """The same table with only the named layers prunable.

        Args:
            names: of the layers to keep.
            excluded: what to say of the others; by default what this table says.
        """
        renumber = np.full(self.n_units + 1, -1)  # the last entry maps -1 to -1
        layers, start = [], 0
        for layer in self.layers:
            if layer.name in names:
                renumber[layer.start : layer.stop] = np.arange(start, start + len(layer))
                layers.append(Layer(layer.name, layer.producers, start, start + len(layer)))
                start += len(layer)

        def side(units: np.ndarray | None) -> np.ndarray | None:
            renumbered = None if units is None else renumber[units]
            return None if renumbered is None or (renumbered < 0).all() else renumbered

        slots = {path: Slot(side(slot.out_units), side(slot.in_units)) for path, slot in self.slots.items()}
        slots = {path: slot for path, slot in slots.items() if slot.out_units is not None or slot.in_units is not None}
        return UnitTable(tuple(layers), slots, self.excluded if excluded is None else excluded)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution that treats every channel on its own."""
    return (
        isinstance(module, nn.Conv2d)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )
