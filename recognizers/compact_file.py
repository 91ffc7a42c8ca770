"""Saving a compact network, and building it again from its file alone."""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recognizers.blueprint import Blueprint
from recognizers.compaction import count_channels
from recognizers.errors import WeightsError, in_one_line
from recognizers.files import read_tensors, write_tensors
from recognizers.units import is_depthwise


def save_compact(path: str | os.PathLike[str], network: nn.Module, blueprint: Blueprint) -> None:
    """Write a compact network atomically as safetensors, with the blueprint of the complete network it came from."""
    write_tensors(path, network.state_dict(), {"format": "zeroout-compact", **blueprint.to_metadata()})


def load_compact(path: str | os.PathLike[str]) -> nn.Module:
    """Build a compact network from its file: a plain module in evaluation mode.

    Raises:
        FileError: missing or corrupt.
        WeightsError: not a compact network's file, or its tensors do not fit its architecture.
    """
    state, metadata = read_tensors(path)
    if metadata.get("format") != "zeroout-compact":
        raise WeightsError(f"{path} is a safetensors file, but not a compact network's")
    blueprint = Blueprint.from_metadata(metadata, str(path))
    network = shaped(blueprint, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit {blueprint.architecture}: {in_one_line(error, 300)}") from error
    return network.eval()


def shaped(blueprint: Blueprint, state: Mapping[str, Tensor]) -> nn.Module:
    """The network of a blueprint, as narrow as a state dict says, ready to load it."""
    network = blueprint.create()
    shape_like(network, {name: tensor.shape for name, tensor in state.items()})
    return network


def shape_like(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the modules of a complete ``network`` the shapes of named tensors, and the channel counts that go with them.

    Where a tensor's shape changes, its values are lost.
    """
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tuple(shapes.get(prefix + name, tensor.shape)) == tuple(tensor.shape):
                continue
            empty = torch.empty(tuple(shapes[prefix + name]), dtype=tensor.dtype)
            setattr(module, name, nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty)
        count_channels(module, depthwise=is_depthwise(module))
