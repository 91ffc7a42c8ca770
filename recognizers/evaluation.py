"""Running a network over images, measuring the result, and the numerical precision of both."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, get_args

import torch
from torch import nn

from recognizers.data import Normalization
from recognizers.device import is_amd_processor
from recognizers.errors import ConfigurationError, UnknownNameError

Precision = Literal["auto", "float32", "bfloat16"]


def resolve_precision(precision: Precision, device: torch.device | str) -> torch.dtype:
    """Return the type that convolutions and products compute in on a device: float32 or bfloat16.

    ``auto`` is bfloat16 where the hardware multiplies it faster than float32: CUDA from capability 8.0 (Ampere), CPUs
    with AMX, AMD's with AVX512-BF16. Intel's with AVX512-BF16 alone (a virtual machine may hide AMX) need twice
    the time of float32; elsewhere bfloat16 is emulated. Weights stay in float32 in any case.

    Raises:
        UnknownNameError: no such precision.
    """
    if precision not in get_args(Precision):
        raise UnknownNameError("precision", precision, get_args(Precision))
    if precision == "auto":
        return torch.bfloat16 if _gains_by_bfloat16(torch.device(device)) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _gains_by_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and is_amd_processor())
    return False


@contextmanager
def autocast(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Run forward passes in a precision: with autocast to bfloat16, or in float32 that is exact."""
    kind = torch.device(device).type
    bfloat16 = resolve_precision(precision, device) == torch.bfloat16
    with ExitStack() as contexts:
        if kind == "cuda" and not bfloat16:
            # By default cuDNN rounds the inputs of float32 convolutions to TF32, of 10 bits.
            contexts.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        contexts.enter_context(torch.autocast(kind, torch.bfloat16, enabled=bfloat16))
        yield


def network_device(network: nn.Module) -> torch.device:
    """Return the device of a network's first parameter (the CPU where it has none)."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


@contextmanager
def training_mode(network: nn.Module, mode: bool) -> Iterator[None]:
    """Put a network into training or evaluation mode; restore the mode of each of its modules afterwards."""
    before = [(module, module.training) for module in network.modules()]
    network.train(mode)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


def to_inputs(images: torch.Tensor, normalization: Normalization | None, precision: Precision) -> torch.Tensor:
    """Turn images [N, C, H, W] into what a network takes: normalised float32 in the faster memory layout.

    Args:
        images: uint8; with ``normalization=None`` floats that are normalised already.
        normalization: of the network.
        precision: of the forward pass to come.
    """
    inputs = images if normalization is None else normalization.normalize(images)
    # oneDNN is faster on channels-last in any precision, cuDNN in bfloat16.
    channels_last = inputs.device.type == "cpu" or resolve_precision(precision, inputs.device) == torch.bfloat16
    # Not contiguous(): for a single channel it would keep strides that make the first convolution fall back.
    return inputs.to(memory_format=torch.channels_last) if channels_last else inputs


def predict(
    network: nn.Module,
    images: torch.Tensor,
    normalization: Normalization | None,
    *,
    batch_size: int = 512,
    precision: Precision = "auto",
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Compute the logits of images in evaluation mode; the modes of the modules are restored afterwards.

    Args:
        network: any network that maps [N, C, H, W] to [N, classes].
        images: uint8 [N, C, H, W], on any device; with ``normalization=None`` floats that are normalised already.
        normalization: of the network.
        batch_size: images per forward pass.
        precision: of the forward passes.
        device: where to compute; the network is moved there. By default where the network is.

    Returns:
        Logits [N, classes] float32 on the device.

    Raises:
        ConfigurationError: the batch size is not positive.
    """
    if batch_size < 1:
        raise ConfigurationError(f"batch_size must be at least 1, got {batch_size}")
    device = network_device(network) if device is None else torch.device(device)
    network.to(device)
    with training_mode(network, False), torch.inference_mode(), autocast(precision, device):
        batches = [
            network(to_inputs(batch.to(device, non_blocking=True), normalization, precision)).float()
            for batch in images.split(batch_size)
        ]
        return torch.cat(batches)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the fraction, 0..1, of logits [N, classes] whose largest entry is at the label [N]."""
    return float((logits.argmax(1) == labels.to(logits.device)).double().mean())


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean cross-entropy, in nats, of logits [N, classes] and labels int64 [N]."""
    return float(nn.functional.cross_entropy(logits.float(), labels.to(logits.device)))
