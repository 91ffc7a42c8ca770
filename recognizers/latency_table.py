"""Latency as a function of the mask: a table of measured layers, interpolated."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from recognizers.channels import ChannelCounts
from recognizers.costs import channel_sides, output_positions
from recognizers.errors import ConfigurationError
from recognizers.files import read_json, write_text
from recognizers.settings import validate
from recognizers.units import Slot, UnitTable


class LayerLatency(BaseModel):
    """What a layer takes, with all that follows it up to the next one, at a grid of channel counts.

    Attributes:
        weight: shape of its weight in the dense network.
        positions: output positions for one image.
        outputs: kept output channels, ascending; a single entry where none can go.
        inputs: kept input channels, likewise.
        seconds: ``[outputs][inputs]``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    weight: tuple[int, ...]
    positions: int
    outputs: tuple[int, ...] = Field(min_length=1)
    inputs: tuple[int, ...] = Field(min_length=1)
    seconds: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _grid(self) -> LayerLatency:
        for axis in (self.outputs, self.inputs):
            if any(left >= right for left, right in pairwise(axis)):
                raise ValueError("outputs and inputs must ascend")
        if [len(row) for row in self.seconds] != [len(self.inputs)] * len(self.outputs):
            raise ValueError("seconds must have a row for each of outputs, with an entry for each of inputs")
        if min(map(min, self.seconds)) < 0:
            raise ValueError("seconds must not be negative")
        return self


class LatencyCheck(BaseModel):
    """A network that was timed as a whole, beside what the table makes of it.

    Attributes:
        macs: fraction of the MACs that it has kept.
        measured: median seconds of a forward pass.
        predicted: seconds by the table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    macs: float
    measured: float = Field(gt=0)
    predicted: float

    @property
    def error(self) -> float:
        """By how much the table is wrong, as a fraction of what was measured."""
        return self.predicted / self.measured - 1


class LatencyTable(BaseModel):
    """Latencies of the layers of one network, under one set of conditions: the content of a JSON file.

    Attributes:
        architecture: name of the network.
        image: ``[C, H, W]`` of its input.
        device: name of the processor or GPU.
        threads: of PyTorch on the processor.
        torch: version of PyTorch.
        batch_size: images per pass.
        precision: of the passes.
        remainder: seconds of a pass that no layer accounts for; negative where layers alone take longer than together.
        layers: by module path.
        checks: the dense network, then randomly pruned ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    schema_version: Literal[1] = 1
    architecture: str
    image: tuple[int, ...]
    device: str
    threads: int
    torch: str
    batch_size: int = Field(ge=1)
    precision: Literal["float32"] = "float32"
    remainder: float
    layers: dict[str, LayerLatency] = Field(min_length=1)
    checks: tuple[LatencyCheck, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the content; recorded episodes carry it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_latency_table(path: str | os.PathLike[str]) -> LatencyTable:
    """Read a table.

    Raises:
        FileError: missing, unreadable, or not JSON.
        ConfigurationError: not a latency table.
    """
    return validate(LatencyTable, read_json(path), f"{path} is no latency table")


def write_latency_table(path: str | os.PathLike[str], table: LatencyTable) -> None:
    """Write a table atomically."""
    write_text(path, table.model_dump_json() + "\n")


class LatencyModel:
    """Seconds of a forward pass as a function of the mask, by a table.

    Sum over layers of a bilinear interpolation at the kept output and input channels, plus the table's remainder (Yang
    et al. 2018, "NetAdapt", section 3.3, sums layers likewise). Measured latencies need not rise with the number of
    channels, so neither does this: removing a unit may make it slower.

    Args:
        latencies: the table.
        network: the dense network.
        table: its units.
        example: an input batch, ``[N, C, H, W]``.
        architecture: name of the network.

    Raises:
        ConfigurationError: the table is one of another network.
    """

    def __init__(
        self, latencies: LatencyTable, network: nn.Module, table: UnitTable, example: Tensor, architecture: str
    ) -> None:
        self.sha256 = latencies.sha256
        _check(latencies, timed_layers(network, example), tuple(example.shape[1:]), architecture)
        layers = list(latencies.layers.values())
        self._channels = channel_counts(network, table, list(latencies.layers))
        # One column more than any layer has: infinity, so that every point lies between two.
        columns = 1 + max(len(axis) for layer in layers for axis in (layer.outputs, layer.inputs))
        self._axes = np.full((2, len(layers), columns), np.inf)  # [outputs and inputs, layers, columns]
        self._seconds = np.zeros((len(layers), columns, columns))
        for index, layer in enumerate(layers):
            for side, axis in enumerate((layer.outputs, layer.inputs)):
                self._axes[side, index, : len(axis)] = axis
            self._seconds[index, : len(layer.outputs), : len(layer.inputs)] = layer.seconds
        self._rows = np.arange(len(layers))
        self._remainder = latencies.remainder
        self.baseline = self(np.ones(table.n_units, dtype=np.int8))
        if not self.baseline > 0:
            raise ConfigurationError(f"the latency table gives the complete network {self.baseline:.3g} seconds")

    def __call__(self, mask: np.ndarray) -> float:
        """Seconds under ``mask``, ``[n_units]``, 1 kept."""
        counts = self._channels(mask).reshape(-1, 2).T[..., None]  # [2, layers, 1]
        last = np.maximum((self._axes <= counts).sum(-1) - 1, 0)  # [2, layers], the grid point below
        below = np.take_along_axis(self._axes, last[..., None], -1)
        above = np.take_along_axis(self._axes, last[..., None] + 1, -1)
        right_out, right_in = np.maximum((counts - below) / (above - below), 0)[..., 0]  # 0 behind the last point
        (out, into), rows, seconds = last, self._rows, self._seconds
        lower = seconds[rows, out, into] * (1 - right_in) + seconds[rows, out, into + 1] * right_in
        upper = seconds[rows, out + 1, into] * (1 - right_in) + seconds[rows, out + 1, into + 1] * right_in
        return float((lower * (1 - right_out) + upper * right_out).sum() + self._remainder)

    def reduction(self, mask: np.ndarray) -> float:
        """Fraction of the dense network's latency that is gone under ``mask``; negative where it has become slower."""
        return 1 - self(mask) / self.baseline


def channel_counts(network: nn.Module, table: UnitTable, paths: list[str]) -> ChannelCounts:
    """Kept output and input channels of modules, ``[2 * paths]``: outputs and inputs in turn."""
    sides = [channel_sides(network.get_submodule(path), table.slots.get(path, Slot())) for path in paths]
    return ChannelCounts([side for pair in sides for side in pair])


def timed_layers(network: nn.Module, example: Tensor) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape of the weight, and output positions for one image, of all layers that a pass goes through."""
    return {
        path: (tuple(network.get_parameter(f"{path}.weight").shape), count)
        for path, count in output_positions(network, example).items()
        if count
    }


def _check(
    latencies: LatencyTable, expected: Mapping[str, tuple[tuple[int, ...], int]], image: tuple[int, ...], name: str
) -> None:
    """Refuse a table of another network."""
    if latencies.architecture != name or latencies.image != image:
        raise ConfigurationError(
            f"the latency table is one of {_described(latencies.architecture, latencies.image)}, not of "
            f"{_described(name, image)}"
        )
    given = {path: (layer.weight, layer.positions) for path, layer in latencies.layers.items()}
    wrong = [path for path in {**expected, **given} if given.get(path) != expected.get(path)]
    if wrong:
        path = wrong[0]
        reason = "lacks" if path not in given else "has" if path not in expected else "has other shapes for"
        raise ConfigurationError(
            f"the latency table is one of another {name}: it {reason} the layer {path!r}; make one for this network "
            "with `zeroout recognizer latency`"
        )


def _described(architecture: str, image: tuple[int, ...]) -> str:
    return f"{architecture} at {' x '.join(map(str, image))}"
