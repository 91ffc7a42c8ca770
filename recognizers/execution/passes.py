"""Running a chain of stages over batches, from the last kept tensor that is still right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from recognizers.execution.stages import Stage
from recognizers.units import UnitTable

Run = Callable[[Tensor], Tensor]
"""From the tensor before a stage to the tensor behind it."""


class Keys:
    """Names for what a stage puts out: equal names, equal tensors.

    A stage's output follows from the mask bits of the units in it and before it, and from the values of their weights
    and statistics, which the caller names stage by stage.

    Args:
        stages: of the network.
        table: its units.
    """

    def __init__(self, stages: Sequence[Stage], table: UnitTable) -> None:
        self._units: list[np.ndarray] = []
        for stage in stages:
            slots = [table.slots[path] for path in stage.paths if path in table.slots]
            sides = [side for slot in slots for side in (slot.out_units, slot.in_units) if side is not None]
            units = np.unique(np.concatenate(sides)) if sides else np.empty(0, dtype=np.int64)
            self._units.append(units[units >= 0])

    def __call__(self, mask: np.ndarray, values: Sequence[bytes]) -> list[bytes]:
        """The name of each stage's output under ``mask`` (``[n_units]``, 1 kept), given the names of its values."""
        digest, keys = hashlib.blake2b(digest_size=16), []
        for units, name in zip(self._units, values, strict=True):
            digest.update(mask[units].tobytes() + name + b"|")
            keys.append(digest.digest())
        return keys

    def first_stages(self, n_units: int) -> np.ndarray:
        """The first stage that each unit occurs in, ``[n_units]`` int64."""
        first = np.full(n_units, len(self._units))
        for index in reversed(range(len(self._units))):
            first[self._units[index]] = index
        return first


class Boundaries:
    """Tensors between stages, under the names of what they are.

    Boundary ``i`` lies before stage ``i``; boundary ``n_stages`` is the output.

    Args:
        kept: the boundaries whose tensors are kept.
    """

    def __init__(self, kept: frozenset[int]) -> None:
        self._kept = kept
        self._values: dict[int, tuple[bytes, list[Tensor]]] = {}

    def start(self, keys: Sequence[bytes], stop: int) -> int:
        """The last boundary, ``stop`` at most, whose tensors are at hand; 0 are the inputs."""
        right = (boundary for boundary, (key, _) in self._values.items() if keys[boundary - 1] == key)
        return max((boundary for boundary in right if boundary <= stop), default=0)

    def keep(self, kept: frozenset[int]) -> None:
        """Keep these boundaries from now on."""
        for boundary in self._kept - kept:
            self._values.pop(boundary, None)
        self._kept = kept

    def release(self) -> None:
        """Let go of tensors at boundaries that are not to be kept."""
        for boundary in [boundary for boundary in self._values if boundary not in self._kept]:
            del self._values[boundary]

    def forget(self) -> None:
        """Let go of all tensors but the inputs."""
        self._values.clear()

    @property
    def nbytes(self) -> int:
        """Size of the tensors that are kept, in bytes."""
        return sum(tensor.nbytes for _, tensors in self._values.values() for tensor in tensors)

    def _fresh(self, start: int, stop: int, *, keep: bool, pin: bool) -> set[int]:
        """The boundaries to fill on the way from ``start`` to ``stop``, now empty."""
        fresh = {boundary for boundary in self._kept if start < boundary <= stop} if keep else set()
        fresh |= {stop} if pin else set()
        for boundary in fresh:
            self._values.pop(boundary, None)  # first, so that old and new tensors never lie side by side
        return fresh


class StagedPass(Boundaries):
    """A pass over fixed inputs that keeps some of the tensors between stages, and begins behind what is still right.

    Args:
        batches: the inputs, each ``[N, C, H, W]``.
        stages: each maps the tensor before it to the tensor behind it.
        kept: the boundaries whose tensors are kept.
        consuming: the same stages, for tensors that nobody needs afterwards: they may overwrite them.
    """

    def __init__(
        self,
        batches: Sequence[Tensor],
        stages: Sequence[Run],
        kept: frozenset[int],
        consuming: Sequence[Run] | None = None,
    ) -> None:
        super().__init__(kept)
        self._batches, self._stages = list(batches), stages
        self._consuming = consuming or stages

    def advance(self, keys: Sequence[bytes], start: int, stop: int, *, keep: bool, pin: bool = False) -> list[Tensor]:
        """Run the stages from one boundary to another.

        Args:
            keys: the names of the stages' outputs.
            start: see :meth:`start`.
            stop: where to end.
            keep: keep tensors on the way, in place of those that were kept there before.
            pin: keep those at ``stop`` in any case, until :meth:`release`.

        Returns:
            The tensors at ``stop``, batch by batch.
        """
        tensors = self._values[start][1] if start else self._batches
        if start == stop:
            return tensors
        fresh: dict[int, list[Tensor]] = {boundary: [] for boundary in self._fresh(start, stop, keep=keep, pin=pin)}
        results = []
        for batch in tensors:
            tensor, needed = batch, {_memory(batch)}
            for stage in range(start, stop):
                # By memory, as a stage may hand on what it was given, or a view of it.
                tensor = (self._stages if _memory(tensor) in needed else self._consuming)[stage](tensor)
                if stage + 1 in fresh:
                    fresh[stage + 1].append(tensor)
                    needed.add(_memory(tensor))
            results.append(tensor)
        for boundary, values in fresh.items():
            self._values[boundary] = (keys[boundary - 1], values)
        return results


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def choose_boundaries(
    stages: Sequence[Stage], first_stages: np.ndarray, bytes_per_number: int, images: int, budget: int
) -> frozenset[int]:
    """Choose the boundaries to keep within ``budget`` bytes: those that save the most work per byte.

    The work to save is that of a step that removes a unit, each unit being as likely as any other.

    Args:
        stages: of the network.
        first_stages: first stage that each unit occurs in, ``[n_units]``.
        bytes_per_number: of the tensors between stages.
        images: of all passes together.
        budget: in bytes.
    """
    # A number written costs about as much as a few dozen multiply-accumulates.
    work = np.cumsum([0, *(stage.macs + 32 * stage.outputs for stage in stages)], dtype=np.float64)  # before each stage
    share = np.bincount(first_stages, minlength=len(stages) + 1)[: len(stages)] / max(len(first_stages), 1)
    chosen: set[int] = set()
    saved = np.zeros(len(stages))  # work that the chosen boundaries save a step that begins at each stage
    while True:
        best, best_rate = 0, 0.0
        for boundary in range(1, len(stages)):
            size = stages[boundary - 1].outputs * bytes_per_number * images
            if boundary in chosen or size == 0 or size > budget:
                continue
            gain = share[boundary:] @ np.maximum(work[boundary] - saved[boundary:], 0)
            if gain / size > best_rate:
                best, best_rate = boundary, gain / size
        if not best:
            return frozenset(chosen)
        chosen.add(best)
        budget -= stages[best - 1].outputs * bytes_per_number * images
        saved[best:] = np.maximum(saved[best:], work[best])
