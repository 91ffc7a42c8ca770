"""Compact weights with the kept indices of every layer, and building the network from the user's own class again."""

import copy
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from recognizers.compact_file import save_compact
from recognizers.compaction import Kept, count_channels, kept_channels, slice_tensor, tensor_indices
from recognizers.errors import FileError, WeightsError, first_fault, in_one_line
from recognizers.export.pruned import PrunedNetwork
from recognizers.files import read_json, read_tensors, write_json
from recognizers.masks import weights_sha256
from recognizers.units import is_depthwise

Network = TypeVar("Network", bound=nn.Module)


def _ascending(indices: tuple[int, ...]) -> tuple[int, ...]:
    if not indices or indices[0] < 0 or any(one >= other for one, other in itertools.pairwise(indices)):
        raise ValueError("indices are not negative, and ascend")
    return indices


Indices = Annotated[tuple[int, ...], AfterValidator(_ascending)]


class KeptChannels(BaseModel):
    """The channels of one module, by their index in the original one, that are kept; None where all are."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    outputs: Indices | None = None
    inputs: Indices | None = None


class KeptFile(BaseModel):
    """What stands beside compact weights: a JSON file of the same name."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["zeroout-kept"] = "zeroout-kept"
    schema_version: Literal[1] = 1
    architecture: str
    base_sha256: str = Field(description="of the weights that the mask was made for, complete")
    weights_sha256: str = Field(description="of the compact weights")
    mean: tuple[float, ...] = Field(description="input mean per channel, of values in 0..1")
    std: tuple[float, ...] = Field(description="input standard deviation per channel")
    modules: dict[str, KeptChannels] = Field(description="by module path; modules that keep everything are left out")


def kept_modules(pruned: PrunedNetwork) -> dict[str, KeptChannels]:
    """Kept channels of every module that loses some."""
    modules = {}
    for path, slot in pruned.table.slots.items():
        indices = [
            tuple(side.tolist()) if side is not None and units is not None and len(side) < len(units) else None
            for side, units in zip(kept_channels(slot, pruned.mask), (slot.out_units, slot.in_units), strict=True)
        ]
        if any(side is not None for side in indices):
            modules[path] = KeptChannels(outputs=indices[0], inputs=indices[1])
    return modules


def export_compact(path: str | os.PathLike[str], pruned: PrunedNetwork) -> float:
    """Write compact weights as safetensors, and the kept indices beside them as JSON.

    The weights are also what :func:`recognizers.load_compact` reads.

    Returns:
        The largest difference of its logits from the masked network's.

    Raises:
        WeightsError: what is rebuilt from them does not compute what the masked network computes; nothing was written.
        FileError: a file cannot be written.
    """
    state = pruned.compact.state_dict()
    kept = KeptFile(
        architecture=pruned.blueprint.architecture,
        base_sha256=pruned.base_sha256,
        weights_sha256=weights_sha256(state),
        mean=pruned.normalization.mean,
        std=pruned.normalization.std,
        modules=kept_modules(pruned),
    )
    difference = pruned.check_network(rebuild(pruned.complete, state, kept.modules), "the rebuilt network")
    save_compact(path, pruned.compact, pruned.blueprint)
    write_json(kept_path(path), kept.model_dump(mode="json"))
    return difference


def load_pruned(path: str | os.PathLike[str], network: Network) -> Network:
    """Build the pruned network from exported compact weights and a network of the original class.

    Raises:
        FileError: a file is missing, truncated or corrupt.
        WeightsError: weights and indices do not belong together, or belong to another architecture.
    """
    state, _ = read_tensors(path)
    kept = read_kept(kept_path(path))
    if weights_sha256(state) != kept.weights_sha256:
        raise WeightsError(f"{kept_path(path)} was written for other weights than those in {path}")
    return rebuild(network, state, kept.modules)


def kept_path(path: str | os.PathLike[str]) -> Path:
    """Where the kept indices of compact weights lie."""
    return Path(path).with_suffix(".json")


def read_kept(path: str | os.PathLike[str]) -> KeptFile:
    """Read kept indices.

    Raises:
        FileError: missing or malformed.
    """
    try:
        return KeptFile.model_validate(read_json(path))
    except ValidationError as error:
        raise FileError(f"{path} is no file of kept indices: {first_fault(error)}") from error


def rebuild(network: Network, state: Mapping[str, Tensor], kept: Mapping[str, KeptChannels]) -> Network:
    """A copy of a complete network, narrowed to the kept channels, with compact weights: in evaluation mode.

    Args:
        network: of the original class, with any weights; it stays as it is.
        state: state dict of the compact network.
        kept: by module path.

    Raises:
        WeightsError: the network is not of the architecture that was pruned.
    """
    network, name = copy.deepcopy(network), type(network).__name__
    for path, channels in kept.items():
        try:
            _narrow(network.get_submodule(path), channels)
        except (AttributeError, IndexError, RuntimeError) as error:
            raise WeightsError(f"{name} is not the network that was pruned: {path}: {error}") from error
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"the weights do not fit {name}: {in_one_line(error, 300)}") from error
    return network.eval()


def _narrow(module: nn.Module, channels: KeptChannels) -> None:
    indices: Kept = tuple(  # type: ignore[assignment]
        None if side is None else torch.tensor(side) for side in (channels.outputs, channels.inputs)
    )
    depthwise = is_depthwise(module)
    for name, parameter in list(module.named_parameters(recurse=False)):
        sliced = slice_tensor(parameter.detach(), tensor_indices(module, name, indices))
        setattr(module, name, nn.Parameter(sliced, parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, slice_tensor(buffer, tensor_indices(module, name, indices)))
    count_channels(module, depthwise=depthwise)
