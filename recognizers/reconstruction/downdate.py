"""Reconstruction layer by layer, from what each layer saw in the original network: no forward pass, no new inverse."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.compaction import CompactNetwork
from recognizers.reconstruction.consumers import Consumer
from recognizers.reconstruction.layer import layer_at, take_values, write
from recognizers.reconstruction.recipe import Recipe
from recognizers.reconstruction.unification import merge
from recognizers.reconstruction.walk import removed
from recognizers.units import UnitTable


class Downdates:
    """Writes the best weights of the layers that read removed units, each layer for itself.

    Args:
        network: the original network; left unchanged.
        table: its units.
        consumers: of the network.
        recipe: of form ``independent`` (least squares) or ``unify`` (each removed unit's weights go to one other).
    """

    def __init__(self, network: nn.Module, table: UnitTable, consumers: Sequence[Consumer], recipe: Recipe) -> None:
        self._original, self._working, self._table, self._recipe = network, copy.deepcopy(network), table, recipe
        self._consumers: dict[str, list[Consumer]] = {}
        for consumer in consumers:
            self._consumers.setdefault(consumer.path, []).append(consumer)

    @torch.no_grad()
    def fit(self, paths: Iterable[str], mask: np.ndarray, compact: CompactNetwork) -> dict[str, float]:
        """Fit the modules at ``paths``, and hand their values to the compact network.

        Returns:
            The condition number of each fitted layer.
        """
        paths, conditions = list(paths), {}
        for path in paths:
            take_values(self._working.get_submodule(path), self._original.get_submodule(path))
        for path in paths:
            for consumer in self._consumers.get(path, ()):
                gone = removed(consumer.units, mask)
                if gone.any():
                    self._write(consumer, gone, mask)
                    conditions[path] = consumer.solution.condition if self._recipe.form == "independent" else 1.0
        compact.load(paths, self._working)
        return conditions

    def _write(self, consumer: Consumer, gone: Tensor, mask: np.ndarray) -> None:
        layer, norm = layer_at(self._working, consumer.path, consumer.norm)
        if self._recipe.form == "unify":
            weights = merge(consumer, mask)
        else:
            solved = consumer.solution.weights_without(gone.nonzero().flatten())
            weights = torch.cat([solved, solved.new_zeros(len(gone) + 1 - len(solved), solved.shape[1])])
        outputs = torch.arange(len(consumer.part.outputs))
        write(layer, norm, consumer.part, outputs, weights, consumer.data)
