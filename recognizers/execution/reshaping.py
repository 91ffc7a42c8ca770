"""Convolutions in other shapes, which compute the same in less time.

- Of a map of 2 x 2 pixels a convolution of 3 x 3 multiplies more padding than pixels, and oneDNN hands its threads few
  pixels at a time. There it is a linear map from all pixels to all pixels, and a product of matrices is several times
  faster.
- oneDNN computes the outputs of a pixel in vectors of 16 (AVX-512) or 8 (AVX2), so that 2 filters take as long as 16.
  Where a network has been pruned to few, the same pixels of neighbouring rows are computed as one with several times
  the filters; the higher kernel has zeros, and the result has to be copied, which is little, as the filters are few.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recognizers.execution.forward import lent_forward

Size = tuple[int, int]

_GAIN = 0.8
"""Share of the products at which it is worthwhile to join rows."""
_WORDS = (torch.complex128, torch.int64, torch.int32, torch.int16)
"""Types to copy as: of 16, 8, 4 and 2 bytes."""


def output_size(size: Size, taps: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Size:
    """Height and width of what a convolution, not dilated, makes of maps of this height and width."""
    height, width = (
        (length + 2 * pad - reach) // step + 1
        for length, reach, step, pad in zip(size, taps, stride, padding, strict=True)
    )
    return height, width


def is_linear_faster(convolution: nn.Conv2d, size: Size) -> bool:
    """Whether maps of this height and width are so small that :func:`as_linear` takes at most half of the products.

    Args:
        convolution: any.
        size: of its input.
    """
    return is_regular(convolution) and 2 * math.prod(size) <= math.prod(convolution.kernel_size)


def as_linear(weight: Tensor, *, stride: Size, padding: Size, size: Size) -> Tensor:
    """The linear map that a convolution is on maps of one size.

    Args:
        weight: ``[K, C, R, S]``.
        stride: of the convolution.
        padding: of it, with zeros.
        size: height H and width W of its input.

    Returns:
        ``[H' * W' * K, H * W * C]``, pixel by pixel, row by row; the output has H' x W' pixels.
    """
    taps = weight.shape[2:]
    height, width = output_size(size, taps, stride, padding)
    # Zeros on all sides, as far as the input lies beyond the kernel at the first and at the last output.
    top, left = (
        max(0, step * (count - 1) - pad) for step, count, pad in zip(stride, (height, width), padding, strict=True)
    )
    bottom, right = (max(0, length + pad - reach) for length, pad, reach in zip(size, padding, taps, strict=True))
    wide = functional.pad(weight.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom))  # [K, R', S', C]
    rows = [top + padding[0] - stride[0] * row for row in range(height)]
    columns = [left + padding[1] - stride[1] * column for column in range(width)]
    blocks = [wide[:, row : row + size[0], column : column + size[1]] for row in rows for column in columns]
    return torch.cat(blocks).flatten(1)


def rows_to_join(convolution: nn.Conv2d, size: Size, lanes: int) -> int:
    """How many rows of its output a convolution should compute as one: 1, 2 or 4.

    Args:
        convolution: any.
        size: of its input.
        lanes: outputs that are computed in one vector; with 1 no rows are worth joining.
    """
    if not is_regular(convolution):
        return 1
    filters, taps, step = convolution.weight.shape[0], convolution.kernel_size[0], convolution.stride[0]
    height, _ = output_size(size, convolution.kernel_size, convolution.stride, cast(Size, convolution.padding))

    def products(rows: int) -> float:
        return math.ceil(rows * filters / lanes) * (taps + step * (rows - 1)) / rows

    best = min((rows for rows in (2, 4) if height % rows == 0), key=products, default=1)
    return best if products(best) <= _GAIN * products(1) else 1


def joined(weight: Tensor, *, stride: int, rows: int) -> Tensor:
    """The weight of the convolution that computes ``rows`` neighbouring rows as one.

    Args:
        weight: ``[K, C, R, S]``.
        stride: of the convolution along columns; that of the result is ``rows`` times as large.
        rows: P, at least 1.

    Returns:
        ``[P * K, C, R + stride * (P - 1), S]``.
    """
    parts = [functional.pad(weight, (0, 0, stride * row, stride * (rows - 1 - row))) for row in range(rows)]
    return torch.cat(parts)


def split_rows(features: Tensor, rows: int) -> Tensor:
    """``[N, rows * K, H / rows, W]`` as ``[N, K, H, W]``, channels last: what was computed as one row as rows again."""
    count, channels, height, width = features.shape
    filters = channels // rows
    numbers = features.permute(0, 2, 3, 1).reshape(-1)
    word = next(word for word in _WORDS if filters * features.element_size() % word.itemsize == 0)
    # In long words, as PyTorch is slow at copying many short runs.
    words = numbers.view(word).view(count, height, width, rows, -1).transpose(2, 3).contiguous()
    return words.view(-1).view(features.dtype).view(count, height * rows, width, filters).permute(0, 3, 1, 2)


def small_maps(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Within, convolutions among ``modules`` are linear maps where that is faster; they compute the same.

    Where the channels come last, that is; those of 1 x 1 are left alone.
    """
    chosen = [module for module in modules if type(module) is nn.Conv2d and is_linear_faster(module, (1, 1))]
    return lent_forward(chosen, _forward)


def linear_map(convolution: nn.Conv2d, weight: Tensor, bias: Tensor | None, size: Size) -> Callable[[Tensor], Tensor]:
    """What a convolution does to maps of one size, as a product of matrices.

    Args:
        convolution: one that :func:`is_linear_faster` approves of.
        weight: to take for its own, ``[K, C, R, S]``.
        bias: likewise, ``[K]``.
        size: height H and width W of its input.

    Returns:
        From ``[N, C, H, W]`` to ``[N, K, H', W']``, channels last.
    """
    stride, padding = cast(Size, convolution.stride), cast(Size, convolution.padding)
    height, width = output_size(size, convolution.kernel_size, stride, padding)
    matrix = as_linear(weight, stride=stride, padding=padding, size=size)
    repeated = None if bias is None else bias.repeat(height * width)

    def apply(features: Tensor) -> Tensor:
        result = functional.linear(features.permute(0, 2, 3, 1).flatten(1), matrix, repeated)  # [N, H' * W' * K]
        return result.view(len(features), height, width, -1).permute(0, 3, 1, 2)

    return apply


def join_pixels(features: Tensor, pixels: int) -> Tensor:
    """``[N, C, H, W]`` as ``[N, pixels * C, H, W / pixels]``, a view where the channels come last."""
    count, channels, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(count, height, width // pixels, pixels * channels)
    return rows.permute(0, 3, 1, 2)


def split_pixels(features: Tensor, pixels: int) -> Tensor:
    """The other way round."""
    count, channels, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(count, height, width * pixels, channels // pixels)
    return rows.permute(0, 3, 1, 2)


def is_regular(convolution: nn.Conv2d) -> bool:
    """Whether it is one of those that the functions of this module know."""
    return (
        convolution.groups == 1
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )


def _forward(convolution: nn.Conv2d, features: Tensor) -> Tensor:
    if not _is_small_map(convolution, features):
        return nn.Conv2d.forward(convolution, features)
    size = cast(Size, tuple(features.shape[2:]))
    return linear_map(convolution, convolution.weight, convolution.bias, size)(features)


def _is_small_map(convolution: nn.Conv2d, features: Tensor) -> bool:
    return (
        features.device.type == "cpu"
        and features.dim() == 4
        and features.is_contiguous(memory_format=torch.channels_last)
        and is_linear_faster(convolution, cast(Size, tuple(features.shape[2:])))
    )
