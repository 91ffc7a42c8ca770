"""The baseline: the complete network, its data and all that follows from them, shared by many recognizers."""

from __future__ import annotations

import copy
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Literal
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.blueprint import Blueprint
from recognizers.compaction import kept_channels, make_plain
from recognizers.costs import Cost, CostModel, count_cost
from recognizers.data import Examples, Normalization, Splits
from recognizers.dependency import build_unit_table
from recognizers.errors import ConfigurationError
from recognizers.evaluation import Precision, accuracy, predict, resolve_precision, to_inputs
from recognizers.execution.stages import Stage, cut, trains_as_it_infers
from recognizers.masks import weights_sha256
from recognizers.preparation import Provenance
from recognizers.reconstruction.consumers import Consumer, consumers
from recognizers.reconstruction.recipe import Recipe
from recognizers.recovery import Recovery, calibration_batches
from recognizers.training import EpochRecord, Teacher
from recognizers.units import Slot, UnitTable, is_depthwise

Split = Literal["train", "reward", "selection", "test"]

MEMO_ENTRIES = 200_000
"""Accuracies remembered per recovery: some 40 MB."""


class Baseline:
    """A network before pruning, with its data. Nothing in it changes, so many recognizers share one.

    Args:
        network: a plain network, as a rule with trained weights; the baseline takes it over.
        splits: the data.
        normalization: of the inputs.
        precision: of reward and recovery passes.
        batch_size: images per forward pass; by default as many as keep the widest layer in the processor's cache.
        device: where to compute; CUDA where present by default.
        blueprint: how the network was created, for files; None for a network of the caller's own.
        table: the network's units, where they are known already.
        inputs: images that are prepared already, see :attr:`inputs`; those of another type or place are left aside.
        history: of the training, where the weights were trained on the spot.
        provenance: how the weights came about, for files.

    Attributes:
        inputs: images as the network takes them, ``[N, C, H, W]``, by what they are for; prepared when asked for.
        engines: what runs its compact networks now.
    """

    def __init__(
        self,
        network: nn.Module,
        splits: Splits,
        normalization: Normalization,
        *,
        precision: Precision = "float32",
        batch_size: int | None = None,
        device: torch.device | None = None,
        blueprint: Blueprint | None = None,
        table: UnitTable | None = None,
        inputs: Mapping[str, Tensor] | None = None,
        history: tuple[EpochRecord, ...] = (),
        provenance: Provenance | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.splits, self.normalization, self._blueprint = splits, normalization, blueprint
        self.precision, self.history = precision, history
        if self.dtype == torch.bfloat16 and resolve_precision("auto", self.device) == torch.float32:
            slower = "recognizer.precision=bfloat16 is slower than float32 on this processor"
            warnings.warn(f"{slower}; auto would choose float32", stacklevel=2)
        self.provenance = provenance or Provenance()
        network = make_plain(network).to(self.device).eval()
        example = normalization.normalize(splits.train.images[:2].to(self.device))
        self.network = network
        self.table: UnitTable = build_unit_table(network, example) if table is None else table
        self.costs = CostModel(network, self.table, example)
        self.stages: tuple[Stage, ...] = cut(network, example)
        self.batch_size = batch_size or self._cached_images()
        self.inputs: dict[str, Tensor] = {
            name: images
            for name, images in (inputs or {}).items()
            if images.dtype == self.dtype and images.device.type == self.device.type
        }
        self.accuracies: dict[Split, float] = {}
        self._memos: dict[Recovery, Memo] = {}
        self._consumers: dict[tuple[int, int, float, int], list[Consumer]] = {}
        self.engines = WeakSet[object]()

    @property
    def architecture(self) -> str:
        """Name of the architecture, for files and messages."""
        return self._blueprint.architecture if self._blueprint else type(self.network).__name__

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

    @cached_property
    def trains_by_stages(self) -> bool:
        """Whether its stages, one after the other, do what the network does in training, too."""
        return all(stage.graph is not None for stage in self.stages) and trains_as_it_infers(self.network)

    @cached_property
    def original_cost(self) -> Cost:
        """Of the network as its blueprint creates it, before a preparation narrowed it."""
        if self._blueprint is None:
            return self.costs.baseline
        with torch.random.fork_rng(devices=[]):
            complete = self._blueprint.create()
        return count_cost(complete, self.normalization.normalize(self.splits.train.images[:1].cpu()))

    @property
    def state(self) -> dict[str, Tensor]:
        """State dict of the base weights."""
        return {name: tensor.detach() for name, tensor in self.network.state_dict().items()}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the base weights; masks carry it."""
        return weights_sha256(self.state)

    @property
    def dtype(self) -> torch.dtype:
        """What reward and recovery passes compute in."""
        return resolve_precision(self.precision, self.device)

    @property
    def resolved_precision(self) -> Precision:
        """The precision by its own name, where it was left to the device (``auto``)."""
        return "bfloat16" if self.dtype == torch.bfloat16 else "float32"

    @property
    def reward(self) -> tuple[Tensor, ...]:
        """The images of the reward split in batches of nearly equal size, as the network takes them."""
        return even_batches(self._reward_inputs(), self.batch_size)

    def calibration(self, count: int) -> Tensor:
        """A fixed seeded subset of ``count`` training images, as the network takes them, ``[count, C, H, W]``."""

        def choose() -> Tensor:
            chosen = np.random.default_rng(0).permutation(len(self.splits.train.images))[:count]
            return self.splits.train.images[torch.from_numpy(chosen)]

        return self._prepared(f"calibration {count}", choose)

    def teacher(self, mask: np.ndarray | None = None) -> Teacher:
        """The network as a teacher of its compact network under ``mask`` (``[n_units]``, 1 kept; None: all kept)."""
        mask = np.ones(self.table.n_units, dtype=np.int8) if mask is None else mask
        kept = []
        for stage in self.stages[1:]:
            out_kept, in_kept = kept_channels(self.table.slots.get(stage.first, Slot()), mask)
            kept.append(out_kept if is_depthwise(self.network.get_submodule(stage.first)) else in_kept)
        return Teacher(self.network, self.stages, kept)

    def consumers(self, recipe: Recipe) -> list[Consumer]:
        """What the layers that read units see in the network, on the recipe's images; gathered once."""
        key = recipe.images, recipe.positions, recipe.ridge, recipe.batch_size
        if key not in self._consumers:
            with torch.inference_mode(False):
                self._consumers[key] = consumers(
                    self.network,
                    self.table,
                    self.stages,
                    calibration_batches(self.calibration(recipe.images), recipe.batch_size),
                    per_image=recipe.positions,
                    ridge=recipe.ridge,
                    precision=self.precision,
                )
        return self._consumers[key]

    def prepare(self, recovery: Recovery) -> None:
        """Prepare all images that recognizers with this recovery take in."""
        self._reward_inputs()
        if recovery.calibration_images:
            self.calibration(recovery.calibration_images)

    def with_weights(self, network: nn.Module, *, provenance: Provenance, history: tuple[EpochRecord, ...]) -> Baseline:
        """The same around a network of equal shape with other weights, which the new baseline takes over."""
        return Baseline(
            network,
            self.splits,
            self.normalization,
            precision=self.precision,
            batch_size=self.batch_size,
            device=self.device,
            blueprint=self._blueprint,
            table=self.table,
            inputs=self.inputs,
            history=history,
            provenance=provenance,
        )

    def sample(self, images: int) -> Baseline:
        """The same with only so many images in its reward split, a fixed seeded subset, for quick comparisons."""
        result = copy.copy(self)
        reward = self.splits.reward
        chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(reward.labels))[:images])
        subset = Examples(reward.images[chosen], reward.labels[chosen])
        result.splits = replace(self.splits, reward=subset)
        result.inputs = {name: inputs for name, inputs in self.inputs.items() if name != "reward"}
        result.accuracies, result._memos, result.engines = {}, {}, WeakSet[object]()
        return result

    def memo(self, recovery: Recovery) -> Memo:
        """Reward accuracies that were measured after this recovery."""
        return self._memos.setdefault(recovery, Memo(MEMO_ENTRIES))

    def forget(self) -> None:
        """Empty all memos."""
        for memo in self._memos.values():
            memo.clear()

    def measure(self, network: nn.Module, split: Split) -> float:
        """Accuracy of any network on a split, in float32, all at once and remembering nothing."""
        images, labels = getattr(self.splits, split)
        logits = predict(
            network, images, self.normalization, batch_size=self.batch_size, precision="float32", device=self.device
        )
        return accuracy(logits, labels)

    def _reward_inputs(self) -> Tensor:
        return self._prepared("reward", lambda: self.splits.reward.images)

    def _prepared(self, name: str, images: Callable[[], Tensor]) -> Tensor:
        if name not in self.inputs:
            # Whoever asks first may be in inference mode, whose tensors cannot be used for gradients later.
            with torch.inference_mode(False):
                on_device = images().to(self.device)
                self.inputs[name] = to_inputs(on_device, self.normalization, self.precision).to(self.dtype)
        return self.inputs[name]

    def _cached_images(self) -> int:
        """As many images as keep what the widest operation reads and writes within half of the last-level cache."""
        if self.device.type != "cpu":
            return 1024
        widest = max(stage.widest for stage in self.stages) or 2 * self.splits.train.images[0].numel() * 32
        images = _cache_bytes() // 2 // (widest * self.dtype.itemsize)
        return int(min(max(images, 16), 1024))


class Memo:
    """Figures by mask, the least recently used dropped first.

    Args:
        entries: the most figures to remember.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._figures = OrderedDict[bytes, float]()

    def get(self, key: bytes) -> float | None:
        """The figure, if it is remembered."""
        if key in self._figures:
            self._figures.move_to_end(key)
        return self._figures.get(key)

    def put(self, key: bytes, figure: float) -> None:
        """Remember a figure."""
        self._figures[key] = figure
        self._figures.move_to_end(key)
        if len(self._figures) > self._entries:
            self._figures.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._figures.clear()

    def __len__(self) -> int:
        return len(self._figures)


def even_batches(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Batches of nearly equal size, of even numbers but for the last one: the engine can take images in pairs.

    Args:
        images: ``[N, ...]``.
        batch_size: about as many in each; where that is less than two, or there are not as many, batches may be odd.
    """
    batches, pairs = max(1, round(len(images) / batch_size)), len(images) // 2
    if batches > pairs:
        return images.tensor_split(batches)
    return images.tensor_split([2 * (pairs * batch // batches) for batch in range(1, batches)])


def _cache_bytes() -> int:
    """Size of the last-level cache, 16 MiB where the system does not tell."""
    for name in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
        if name in os.sysconf_names and (size := os.sysconf(name)) > 0:
            return size
    return 16 * 2**20
