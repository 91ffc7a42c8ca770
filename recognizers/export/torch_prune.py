"""The original network with the buffers of `torch.nn.utils.prune`.

That library multiplies parameters by masks. Zeroing a filter alone would not do: a batch norm or a bias behind it gives
the channel a value again. A ZeroOut sits where a channel enters its consumers, and so the consumers' input slices are
masked, which is exact whatever comes before. The filters themselves and their batch norm entries are masked as well: an
entry has a 0 exactly where the compact network does not have it, so the ones count the remaining parameters.
"""

import copy
import os
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from recognizers.compaction import kept_channels, tensor_indices
from recognizers.errors import WeightsError, in_one_line
from recognizers.export.pruned import PrunedNetwork
from recognizers.files import read_tensors, write_tensors
from recognizers.units import UnitTable

FORMAT = "zeroout-torch-prune"

_ORIGINAL, _MASK = "_orig", "_mask"  # the library's suffixes

Network = TypeVar("Network", bound=nn.Module)


def parameter_masks(network: nn.Module, table: UnitTable, mask: np.ndarray) -> dict[str, Tensor]:
    """Masks of the parameters that lose entries under ``mask`` (``[n_units]``, 1 kept), by parameter name.

    Returns:
        Tensors of the parameters' shapes and types: 1 where the compact network has the entry, 0 where not.
    """
    masks = {}
    for path, slot in table.slots.items():
        module, kept = network.get_submodule(path), kept_channels(slot, mask)
        for name, parameter in module.named_parameters(recurse=False):
            bits = torch.ones_like(parameter, requires_grad=False)
            for dimension, index in enumerate(tensor_indices(module, name, kept)):
                if index is not None:
                    gone = torch.ones(bits.shape[dimension], dtype=torch.bool)
                    gone[index] = False
                    bits.index_fill_(dimension, gone.nonzero().flatten().to(bits.device), 0)
            if not bits.all():
                masks[f"{path}.{name}" if path else name] = bits
    return masks


def export_torch_prune(path: str | os.PathLike[str], pruned: PrunedNetwork) -> float:
    """Write the complete network's state dict as `torch.nn.utils.prune` has it, as safetensors.

    A parameter ``P`` that loses entries is there as ``P_orig`` and ``P_mask``.

    Returns:
        The largest difference of its logits from the masked network's.

    Raises:
        WeightsError: it does not compute what the masked network computes; nothing was written.
        FileError: the file cannot be written.
    """
    network = copy.deepcopy(pruned.complete)
    _apply(network, parameter_masks(network, pruned.table, pruned.mask))
    difference = pruned.check_network(network, "the network with torch.nn.utils.prune buffers")
    metadata = {"format": FORMAT, **pruned.blueprint.to_metadata(), "base_sha256": pruned.base_sha256}
    write_tensors(path, network.state_dict(), metadata)
    return difference


def load_torch_prune(path: str | os.PathLike[str], network: Network) -> Network:
    """Load an exported file into a network of the original class, in place, and put the masks on.

    Raises:
        FileError: missing, truncated or corrupt.
        WeightsError: not such a file, or of another architecture.
    """
    state, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} is a safetensors file, but not one with torch.nn.utils.prune buffers")
    masks = _split_masks(state)
    plain = {name.removesuffix(_ORIGINAL) if _is_original(name, masks) else name: state[name] for name in state}
    for name, bits in masks.items():
        if bits.shape != plain[name].shape or not ((bits == 0) | (bits == 1)).all():
            raise WeightsError(f"{path}: the mask of {name} is not one of zeros and ones in the parameter's shape")
    try:
        network.load_state_dict(plain)
        _apply(network, masks)
    except (RuntimeError, AttributeError, KeyError) as error:
        reason = in_one_line(error, 300)
        raise WeightsError(f"{path} does not fit {type(network).__name__}: {reason}") from error
    return network


def _split_masks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the masks, by the names of their parameters, out of a state dict."""
    names = [name.removesuffix(_MASK) for name in state if name.endswith(_MASK)]
    return {name: state.pop(name + _MASK) for name in names if name + _ORIGINAL in state}


def _is_original(name: str, masks: Mapping[str, Tensor]) -> bool:
    return name.endswith(_ORIGINAL) and name.removesuffix(_ORIGINAL) in masks


def _apply(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    for name, bits in masks.items():
        path, _, parameter = name.rpartition(".")
        prune.custom_from_mask(network.get_submodule(path), parameter, bits)
