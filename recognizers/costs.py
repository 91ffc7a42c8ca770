"""Parameters and multiply-accumulates (MACs) of a pruned network, in closed form from its mask."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.channels import ChannelCounts
from recognizers.errors import ConfigurationError
from recognizers.evaluation import training_mode
from recognizers.units import Slot, UnitTable, is_depthwise

if TYPE_CHECKING:
    from recognizers.latency_table import LatencyModel

Measure = Literal["parameters", "macs", "latency"]
"""What can be counted of a network."""


@dataclass(frozen=True)
class Cost:
    """Size of a network.

    Attributes:
        parameters: number of parameters.
        macs: multiply-accumulates of all convolutions and linear layers for one input.
    """

    parameters: int
    macs: int


class Reductions(NamedTuple):
    """What is gone, as fractions.

    Attributes:
        parameters: of the parameters.
        macs: of the MACs.
        latency: of the latency by a table; negative where the pruned network is slower. None without a table.
    """

    parameters: float
    macs: float
    latency: float | None = None

    def of(self, measure: Measure) -> float:
        """The reduction in one measure.

        Raises:
            ConfigurationError: latency, and there is no table of it.
        """
        reduction = self.latency if measure == "latency" else self.parameters if measure == "parameters" else self.macs
        if reduction is None:
            raise ConfigurationError(
                "latency is counted by a table: make one with `zeroout recognizer latency --task TASK --out FILE`, and "
                "set recognizer.latency_table=FILE"
            )
        return reduction


class CostModel:
    """Costs as a function of the mask.

    A module with ``o`` kept outputs and ``i`` kept inputs has ``weight * o * i + bias * o`` parameters and
    ``positions * weight * o * i`` MACs, where ``weight`` is the kernel size (for a grouped convolution over the
    number of groups) and ``positions`` the number of output positions.

    Args:
        network: the dense network.
        table: its units.
        example: an input batch, ``[N, C, H, W]``; its spatial size counts.

    Attributes:
        baseline: cost of the dense network.
        latency: by a table, where there is one; see :meth:`with_latency`.
    """

    def __init__(self, network: nn.Module, table: UnitTable, example: Tensor) -> None:
        positions = output_positions(network, example)
        sides: list[np.ndarray | int] = []  # out, in of each module
        factors: list[tuple[float, float, float]] = []  # weight, bias, positions
        seen: set[int] = set()
        for path, module in network.named_modules():
            own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
            seen.update(map(id, own))
            parameters = sum(parameter.numel() for parameter in own)
            if parameters == 0:
                continue
            slot = table.slots.get(path)
            if slot is None:  # nothing to prune: a constant
                macs = module.weight.numel() * positions[path] if isinstance(module, nn.Conv2d | nn.Linear) else 0
                sides += [1, 1]
                factors.append((0, parameters, 0) if macs == 0 else (parameters, 0, macs / parameters))
                continue
            sides += channel_sides(module, slot)
            factors.append(_factors(module, slot, positions.get(path, 0)))
        self._channels = ChannelCounts(sides)
        self._weight, self._bias, self._positions = np.array(factors, dtype=np.float64).T  # exact below 2^53
        self.baseline = self(np.ones(table.n_units, dtype=np.int8))
        self.latency: LatencyModel | None = None

    def with_latency(self, latency: LatencyModel) -> CostModel:
        """The same, with latencies by a table."""
        result = copy.copy(self)
        result.latency = latency
        return result

    def __call__(self, mask: np.ndarray) -> Cost:
        """Cost under ``mask``, ``[n_units]``, 1 kept."""
        outputs, inputs = self._channels(mask).reshape(-1, 2).T
        weights = self._weight * outputs * inputs
        return Cost(round((weights + self._bias * outputs).sum()), round((weights * self._positions).sum()))

    def reductions(self, mask: np.ndarray) -> Reductions:
        """What is gone under ``mask``."""
        cost = self(mask)
        return Reductions(
            1 - cost.parameters / self.baseline.parameters,
            1 - cost.macs / max(self.baseline.macs, 1),
            None if self.latency is None else self.latency.reduction(mask),
        )


def channel_sides(module: nn.Module, slot: Slot) -> list[np.ndarray | int]:
    """Output and input side of a module, as :class:`~recognizers.channels.ChannelCounts` takes them.

    A module that treats every channel on its own has one input.
    """
    if isinstance(module, nn.Conv2d):
        channels = module.out_channels, 1 if is_depthwise(module) else module.in_channels
    elif isinstance(module, nn.Linear):
        channels = module.out_features, module.in_features
    else:
        channels = 0 if slot.out_units is None else len(slot.out_units), 1
    given = slot.out_units, slot.in_units
    return [count if units is None else units for units, count in zip(given, channels, strict=True)]


def _factors(module: nn.Module, slot: Slot, positions: int) -> tuple[float, float, float]:
    """Weights per output and input channel, biases per output channel, output positions."""
    if isinstance(module, nn.Conv2d):
        bias = float(module.bias is not None)
        if is_depthwise(module):
            return module.weight[0].numel(), bias, positions
        return module.kernel_size[0] * module.kernel_size[1] / module.groups, bias, positions
    if isinstance(module, nn.Linear):
        return 1, float(module.bias is not None), positions
    per_channel = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    channels = 0 if slot.out_units is None else len(slot.out_units)
    return 0, per_channel / channels, 0


def output_positions(network: nn.Module, example: Tensor) -> dict[str, int]:
    """Number of output positions, for one input, of every convolution and linear layer, summed over its calls."""
    positions: dict[str, int] = {}

    def count(path: str, module: nn.Module, output: Tensor) -> None:
        channels = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
        positions[path] = positions.get(path, 0) + output[0].numel() // channels

    handles = [
        module.register_forward_hook(lambda module, _, output, path=path: count(path, module, output))
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad(), training_mode(network, False):
            network(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return {
        path: positions.get(path, 0)
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def count_cost(network: nn.Module, example: Tensor) -> Cost:
    """Cost of a plain network, counted from its tensors: what the closed form must equal."""
    positions = output_positions(network, example)
    weights = {path: network.get_parameter(f"{path}.weight").numel() for path in positions}
    macs = sum(weights[path] * count for path, count in positions.items())
    return Cost(sum(parameter.numel() for parameter in network.parameters()), int(macs))
