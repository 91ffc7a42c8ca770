"""The engine: measures and recalibrates a compact network, doing only what has not been done before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.baseline import Baseline
from recognizers.compaction import CompactNetwork
from recognizers.data import Examples, Normalization
from recognizers.evaluation import Precision, autocast
from recognizers.execution.convolution import lanes
from recognizers.execution.fusion import fuse
from recognizers.execution.in_place import in_place
from recognizers.execution.pairing import Layout
from recognizers.execution.passes import Boundaries, Keys, StagedPass, choose_boundaries
from recognizers.execution.trained import trained
from recognizers.reconstruction.downdate import Downdates
from recognizers.reconstruction.recipe import Recipe
from recognizers.reconstruction.walk import Walk
from recognizers.recovery import Subject, batch_norms, calibration_batches, recalibrating

BASE = b"base"
"""Name of the base weights and of their statistics."""


@dataclass(frozen=True)
class Values:
    """The values of a compact network, to come back to.

    Attributes:
        mask: the mask that they belong to, ``[n_units]``.
        tensors: parameters and buffers.
        weights: the engine's names for the parameters of each stage.
        statistics: its names for the statistics of each stage.
    """

    mask: np.ndarray
    tensors: dict[str, Tensor]
    weights: list[bytes]
    statistics: list[bytes]


@dataclass(frozen=True)
class _Extent:
    """How far passes go, and what they leave behind."""

    stop: int | None = None
    keep: bool = True
    pin: bool = False


class Engine(Subject):
    """Runs one compact network.

    Every stage's output has a name that follows from the mask bits up to it and from the names of its weights and
    statistics. Passes begin behind the last stage whose kept output still has the right name.

    Args:
        baseline: of the network.
        compact: the network.
        cache_bytes: memory that tensors kept between stages may take, in all engines of the baseline together.
        kept_images: images of the recovery whose tensors are worth keeping.
    """

    def __init__(self, baseline: Baseline, compact: CompactNetwork, *, cache_bytes: int, kept_images: int) -> None:
        self._baseline, self._compact = baseline, compact
        stages = baseline.stages
        # With vectors of 512 bits; with shorter ones pairs of images take longer in wide layers.
        self._pairs = baseline.device.type == "cpu" and lanes(baseline.dtype) == 16
        self._unfused, self._fused = self._made(in_place), self._made(fuse)
        paths = [sorted(stage.paths) for stage in stages]
        self._norm_paths = [
            [path for path in part if batch_norms([compact.module.get_submodule(path)])] for part in paths
        ]
        self._stages_of_path: dict[str, set[int]] = {}
        for index, part in enumerate(paths):
            for path in part:
                self._stages_of_path.setdefault(path, set()).add(index)
        self._keys = Keys(stages, baseline.table)
        self.first_stages = self._keys.first_stages(baseline.table.n_units)
        self._cache_bytes, self._kept_images = cache_bytes, kept_images
        self._kept, self._sharers = frozenset[int](), 0
        baseline.engines.add(self)
        self._inference: StagedPass | None = None
        self._calibrations: dict[tuple[int, int], StagedPass] = {}
        self._walks: dict[Recipe, Walk] = {}
        self._downdates: dict[Recipe, Downdates] = {}
        self._weights, self._statistics = [BASE] * len(stages), [BASE] * len(stages)
        self._names = itertools.count()
        self._extent = _Extent()

    # --- values ---

    def follow(self, mask: np.ndarray) -> None:
        """Slice the network as ``mask`` (``[n_units]``, 1 kept) says; units that come back have base values."""
        for path in self._compact.follow(mask):
            for stage in self._stages_of_path.get(path, ()):
                self._weights[stage] = self._statistics[stage] = self._new_name()  # a mixture

    def load_base(self) -> None:
        """Take over base weights and statistics, under the mask as it is."""
        if any(name != BASE for name in (*self._weights, *self._statistics)):
            self._compact.reload()
            count = len(self._fused)
            self._weights, self._statistics = [BASE] * count, [BASE] * count

    def values(self) -> Values:
        """The current values."""
        return Values(self._compact.mask, self._compact.values(), list(self._weights), list(self._statistics))

    def restore(self, values: Values) -> None:
        """Take over values that this network had before."""
        self._compact.restore(values.mask, values.tensors)
        self._weights, self._statistics = list(values.weights), list(values.statistics)

    # --- what a recovery works on ---

    @property
    def network(self) -> nn.Module:
        """The compact network."""
        return self._compact.module

    @cached_property
    def chain(self) -> Sequence[nn.Module]:
        """Stages, where they train as the network does; not in float32, whose results are the network's to the bit."""
        baseline, layout = self._baseline, Layout()
        if not (self._pairs and baseline.dtype == torch.bfloat16 and baseline.trains_by_stages):
            return [self.network]
        return [trained(stage.graph, self.network, layout) for stage in baseline.stages if stage.graph is not None]

    @property
    def train(self) -> Examples:
        """The training images."""
        return self._baseline.splits.train

    @property
    def normalization(self) -> Normalization:
        """Of the images."""
        return self._baseline.normalization

    @property
    def precision(self) -> Precision:
        """Of passes."""
        return self._baseline.precision

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._baseline.device

    def changed(self) -> None:
        """Give weights and statistics new names."""
        self._compact.touch(self._compact.paths())
        count = len(self._fused)
        self._weights, self._statistics = [self._new_name()] * count, [self._new_name()] * count

    def reconstruct(self, recipe: Recipe) -> None:
        """Reconstruct the stages whose weights are not those of the recipe under the mask yet."""
        extent, count = self._extent, len(self._fused)
        stop = count if extent.stop is None else extent.stop
        mask = self._compact.mask
        keys = self._keys(mask, [f"{recipe!r}".encode()] * count)
        first = next((stage for stage in range(stop) if self._weights[stage] != keys[stage]), stop)
        if first == stop and not extent.pin:
            return
        self._share_memory()
        walks = recipe.form in ("asymmetric", "symmetric")
        start = self._walk(recipe).start(keys, first) if walks else first
        unsure = self._new_name()  # until all has gone well
        self._weights[start:stop] = self._statistics[start:stop] = [unsure] * (stop - start)
        with torch.inference_mode():
            if walks:
                self._walk(recipe).advance(
                    keys, mask, start, stop, compact=self._compact, keep=extent.keep, pin=extent.pin
                )
            else:
                paths = set().union(*(self._baseline.stages[stage].paths for stage in range(start, stop)))
                self._downdate(recipe).fit(sorted(paths), mask, self._compact)
        self._weights[start:stop] = self._statistics[start:stop] = keys[start:stop]

    @torch.inference_mode()
    def recalibrate(self, images: int, batch_size: int) -> None:
        """Recalibrate the stages whose statistics are not those of the images under the mask yet."""
        # Behind the last batch norm there is nothing to do.
        last = max((index for index, paths in enumerate(self._norm_paths) if paths), default=-1) + 1
        extent = self._extent
        stop = last if extent.stop is None else min(extent.stop, last)
        name = f"calibrated on {images} by {batch_size}: ".encode()
        keys = self._keys(self._compact.mask, [name + weights for weights in self._weights])
        wrong = (stage for stage in range(stop) if self._norm_paths[stage] and self._statistics[stage] != keys[stage])
        first = next(wrong, stop)
        if first == stop and not extent.pin:
            return
        self._share_memory()
        calibration = self._calibration(images, batch_size)
        start = calibration.start(keys, first)
        paths = [path for part in self._norm_paths[start:stop] for path in part]
        norms = batch_norms(self.network.get_submodule(path) for path in paths)
        self._compact.touch(paths)
        self._statistics[start:stop] = [self._new_name()] * (stop - start)  # until all has gone well
        with recalibrating(norms), autocast(self.precision, self.device):
            calibration.advance(keys, start, stop, keep=extent.keep, pin=extent.pin)
        self._statistics[start:stop] = keys[start:stop]

    # --- measuring ---

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits of the reward split's images, ``[N, classes]`` float32."""
        return torch.cat([batch.float() for batch in self._infer()])

    @contextmanager
    def branching(self) -> Iterator[None]:
        """Passes within keep nothing, so that what was kept before stays."""
        with self._within(_Extent(keep=False)):
            yield

    @contextmanager
    def reaching(self, stage: int) -> Iterator[None]:
        """Passes within end before ``stage`` and keep what they have there, until :meth:`release`."""
        with self._within(_Extent(stop=stage, pin=stage > 0)):
            yield

    @torch.inference_mode()
    def reach(self) -> None:
        """Run inference as far as :meth:`reaching` says."""
        self._infer()

    def release(self) -> None:
        """Let go of what :meth:`reaching` keeps."""
        for staged in self._passes():
            staged.release()

    def forget(self) -> None:
        """Let go of all tensors between stages."""
        for staged in self._passes():
            staged.forget()

    @property
    def cached_bytes(self) -> int:
        """Size of the tensors kept between stages."""
        return sum(staged.nbytes for staged in self._passes())

    def _infer(self) -> list[Tensor]:
        stop = len(self._fused) if self._extent.stop is None else self._extent.stop
        names = [b" ".join(pair) for pair in zip(self._weights, self._statistics, strict=True)]
        keys = self._keys(self._compact.mask, names)
        self._share_memory()
        if self._inference is None:
            consuming = [
                stage if stage is self._compact.module else partial(stage, disposable=True) for stage in self._fused
            ]
            self._inference = StagedPass(self._baseline.reward, self._fused, self._kept | {len(self._fused)}, consuming)
        with autocast(self.precision, self.device):
            start = self._inference.start(keys, stop)
            return self._inference.advance(keys, start, stop, keep=self._extent.keep, pin=self._extent.pin)

    def _calibration(self, images: int, batch_size: int) -> StagedPass:
        if (images, batch_size) not in self._calibrations:
            batches = calibration_batches(self._baseline.calibration(images), batch_size)
            self._calibrations[images, batch_size] = StagedPass(batches, self._unfused, self._kept)
        return self._calibrations[images, batch_size]

    def _share_memory(self) -> None:
        """Choose the boundaries to keep anew where the number of engines that share the memory has changed."""
        if self._sharers == (sharers := len(self._baseline.engines)):
            return
        self._sharers = sharers
        self._kept = choose_boundaries(
            self._baseline.stages,
            self.first_stages,
            bytes_per_number=self._baseline.dtype.itemsize,
            images=len(self._baseline.splits.reward.images) + self._kept_images,
            budget=self._cache_bytes // sharers,
        )
        for boundaries in (*self._calibrations.values(), *self._walks.values()):
            boundaries.keep(self._kept)
        if self._inference:
            self._inference.keep(self._kept | {len(self._fused)})

    def _walk(self, recipe: Recipe) -> Walk:
        if recipe not in self._walks:
            baseline = self._baseline
            batches = calibration_batches(baseline.calibration(recipe.images), recipe.batch_size)
            self._walks[recipe] = Walk(
                *(baseline.network, baseline.table, baseline.stages, batches, recipe),
                *(baseline.precision, self._kept),
            )
        return self._walks[recipe]

    def _downdate(self, recipe: Recipe) -> Downdates:
        if recipe not in self._downdates:
            baseline = self._baseline
            self._downdates[recipe] = Downdates(baseline.network, baseline.table, baseline.consumers(recipe), recipe)
        return self._downdates[recipe]

    def _passes(self) -> list[Boundaries]:
        inference = [self._inference] if self._inference else []
        return [*self._calibrations.values(), *self._walks.values(), *inference]

    def _made(self, make: Callable[..., nn.Module]) -> list[nn.Module]:
        """Stages that run the network; a network without a graph runs itself."""
        module, versions, dtype = self._compact.module, self._compact.versions, self._baseline.dtype
        layout = Layout() if self._pairs else None

        def version(paths: tuple[str, ...]) -> object:
            return [versions[path] for path in paths]

        return [
            module if stage.graph is None else make(stage.graph, module, version, dtype, layout)
            for stage in self._baseline.stages
        ]

    def _new_name(self) -> bytes:
        return f"values {next(self._names)}".encode()

    @contextmanager
    def _within(self, extent: _Extent) -> Iterator[None]:
        self._extent = extent
        try:
            yield
        finally:
            self._extent = _Extent()
