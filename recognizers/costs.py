"""Parameters and multiply-accumulates (MACs) of a pruned network, in closed form from its mask."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.evaluation import training_mode
from recognizers.units import UnitTable


@dataclass(frozen=True)
class Cost:
    """Size of a network.

    Attributes:
        parameters: number of parameters.
        macs: multiply-accumulates of all convolutions and linear layers for one input.
    """

    parameters: int
    macs: int


class CostModel:
    """Costs as a function of the mask.

    A module with ``o`` kept outputs and ``i`` kept inputs has ``weight * o * i + bias * o`` parameters and
    ``positions * weight * o * i`` MACs, where ``weight`` is the kernel size (for a grouped convolution over the
    number of groups) and ``positions`` the number of output positions.

    Args:
        network: the dense network.
        table: its units.
        example: an input batch, ``[N, C, H, W]``; its spatial size counts.
    """

    def __init__(self, network: nn.Module, table: UnitTable, example: Tensor) -> None:
        positions = output_positions(network, example)
        rows: list[tuple[float, float, float, float, float]] = []  # out, in, weight, bias, positions
        units: list[np.ndarray] = []
        owners: list[np.ndarray] = []
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
                rows.append((1, 1, 0, parameters, 0) if macs == 0 else (1, 1, parameters, 0, macs / parameters))
                continue
            row = len(rows)
            for side, channels in ((0, slot.out_units), (1, slot.in_units)):
                prunable = np.empty(0, dtype=np.int64) if channels is None else channels[channels >= 0]
                units.append(prunable)
                owners.append(np.full(len(prunable), 2 * row + side))
            rows.append(_row(module, slot.out_units, slot.in_units, positions.get(path, 0)))
        self._units = np.concatenate(units) if units else np.empty(0, dtype=np.int64)
        self._owners = np.concatenate(owners) if owners else np.empty(0, dtype=np.int64)
        table_of_rows = np.array(rows, dtype=np.float64)  # exact for integers below 2^53
        self._fixed = table_of_rows[:, :2]
        self._weight, self._bias, self._positions = table_of_rows[:, 2:].T
        self.baseline = self(np.ones(table.n_units, dtype=np.int8))

    def __call__(self, mask: np.ndarray) -> Cost:
        """Cost under ``mask``, ``[n_units]``, 1 kept."""
        counts = np.bincount(self._owners, weights=mask[self._units], minlength=2 * len(self._fixed))
        outputs, inputs = (self._fixed + counts.reshape(-1, 2)).T
        weights = self._weight * outputs * inputs
        return Cost(round((weights + self._bias * outputs).sum()), round((weights * self._positions).sum()))

    def reductions(self, mask: np.ndarray) -> tuple[float, float]:
        """Fractions of parameters and of MACs removed under ``mask``."""
        cost = self(mask)
        return 1 - cost.parameters / self.baseline.parameters, 1 - cost.macs / max(self.baseline.macs, 1)


def _row(
    module: nn.Module, out_units: np.ndarray | None, in_units: np.ndarray | None, positions: int
) -> tuple[float, float, float, float, float]:
    """Always-kept outputs and inputs of a module, and its cost factors."""

    def fixed(units: np.ndarray | None, channels: int) -> int:
        return channels if units is None else int((units < 0).sum())

    if isinstance(module, nn.Conv2d):
        bias = float(module.bias is not None)
        if module.groups == module.in_channels == module.out_channels and module.groups > 1:
            return fixed(out_units, module.out_channels), 1, module.weight[0].numel(), bias, positions
        weight = module.kernel_size[0] * module.kernel_size[1] / module.groups
        return fixed(out_units, module.out_channels), fixed(in_units, module.in_channels), weight, bias, positions
    if isinstance(module, nn.Linear):
        bias = float(module.bias is not None)
        return fixed(out_units, module.out_features), fixed(in_units, module.in_features), 1, bias, positions
    per_channel = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    channels = 0 if out_units is None else len(out_units)
    return fixed(out_units, channels), 1, 0, per_channel / channels, 0


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
