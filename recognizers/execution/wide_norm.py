"""Batch norms in training mode on CPUs, as fast for few channels as for many.

PyTorch's kernels for channels-last tensors run along the channels of one pixel. A compact network has layers of, say,
six channels, which fill less than half of a vector, and there they are up to thirty times slower. Pixels that lie side
by side in memory can be taken for one pixel of a multiple of the channels. Statistics of these are then averaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recognizers.execution.forward import lent_forward
from recognizers.execution.reshaping import join_pixels

WIDE = 128
"""Channels from which on the kernels are at full speed."""


def wide_norms(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Within, batch norms among ``modules`` take the fast way where there is one; what they compute stays the same.

    Gradients of gradients are not available within.
    """
    chosen = [norm for norm in modules if type(norm) is nn.BatchNorm2d and norm.running_mean is not None]
    return lent_forward(chosen, _forward)


def normalise(features: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise a batch by its own statistics.

    Args:
        features: ``[N, C, H, W]``, channels last, on the CPU.
        weight: ``[C]``, scale of the result.
        bias: ``[C]``, its mean.
        eps: added to the variances.

    Returns:
        The result, shaped like ``features``; the mean, and the (biased) variance of each channel, ``[C]``, both
        without gradients.
    """
    # Through autograd only where it has something to do: a narrow network's layers take no longer than its detours.
    way = _Normalise.apply if torch.is_grad_enabled() else _normalised
    return way(features, weight, bias, eps)  # type: ignore[no-any-return,no-untyped-call]


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        result, mean, variance = _normalised(features, weight, bias, eps)
        ctx.save_for_backward(features, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return result, mean, variance

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, gradient: Tensor, mean_gradient: Tensor, variance_gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        features, weight, mean, variance = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        pixels = _pixels(features)
        wide = _repeated(pixels, weight, mean, variance)
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            *(join_pixels(gradient, pixels), join_pixels(features, pixels)),
            *(*wide, None, None, False, ctx.eps, [False, True, True]),
        )
        weight_gradient, bias_gradient = torch.stack(sums).view(2, pixels, -1).sum(1)
        # d features = scale * (gradient - its mean - normalised features * mean of (gradient * normalised features))
        count = features.numel() // features.shape[1]
        deviation = (variance + ctx.eps).rsqrt()
        scale = weight * deviation
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        factor = scale / -count
        result = _affine(gradient, pixels, scale, factor * bias_gradient, zero, one, 0.0)
        result += _affine(features, pixels, factor * deviation * weight_gradient, zero, mean, one, 0.0)
        return result, weight_gradient, bias_gradient, None


def _normalised(features: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    pixels = _pixels(features)
    wide = join_pixels(features, pixels)
    # Running statistics in float32, which nobody looks at, make it return float32 ones of bfloat16 features, too.
    unused = [weight.new_empty(wide.shape[1]) for _ in range(2)]
    means, variances = torch.batch_norm_update_stats(wide, unused[0], unused[1], 0.0)
    means, variances = means.view(pixels, -1), variances.view(pixels, -1)
    # The variance of all is the mean variance of the parts and the variance of their means.
    variance, mean = torch.var_mean(means, 0, correction=0)
    variance += variances.mean(0)
    return _affine(features, pixels, weight, bias, mean, variance, eps), mean, variance


def _forward(norm: nn.BatchNorm2d, features: Tensor) -> Tensor:
    if not (norm.training and _is_fast(features)):
        return nn.BatchNorm2d.forward(norm, features)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    weight = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight
    bias = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    result, mean, variance = normalise(features, weight, bias, norm.eps)
    with torch.no_grad():
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        count = features.numel() // features.shape[1]
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), momentum)
    return result


def _is_fast(features: Tensor) -> bool:
    return (
        features.device.type == "cpu"
        and features.dim() == 4
        and features.numel() > features.shape[1] > 0  # else PyTorch's own error
        and features.is_contiguous(memory_format=torch.channels_last)
    )


def _pixels(features: Tensor) -> int:
    """How many pixels to take for one: a power of 2 that divides the width."""
    _, channels, _, width = features.shape
    pixels = 1
    while pixels * channels < WIDE and width % (2 * pixels) == 0:
        pixels *= 2
    return pixels


def _affine(
    features: Tensor, pixels: int, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """``(features - mean) / sqrt(variance + eps) * weight + bias``, channel by channel."""
    wide = join_pixels(features, pixels)
    weight, bias, mean, variance = _repeated(pixels, weight, bias, mean, variance)
    result = torch.batch_norm(wide, weight, bias, mean, variance, False, 0.0, eps, False)
    # The same memory as a tensor of its own: autograd refuses to let views made within a function be overwritten.
    _, channels, height, width = features.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return result.new_empty(0).set_(result.untyped_storage(), 0, features.shape, strides)


def _repeated(times: int, *parts: Tensor) -> Tensor:
    """Each of the parts, ``[C]``, that many times over, ``[parts, times * C]``."""
    # Far cheaper than repeat(); of a single channel reshape() alone would hand on strides of 0.
    return torch.stack(parts)[:, None].expand(-1, times, -1).reshape(len(parts), -1).contiguous()
