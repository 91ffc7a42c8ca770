"""Checks that slicing means the same as masking."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.compaction import compact
from recognizers.units import Layer, UnitTable
from recognizers.zero_out import insert_zero_outs, set_mask


def sound_layers(network: nn.Module, table: UnitTable, example: Tensor) -> tuple[set[str], dict[str, str]]:
    """Sort the layers of a candidate table into sound ones and faulty ones.

    Half of the units of a set of layers are removed, and the sliced network is compared with the masked one. A set
    that fails is halved until the faulty layers are found, so a network without faults costs one comparison.

    Returns:
        The names of the sound layers, and the reason for each other one.
    """
    # float64 on the CPU: what slicing may change then is far above rounding, on every machine.
    masked, example = copy.deepcopy(network).cpu().double().eval(), example.cpu().double()
    _randomise_statistics(masked)
    plain = copy.deepcopy(masked)
    insert_zero_outs(masked, table)
    generator = np.random.default_rng(0)
    faults: dict[str, str] = {}

    def search(layers: tuple[Layer, ...]) -> None:
        fault = _difference(masked, plain, table, layers, example, generator)
        if fault and len(layers) == 1:
            faults[layers[0].name] = fault
        elif fault:
            search(layers[: len(layers) // 2])
            search(layers[len(layers) // 2 :])

    for layer in table.layers:
        if len(layer) == 1:
            faults[layer.name] = "it has a single unit, which must stay"
    # Each search draws other units, so what is left is searched again until nothing is found.
    remaining = tuple(layer for layer in table.layers if layer.name not in faults)
    while remaining:
        found = len(faults)
        search(remaining)
        remaining = tuple(layer for layer in remaining if layer.name not in faults)
        if len(faults) == found:
            break
    return {layer.name for layer in remaining}, faults


def _difference(
    masked: nn.Module,
    plain: nn.Module,
    table: UnitTable,
    layers: tuple[Layer, ...],
    example: Tensor,
    generator: np.random.Generator,
) -> str:
    """Empty where masked and sliced network agree with half of the units of ``layers`` removed, else the reason."""
    mask = np.ones(table.n_units, dtype=np.int8)
    for layer in layers:
        mask[generator.choice(layer.units, size=len(layer) // 2, replace=False)] = 0
    set_mask(masked, mask)
    with torch.no_grad():
        expected = masked(example)
        try:
            actual = compact(plain, table, mask)(example)
        except (RuntimeError, ValueError, IndexError) as error:
            return f"padding or other forward code fixes its channel count ({str(error).splitlines()[0]})"
    if actual.shape == expected.shape and torch.allclose(
        actual, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max())
    ):
        return ""
    return "the sliced network does not compute what the masked one does: its channels are mixed or reordered"


def _randomise_statistics(network: nn.Module) -> None:
    """Give batch norms statistics that tell channels apart; those of a fresh network would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            shape = module.running_mean.shape
            module.running_mean += 0.1 * module.running_var.sqrt() * torch.randn(shape, generator=generator)
            module.running_var *= 0.5 + torch.rand(shape, generator=generator)
