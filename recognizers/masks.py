"""Mask files: which units are kept, of which network, and what came of it."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from recognizers.errors import FileError, MaskError, first_fault
from recognizers.files import read_tensors, write_tensors
from recognizers.units import UnitTable

SCHEMA_VERSION = "1"


class MaskMetadata(BaseModel):
    """What a mask file says about its mask. Accuracies and reductions are fractions; validation is the reward split."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    architecture: str
    task: str
    base_sha256: str
    policy: str
    seed: int
    baseline_validation_accuracy: float
    validation_accuracy: float
    parameter_reduction: float
    macs_reduction: float


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_mask(path: str | os.PathLike[str], table: UnitTable, mask: np.ndarray, metadata: MaskMetadata) -> None:
    """Write ``mask`` (``[n_units]``, 1 kept): one uint8 tensor per prunable layer under its module path.

    Raises:
        FileError: the file cannot be written; an older one stays as it was.
    """
    tensors = {layer.name: torch.from_numpy(mask[layer.start : layer.stop].astype(np.uint8)) for layer in table.layers}
    texts = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.model_dump().items()
    }
    write_tensors(path, tensors, {"format": "zeroout-mask", "schema_version": SCHEMA_VERSION, **texts})


def load_mask(path: str | os.PathLike[str], table: UnitTable, base_sha256: str) -> tuple[np.ndarray, MaskMetadata]:
    """Read a mask for the network with this unit table and these base weights.

    Returns:
        The mask, ``[n_units]`` int8, 1 kept; and the file's metadata.

    Raises:
        FileError: missing, truncated or corrupt.
        MaskError: not a mask file, or a mask of another network or other base weights.
    """
    tensors, texts = read_tensors(path)
    metadata = _metadata(path, texts)
    if metadata.base_sha256 != base_sha256:
        raise MaskError(
            f"{path} was made for other base weights (task {metadata.task}, architecture {metadata.architecture}, "
            f"SHA-256 {metadata.base_sha256[:12]}...; the loaded weights have {base_sha256[:12]}...): "
            "pass the weights the mask was made with (--weights)"
        )
    sizes = {layer.name: len(layer) for layer in table.layers}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != {
        name: (size,) for name, size in sizes.items()
    }:
        raise MaskError(f"{path} does not fit the network: its layers and their sizes differ from the unit table's")
    if any(tensor.dtype != torch.uint8 for tensor in tensors.values()):
        raise MaskError(f"{path}: masks are uint8 tensors")
    mask = np.concatenate([tensors[layer.name].numpy() for layer in table.layers]).astype(np.int8)
    check_mask(mask, table, str(path))
    return mask, metadata


def check_mask(mask: np.ndarray, table: UnitTable, source: str = "mask") -> None:
    """Refuse a mask of the wrong shape, with values other than 0 and 1, or that empties a layer.

    Raises:
        MaskError: it is one of these.
    """
    if mask.shape != (table.n_units,):
        raise MaskError(f"{source}: shape {mask.shape}, but the network has {table.n_units} units")
    if not np.isin(mask, (0, 1)).all():
        raise MaskError(f"{source}: values other than 0 (zeroed out) and 1 (kept)")
    for layer in table.layers:
        if not mask[layer.start : layer.stop].any():
            raise MaskError(f"{source}: layer {layer.name!r} would lose its last unit; every layer keeps at least one")


def _metadata(path: str | os.PathLike[str], texts: Mapping[str, str]) -> MaskMetadata:
    if texts.get("format") != "zeroout-mask":
        raise MaskError(f"{path} is a safetensors file, but not a zeroout mask")
    if texts.get("schema_version") != SCHEMA_VERSION:
        raise MaskError(
            f"{path} has mask schema version {texts.get('schema_version')!r}; this zeroout reads {SCHEMA_VERSION!r}"
        )
    values: dict[str, Any] = {key: texts[key] for key in MaskMetadata.model_fields if key in texts}
    try:
        return MaskMetadata.model_validate_strings(values)
    except ValidationError as error:
        raise FileError(f"{path} has unusable metadata: {first_fault(error)}") from error
