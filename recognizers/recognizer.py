"""The recognizer: a network with ZeroOut layers, its mask and its recovery."""

from __future__ import annotations

import copy
import hashlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.baseline import Baseline, Split
from recognizers.blueprint import Blueprint
from recognizers.compaction import CompactNetwork
from recognizers.costs import Cost, CostModel, Reductions
from recognizers.data import Normalization, Splits
from recognizers.errors import MaskError
from recognizers.evaluation import accuracy
from recognizers.execution.engine import Engine, Values
from recognizers.latency_table import LatencyModel
from recognizers.masks import check_mask
from recognizers.recovery import NoRecovery, Recovery
from recognizers.units import UnitTable
from recognizers.zero_out import insert_zero_outs, set_mask

DEFAULT_CACHE_MEGABYTES = 1024

Figure = TypeVar("Figure")


@dataclass(frozen=True)
class Snapshot:
    """A state of the recognizer to come back to.

    Attributes:
        mask: ``[n_units]``, 1 kept.
        recovered: the mask under which it was recovered last; None where it was not.
        values: those of the network, where they do not follow from the masks.
    """

    mask: np.ndarray
    recovered: np.ndarray | None
    values: Values | None


class Recognizer:
    """A CNN that is being pruned.

    It has one state, so it serves one environment at a time: :attr:`holder`, the last one that reset it.

    The complete network with ZeroOut layers (:attr:`network`) is the semantics; a compact network, sliced as the mask
    says, does the work. After a memoryless recovery the state follows from the mask alone. Then nothing is computed
    before it is asked for, and reward accuracies of masks that were seen before are looked up.

    Args:
        baseline: the network before pruning, with its data; recognizers may share one.
        recovery: what to do after units were zeroed out.
        cache_megabytes: memory that tensors kept between steps may take, in all recognizers of the baseline together.
        latency: of the network by its mask, where that is to be counted.

    Attributes:
        costs: parameters, MACs and latency by mask.
    """

    def __init__(
        self,
        baseline: Baseline,
        *,
        recovery: Recovery | None = None,
        cache_megabytes: int = DEFAULT_CACHE_MEGABYTES,
        latency: LatencyModel | None = None,
    ) -> None:
        self.baseline = baseline
        self.costs: CostModel = baseline.costs if latency is None else baseline.costs.with_latency(latency)
        self.recovery = recovery or NoRecovery()
        shares = self.recovery.changes != "everything"
        self._compact = CompactNetwork(baseline.network, baseline.table, share=shares)
        self._engine = Engine(
            baseline,
            self._compact,
            # Where weights change at every step nothing could be used again; what is kept would only leave the cache.
            cache_bytes=cache_megabytes * 2**20 if self.recovery.memoryless else 0,
            kept_images=self.recovery.kept_images,
        )
        self._mask = np.ones(self.n_units, dtype=np.int8)
        self._recovered: np.ndarray | None = None
        # The mask and the recovered mask that the compact network is at; masks are replaced, never changed.
        self._settled: tuple[np.ndarray, np.ndarray | None] | None = None
        self._holder: weakref.ref[object] | None = None

    @property
    def holder(self) -> object:
        """The environment that reset it last, while that exists."""
        return self._holder and self._holder()

    @holder.setter
    def holder(self, environment: object) -> None:
        # Weakly: the environment holds the recognizer, and with a cycle neither would go when it is no longer used.
        self._holder = weakref.ref(environment)

    # --- what it is ---

    @property
    def table(self) -> UnitTable:
        """The units."""
        return self.baseline.table

    @property
    def splits(self) -> Splits:
        """The data."""
        return self.baseline.splits

    @property
    def normalization(self) -> Normalization:
        """Of the inputs."""
        return self.baseline.normalization

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.baseline.device

    @property
    def batch_size(self) -> int:
        """Images per forward pass."""
        return self.baseline.batch_size

    @property
    def architecture(self) -> str:
        """Name of the architecture, for files and messages."""
        return self.baseline.architecture

    @property
    def blueprint(self) -> Blueprint:
        """How the network was created; see :attr:`Baseline.blueprint`."""
        return self.baseline.blueprint

    @property
    def base_state(self) -> dict[str, Tensor]:
        """State dict of the base weights."""
        return self.baseline.state

    @property
    def base_sha256(self) -> str:
        """SHA-256 of the base weights; masks carry it."""
        return self.baseline.sha256

    @property
    def latency_sha256(self) -> str | None:
        """SHA-256 of the table that latency is counted by; None where it is not."""
        return None if self.costs.latency is None else self.costs.latency.sha256

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.table.n_units

    # --- state ---

    @property
    def mask(self) -> np.ndarray:
        """A copy of the mask, ``[n_units]`` int8, 1 kept."""
        return self._mask.copy()

    @property
    def network(self) -> nn.Module:
        """A complete network of its own with ZeroOut layers, under the current mask. Removed units have base values."""
        self._settle()
        network = copy.deepcopy(self.baseline.network)
        insert_zero_outs(network, self.table)
        self._compact.scatter(network)
        set_mask(network, self._mask)
        return network

    @property
    def cost(self) -> Cost:
        """Parameters and MACs of the compact network."""
        return self.costs(self._mask)

    @property
    def reductions(self) -> Reductions:
        """What is gone."""
        return self.costs.reductions(self._mask)

    @property
    def parameter_reduction(self) -> float:
        """Fraction of the parameters removed."""
        return self.reductions.parameters

    @property
    def macs_reduction(self) -> float:
        """Fraction of the MACs removed."""
        return self.reductions.macs

    @property
    def original_reductions(self) -> Reductions:
        """What is gone of the network before a preparation narrowed it; the latency of that is not known."""
        cost, original = self.cost, self.baseline.original_cost
        return Reductions(1 - cost.parameters / original.parameters, 1 - cost.macs / max(original.macs, 1))

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
        self._mask = self._without(units)

    def recover(self, generator: torch.Generator | None = None) -> None:
        """Apply the recovery to the remaining weights, drawing from ``generator`` (a fixed one by default)."""
        if self.recovery.memoryless:
            self._recovered = self._mask
            if self._remembered() is None:
                self._settle()
        else:
            self._settle()
            try:
                self.recovery(self._engine, generator or _fixed_generator())
            except BaseException:
                self._engine.changed()  # it may have been on its way
                raise

    def accuracy(self, split: Split = "reward") -> float:
        """Fraction of the split's images that the network under the current mask classifies rightly.

        Of the reward split it is measured in the baseline's precision, of all others in float32.
        """
        if split != "reward":
            self._settle()
            return self.baseline.measure(self._compact.module, split)
        figure = self._remembered()
        if figure is None:
            figure = accuracy(self.logits(), self.splits.reward.labels)
            if self._follows_from_mask:
                self.baseline.memo(self.recovery).put(_digest(self._mask), figure)
        return figure

    def logits(self) -> Tensor:
        """Logits of the reward split's images, ``[N, classes]`` float32, as :meth:`accuracy` takes them."""
        self._settle()
        return self._engine.logits()

    def probe(self, selections: Sequence[np.ndarray], generator: torch.Generator | None = None) -> list[float]:
        """Reward accuracies after zeroing out each of several selections of units, and recovery; the state stays.

        The figures are those that :meth:`zero_out`, :meth:`recover` and :meth:`accuracy` would give. After memoryless
        recoveries, what the selections have in common is computed once.

        Args:
            selections: of units, each ``[k]`` int64.
            generator: as for :meth:`recover`, in the same state for each selection; it is left as it was.

        Raises:
            MaskError: as :meth:`zero_out`; nothing was measured.
        """
        masks = [self._without(units) for units in selections]
        snapshot = self.snapshot()
        state = None if generator is None else generator.get_state()

        def back() -> None:
            self.restore(snapshot)
            if generator is not None and state is not None:
                generator.set_state(state)

        try:
            if self.recovery.memoryless:
                return self._probe_accuracies(masks)
            figures = []
            for mask in masks:
                self._mask = mask
                self.recover(generator)
                figures.append(self.accuracy())
                back()
            return figures
        finally:
            self._engine.release()
            back()

    def probe_logits(self, masks: Sequence[np.ndarray]) -> list[Tensor]:
        """Logits of the reward split's images under masks, ``[N, classes]`` float32 each; the state stays.

        After memoryless recoveries, what the masks have in common with the current one is computed once. Other
        recoveries start from base weights, as in :meth:`load_mask`.
        """
        state = self.snapshot()
        try:
            if self.recovery.memoryless:
                return self._probe_stages(masks, self.logits)
            results = []
            for mask in masks:
                self.load_mask(mask)
                results.append(self.logits())
            return results
        finally:
            self._engine.release()
            self.restore(state)

    def baseline_accuracy(self, split: Split = "reward") -> float:
        """Accuracy of the base weights, nothing pruned. Measured once for all recognizers of a baseline."""
        known = self.baseline.accuracies
        if split not in known:
            state = self.snapshot()
            try:
                self.reset()
                known[split] = self.accuracy(split)
            finally:
                self.restore(state)
        return known[split]

    # --- coming back ---

    def reset(self) -> None:
        """Back to the base weights, nothing pruned."""
        self._mask, self._recovered = np.ones(self.n_units, dtype=np.int8), None
        if not self.recovery.memoryless:
            self._settle()
            self._engine.load_base()

    def snapshot(self) -> Snapshot:
        """The current state."""
        if self.recovery.memoryless:
            return Snapshot(self._mask, self._recovered, None)
        self._settle()
        return Snapshot(self._mask, None, self._engine.values())

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot of this recognizer."""
        self._mask, self._recovered = snapshot.mask, snapshot.recovered
        if snapshot.values is not None:
            self._engine.restore(snapshot.values)
            self._settled = self._mask, self._recovered

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
        self._settle()
        return copy.deepcopy(self._compact.module)

    def forget(self) -> None:
        """Drop all remembered accuracies of the baseline's recognizers, and the tensors that this one keeps."""
        self.baseline.forget()
        self._engine.forget()

    @property
    def cached_bytes(self) -> int:
        """Size of the tensors that are kept between steps."""
        return self._engine.cached_bytes

    # --- within ---

    @property
    def _follows_from_mask(self) -> bool:
        """Whether the state is that of the mask after recovery, so that its accuracy may be remembered."""
        if not self.recovery.memoryless:
            return False
        if self.recovery.changes == "nothing":
            return True
        return self._recovered is not None and np.array_equal(self._recovered, self._mask)

    def _remembered(self) -> float | None:
        return self.baseline.memo(self.recovery).get(_digest(self._mask)) if self._follows_from_mask else None

    def _settle(self) -> None:
        """Bring the compact network to the state, where that was put off."""
        if self._settled and self._settled[0] is self._mask and self._settled[1] is self._recovered:
            return
        self._settled = None
        if self.recovery.memoryless and self.recovery.changes != "nothing":
            if self._recovered is None:
                self._engine.load_base()
            else:
                self._engine.follow(self._recovered)
                self.recovery(self._engine, _fixed_generator())
        self._engine.follow(self._mask)
        self._settled = self._mask, self._recovered

    def _without(self, units: np.ndarray) -> np.ndarray:
        units = np.asarray(units, dtype=np.int64)
        if units.size and not (units.min() >= 0 and units.max() < self.n_units):
            raise MaskError(f"units must be in 0..{self.n_units - 1}, got {units.min()}..{units.max()}")
        if not self._mask[units].all():
            raise MaskError(f"units {units[self._mask[units] == 0].tolist()[:5]} are zeroed out already")
        mask = self._mask.copy()
        mask[units] = 0
        check_mask(mask, self.table)
        return mask

    def _probe_accuracies(self, masks: Sequence[np.ndarray]) -> list[float]:
        state, known = self._mask, dict[int, float]()
        for index, mask in enumerate(masks):
            self._mask = self._recovered = mask
            if (figure := self._remembered()) is not None:
                known[index] = figure
        self._mask = self._recovered = state
        unknown = [index for index in range(len(masks)) if index not in known]
        known |= zip(unknown, self._probe_stages([masks[index] for index in unknown], self.accuracy), strict=True)
        return [known[index] for index in range(len(masks))]

    def _probe_stages(self, masks: Sequence[np.ndarray], measure: Callable[[], Figure]) -> list[Figure]:
        """What ``measure`` gives under each of the masks; the current one is run once, as far as they need it."""
        state, first_stages = self._mask, self._engine.first_stages
        first = [int(first_stages[mask != state].min()) if (mask != state).any() else 0 for mask in masks]
        figures: dict[int, Figure] = {}
        reached = 0
        for index in sorted(range(len(masks)), key=first.__getitem__):
            if first[index] > reached:
                reached = first[index]
                self._reach(state, reached)
            self._mask = self._recovered = masks[index]
            with self._engine.branching():
                figures[index] = measure()
        return [figures[index] for index in range(len(masks))]

    def _reach(self, mask: np.ndarray, stage: int) -> None:
        """Run the network under ``mask``, recovered, as far as ``stage``, and keep what lies before that."""
        self._mask = self._recovered = mask
        self._engine.release()
        with self._engine.reaching(stage):
            self._settle()
            self._engine.reach()
        self._settled = None  # recovered as far as the stage


def _fixed_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _digest(mask: np.ndarray) -> bytes:
    return hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=16).digest()
