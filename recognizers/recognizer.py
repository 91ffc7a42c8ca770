"""The recognizer: a network with ZeroOut layers, its mask, its data and its recovery."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.blueprint import Blueprint
from recognizers.compaction import CompactNetwork, compact
from recognizers.costs import Cost, CostModel
from recognizers.data import Normalization, Splits
from recognizers.dependency import build_unit_table
from recognizers.errors import ConfigurationError, MaskError
from recognizers.evaluation import Precision, accuracy, predict, to_inputs
from recognizers.masks import check_mask, weights_sha256
from recognizers.recovery import NoRecovery, Recovery, RecoveryData
from recognizers.units import UnitTable
from recognizers.zero_out import insert_zero_outs, set_mask

Split = Literal["train", "reward", "selection", "test"]


@dataclass(frozen=True)
class Snapshot:
    """A state of the recognizer to come back to: its mask and the values its recovery may have changed."""

    mask: np.ndarray
    values: dict[str, Tensor]


class Recognizer:
    """A CNN that is being pruned.

    It has one state, so it serves one environment at a time: :attr:`holder`, the last one that reset it.

    The dense network with its ZeroOut layers (:attr:`network`) is the semantics; a compact copy, sliced as the mask
    says, does the work, and what recovery changes in it is written back.

    Args:
        network: a plain network with trained weights; the recognizer takes it over.
        splits: the data.
        normalization: of the inputs.
        recovery: what to do after units were zeroed out.
        precision: of reward and recovery passes; :meth:`accuracy` of other splits is always float32.
        batch_size: images per forward pass.
        device: where to compute; CUDA where present by default.
        blueprint: how the network was created, for files; None for a network of the caller's own.
    """

    def __init__(
        self,
        network: nn.Module,
        splits: Splits,
        normalization: Normalization,
        *,
        recovery: Recovery | None = None,
        precision: Precision = "float32",
        batch_size: int = 256,
        device: torch.device | None = None,
        blueprint: Blueprint | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.splits, self.normalization, self._blueprint = splits, normalization, blueprint
        self.precision, self.batch_size = precision, batch_size
        self.recovery = recovery or NoRecovery()
        images, labels = splits.train
        self._recovery_data = RecoveryData(images, labels, normalization, precision, batch_size, self.device)
        network = network.to(self.device).eval()
        example = normalization.normalize(images[:2].to(self.device))
        self.table: UnitTable = build_unit_table(network, example)
        self.costs = CostModel(network, self.table, example)
        self._compact = CompactNetwork(network, self.table)
        self._network = network
        insert_zero_outs(network, self.table)
        self._base = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self._mask = np.ones(self.n_units, dtype=np.int8)
        self._baseline: dict[Split, float] = {}
        self.holder: object = None

    # --- state ---

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.table.n_units

    @property
    def architecture(self) -> str:
        """Name of the architecture, for files and messages."""
        return self._blueprint.architecture if self._blueprint else type(self._network).__name__

    @property
    def blueprint(self) -> Blueprint:
        """How the network was created.

        Raises:
            ConfigurationError: it was handed in, not created by name, so no file can say how to build it again.
        """
        if self._blueprint is None:
            raise ConfigurationError(
                f"{self.architecture} was not created by name: give the recognizer a Blueprint of an architecture "
                "registered with recognizers.zoo.register_architecture"
            )
        return self._blueprint

    @property
    def mask(self) -> np.ndarray:
        """A copy of the mask, ``[n_units]`` int8, 1 kept."""
        return self._mask.copy()

    @property
    def network(self) -> nn.Module:
        """The dense network with ZeroOut layers under the current mask."""
        set_mask(self._network, self._mask)
        return self._network

    @property
    def base_state(self) -> dict[str, Tensor]:
        """State dict of the base weights."""
        return dict(self._base)

    @cached_property
    def base_sha256(self) -> str:
        """SHA-256 of the base weights; masks carry it."""
        return weights_sha256(self._base)

    @property
    def cost(self) -> Cost:
        """Parameters and MACs of the compact network."""
        return self.costs(self._mask)

    @property
    def parameter_reduction(self) -> float:
        """Fraction of the parameters removed."""
        return self.costs.reductions(self._mask)[0]

    @property
    def macs_reduction(self) -> float:
        """Fraction of the MACs removed."""
        return self.costs.reductions(self._mask)[1]

    @property
    def kept_units(self) -> dict[str, int]:
        """Kept units per layer."""
        return self.table.kept_per_layer(self._mask)

    # --- what an environment step does ---

    def zero_out(self, units: np.ndarray) -> None:
        """Zero out units, ``[k]`` int64.

        Raises:
            MaskError: a unit does not exist or is zeroed out already, or a layer would lose its last unit.
                Nothing has changed then.
        """
        units = np.asarray(units, dtype=np.int64)
        if units.size and not (units.min() >= 0 and units.max() < self.n_units):
            raise MaskError(f"units must be in 0..{self.n_units - 1}, got {units.min()}..{units.max()}")
        if not self._mask[units].all():
            raise MaskError(f"units {units[self._mask[units] == 0].tolist()[:5]} are zeroed out already")
        mask = self._mask.copy()
        mask[units] = 0
        check_mask(mask, self.table)
        self._mask = mask

    def recover(self, generator: torch.Generator | None = None) -> None:
        """Apply the recovery to the remaining weights, drawing from ``generator`` (a fixed one by default)."""
        if self.recovery.changes == "nothing":
            return
        self._compact.follow(self._mask)
        self.recovery(self._compact.module, self._recovery_data, generator or torch.Generator().manual_seed(0))
        self._compact.scatter(statistics_only=self.recovery.changes == "statistics")

    def accuracy(self, split: Split = "reward") -> float:
        """Fraction of the split's images that the network under the current mask classifies rightly."""
        images, labels = self._reward if split == "reward" else getattr(self.splits, split)
        self._compact.follow(self._mask)
        logits = predict(
            self._compact.module,
            images,
            None if split == "reward" else self.normalization,
            batch_size=self.batch_size,
            precision=self.precision if split == "reward" else "float32",
            device=self.device,
        )
        return accuracy(logits, labels)

    def baseline_accuracy(self, split: Split = "reward") -> float:
        """Accuracy of the base weights, nothing pruned. Measured once."""
        if split not in self._baseline:
            state = self.snapshot()
            self.reset()
            self._baseline[split] = self.accuracy(split)
            self.restore(state)
        return self._baseline[split]

    # --- coming back ---

    def reset(self) -> None:
        """Back to the base weights, nothing pruned."""
        self.restore(Snapshot(np.ones(self.n_units, dtype=np.int8), self._base))

    def snapshot(self) -> Snapshot:
        """The current state."""
        return Snapshot(self._mask.copy(), {name: tensor.clone() for name, tensor in self._changeable().items()})

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot of this recognizer."""
        self._mask = snapshot.mask.copy()
        changeable = self._changeable()
        for name, tensor in changeable.items():
            tensor.copy_(snapshot.values[name])
        self._compact.follow(self._mask, reload=bool(changeable))

    def load_mask(self, mask: np.ndarray, generator: torch.Generator | None = None) -> None:
        """Base weights under ``mask`` (``[n_units]``, 1 kept), recovered once.

        Raises:
            MaskError: wrong shape or values, or a layer would be empty.
        """
        mask = np.asarray(mask)
        check_mask(mask, self.table)
        self.reset()
        self._mask = mask.astype(np.int8)
        self.recover(generator)

    def compact(self) -> nn.Module:
        """A plain network of its own with the zeroed-out filters gone, in float32 and evaluation mode."""
        return compact(self._network, self.table, self._mask)

    def _changeable(self) -> dict[str, Tensor]:
        """The dense network's tensors that the recovery may change."""
        if self.recovery.changes == "nothing":
            return {}
        if self.recovery.changes == "statistics":
            return {name: buffer for name, buffer in self._network.named_buffers() if name in self._base}
        return {name: tensor.detach() for name, tensor in self._network.state_dict().items()}

    @cached_property
    def _reward(self) -> tuple[Tensor, Tensor]:
        """The reward split, normalised once: it is seen at every step."""
        images, labels = self.splits.reward
        return to_inputs(images.to(self.device), self.normalization, self.precision), labels
