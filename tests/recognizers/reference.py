"""What a recognizer means, said plainly: copies of the network that run whole, with nothing kept, shared or fused."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.baseline import Baseline, Split
from recognizers.compaction import CompactNetwork
from recognizers.data import Examples, Normalization, Splits
from recognizers.evaluation import Precision, predict
from recognizers.reconstruction.recipe import Recipe
from recognizers.recovery import NoRecovery, Recovery, Subject, recalibrate
from recognizers.units import UnitTable


def few(splits: Splits, images: int) -> Splits:
    """The first images of each part."""
    parts = (splits.train, splits.reward, splits.selection, splits.test)
    return Splits(*(Examples(part.images[:images], part.labels[:images]) for part in parts))


def random_units(table: UnitTable, mask: np.ndarray, generator: np.random.Generator, most: int = 3) -> np.ndarray:
    """Up to ``most`` kept units, of one layer or several, that may go: every layer keeps one."""
    left, units = mask.copy(), []
    for unit in generator.permutation(np.flatnonzero(mask))[: int(generator.integers(1, most + 1))]:
        layer = table.layers[table.layer_of_unit[unit]]
        if left[layer.units].sum() > 1:
            left[unit] = 0
            units.append(unit)
    return np.array(units, dtype=np.int64)


class PlainSubject(Subject):
    """A network and its data, and nothing else. It notes what it is asked for."""

    def __init__(self, network: nn.Module, baseline: Baseline) -> None:
        self._network, self._baseline = network, baseline
        self.asked: list[str] = []

    @property
    def network(self) -> nn.Module:
        return self._network

    @property
    def train(self) -> Examples:
        return self._baseline.splits.train

    @property
    def normalization(self) -> Normalization:
        return self._baseline.normalization

    @property
    def precision(self) -> Precision:
        return self._baseline.precision

    @property
    def device(self) -> torch.device:
        return self._baseline.device

    def recalibrate(self, images: int, batch_size: int) -> None:
        self.asked.append("recalibrate")
        recalibrate(self._network, self._baseline.calibration(images), batch_size, self.precision)

    def reconstruct(self, recipe: Recipe) -> None:
        self.asked.append("reconstruct")  # which has references of its own

    def changed(self) -> None:
        self.asked.append("changed")


@dataclass
class Reference:
    """A recognizer that starts from the base weights whenever it may, and from copies of its own values otherwise.

    Attributes:
        recovered: the mask that it was recovered under last, and the state dict that came of it.
    """

    baseline: Baseline
    recovery: Recovery
    mask: np.ndarray
    recovered: tuple[np.ndarray, dict[str, Tensor]] | None = None

    @classmethod
    def of(cls, baseline: Baseline, recovery: Recovery) -> Reference:
        return cls(baseline, recovery, np.ones(baseline.table.n_units, dtype=np.int8))

    def copy(self) -> Reference:
        return copy.copy(self)

    def zero_out(self, units: np.ndarray) -> None:
        self.mask = self.mask.copy()
        self.mask[units] = 0

    def recover(self, generator: torch.Generator) -> None:
        if self.recovery.memoryless:
            self.recovered = None
        network = self.network()
        self.recovery(PlainSubject(network, self.baseline), generator)
        if not isinstance(self.recovery, NoRecovery):
            self.recovered = self.mask, copy.deepcopy(network.state_dict())

    def network(self) -> nn.Module:
        """The compact network, of its own."""
        compact = CompactNetwork(self.baseline.network, self.baseline.table)
        if self.recovered is not None:
            mask, values = self.recovered
            compact.follow(mask)
            compact.module.load_state_dict(values)
        compact.follow(self.mask)
        return compact.module.eval()

    def logits(self, split: Split = "reward") -> Tensor:
        images, normalization = getattr(self.baseline.splits, split).images, self.baseline.normalization
        return predict(self.network(), images, normalization, batch_size=self.baseline.batch_size, precision="float32")

    def accuracy(self, split: Split) -> float:
        labels = getattr(self.baseline.splits, split).labels
        return float((self.logits(split).argmax(1) == labels).double().mean())
