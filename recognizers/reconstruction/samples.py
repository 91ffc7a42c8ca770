"""Samples of a layer's inputs and outputs at random positions of its feature maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def positions(outputs: torch.Size, per_image: int, generator: torch.Generator) -> Tensor:
    """Random positions of feature maps.

    Args:
        outputs: shape of a layer's outputs, ``[N, C, H, W]`` or ``[N, C]``.
        per_image: how many; all positions where there are no more than that.
        generator: draws them, with replacement.

    Returns:
        Index into the flattened map, ``[N, P]`` int64.
    """
    images, places = outputs[0], math.prod(outputs[2:])
    if places <= per_image:
        return torch.arange(places).expand(images, -1)
    return torch.randint(places, (images, per_image), generator=generator)


def sampled_outputs(outputs: Tensor, places: Tensor) -> Tensor:
    """Values at positions ``[N, P]`` of ``[N, C, H, W]`` (or ``[N, C]``), as ``[N * P, C]`` float32."""
    if outputs.dim() == 2:
        return outputs.float()
    maps = outputs.permute(0, 2, 3, 1).flatten(1, 2)  # [N, HW, C]
    index = places[..., None].expand(-1, -1, maps.shape[2])
    return maps.gather(1, index).flatten(0, 1).float()


def sampled_inputs(layer: nn.Conv2d | nn.Linear, inputs: Tensor, places: Tensor) -> Tensor:
    """What a layer reads to compute its output at positions.

    Args:
        layer: a convolution with zero padding, or a linear layer.
        inputs: ``[N, C, H, W]``, or ``[N, C]`` of a linear layer.
        places: positions in the output, ``[N, P]`` int64.

    Returns:
        ``[N * P, C * kh * kw]`` float32, in the order of ``layer.weight[0].flatten()`` (of all groups together).
    """
    if isinstance(layer, nn.Linear):
        return inputs.float()
    (kernel_h, kernel_w), (stride_h, stride_w) = layer.kernel_size, layer.stride
    (dilation_h, dilation_w), (pad_h, pad_w) = layer.dilation, padding(layer)
    channels = inputs.shape[1]
    padded = functional.pad(inputs, (*pad_w, *pad_h)).permute(0, 2, 3, 1)  # [N, H', W', C]
    height, width = padded.shape[1:3]
    columns = (width - dilation_w * (kernel_w - 1) - 1) // stride_w + 1  # of the output
    top, left = places // columns * stride_h, places % columns * stride_w  # [N, P]
    down = torch.arange(kernel_h).repeat_interleave(kernel_w) * dilation_h  # [kk]
    right = torch.arange(kernel_w).repeat(kernel_h) * dilation_w
    first = torch.arange(len(inputs))[:, None] * (height * width)  # [N, 1]
    start = first + top * width + left  # [N, P]
    rows = start.flatten()[:, None] + (down * width + right)  # [N * P, kk]
    patches = padded.reshape(-1, channels)[rows.to(inputs.device)]  # [N * P, kk, C]
    return patches.transpose(1, 2).flatten(1).float()


def padding(layer: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros around the input: (top, bottom), (left, right)."""
    if layer.padding == "valid":
        return (0, 0), (0, 0)
    if layer.padding == "same":
        total = [size * (kernel - 1) for size, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    assert not isinstance(layer.padding, str)
    pad_h, pad_w = layer.padding
    return (pad_h, pad_h), (pad_w, pad_w)
