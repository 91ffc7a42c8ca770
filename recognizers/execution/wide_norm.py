"""Batch norms in training mode on CPUs, as fast for few channels as for many.

PyTorch's kernels for channels-last tensors run along the channels of one pixel. A compact network has layers of, say,
six channels, which fill less than half of a vector, and there they are up to thirty times slower. Pixels that lie side
by side in memory can be taken for one pixel of a multiple of the channels. Statistics of these are then averaged.

What is left between the passes over features is a few numbers of each channel: of a small layer every operation on
them takes as long as a pass, so they are chosen for being few and cheap.
"""

from __future__ import annotations

import functools
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
    if torch.is_grad_enabled():
        return _Normalise.apply(features, weight, bias, eps)  # type: ignore[no-any-return,no-untyped-call]
    return _normalised(features, torch.empty_like(features), weight, bias, eps)[:3]


def normalise_in_place(norm: nn.BatchNorm2d, features: Tensor) -> Tensor:
    """What ``norm`` makes of features that nobody else needs, in their memory where it can; without gradients."""
    if not (norm.training and _is_fast(features)):
        return norm(features)  # type: ignore[no-any-return]
    result, mean, variance, _ = _normalised(features, features, *_affine(norm), norm.eps)
    _track(norm, mean, variance, features.numel() // features.shape[1])
    return result


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        result, mean, variance, scale = _normalised(features, torch.empty_like(features), weight, bias, eps)
        ctx.save_for_backward(features, mean, variance, scale)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return result, mean, variance

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, gradient: Tensor, mean_gradient: Tensor, variance_gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        features, mean, variance, scale = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        pixels = _pixels(features)
        wide, wide_gradient = join_pixels(features, pixels), join_pixels(gradient, pixels)
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            *(wide_gradient, wide, None, _repeated(mean, pixels), _repeated(variance, pixels)),
            *(None, None, False, ctx.eps, [False, True, True]),
        )
        weight_gradient, bias_gradient = (part.view(pixels, -1).sum(0) for part in sums)
        # d features = scale * (gradient - its mean - normalised features * mean of (gradient * normalised features))
        factor = scale * (-features.shape[1] / features.numel())
        slope = factor * weight_gradient * (variance + ctx.eps).rsqrt_()
        shift = torch.addcmul(factor * bias_gradient, slope, mean, value=-1)
        result = torch.empty_like(features)
        wide_result = _scale(wide, join_pixels(result, pixels), slope, shift, pixels)
        wide_result += _scale(wide_gradient, torch.empty_like(wide), scale, None, pixels)
        return result, weight_gradient, bias_gradient, None


def _normalised(
    features: Tensor, result: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write into ``result``, which may be ``features``; return it, mean, variance, and what scales the features."""
    pixels = _pixels(features)
    wide = join_pixels(features, pixels)
    _, _, unused_mean, unused_variance = _constants(wide.shape[1], weight.dtype)
    # Running statistics in float32, which nobody looks at, make it return float32 ones of bfloat16 features, too.
    means, variances = torch.batch_norm_update_stats(wide, unused_mean, unused_variance, 0.0)
    means, variances = means.view(pixels, -1), variances.view(pixels, -1)
    # The variance of all is the mean variance of the parts and the variance of their means.
    variance, mean = torch.var_mean(means, 0, correction=0)
    variance += variances.mean(0)
    scale = weight * (variance + eps).rsqrt_()
    _scale(wide, join_pixels(result, pixels), scale, torch.addcmul(bias, mean, scale, value=-1), pixels)
    return result, mean, variance, scale


def _forward(norm: nn.BatchNorm2d, features: Tensor) -> Tensor:
    if not (norm.training and _is_fast(features)):
        return nn.BatchNorm2d.forward(norm, features)
    result, mean, variance = normalise(features, *_affine(norm), norm.eps)
    _track(norm, mean, variance, features.numel() // features.shape[1])
    return result


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    assert norm.running_mean is not None
    weight = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight
    return weight, torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Bring the running statistics up to date with those of ``count`` values of each channel."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    batches = norm.num_batches_tracked.add_(1)
    momentum = 1 / batches.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), momentum)


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


def _scale(wide: Tensor, result: Tensor, scale: Tensor, shift: Tensor | None, pixels: int) -> Tensor:
    """``scale * features + shift``, channel by channel, into ``result``, which may be ``wide``."""
    zeros, ones, *unused = _constants(wide.shape[1], scale.dtype)
    parts = _repeated(scale, pixels), zeros if shift is None else _repeated(shift, pixels)
    torch.native_batch_norm(wide, *parts, zeros, ones, False, 0.0, 0.0, out=(result, *unused))
    return result


def _repeated(part: Tensor, times: int) -> Tensor:
    """``[C]`` that many times over."""
    return torch.cat([part] * times)  # far cheaper than repeat()


@functools.cache
def _constants(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Zeros, ones, and two to be written to and never read."""
    with torch.inference_mode(False), torch.no_grad():
        zeros = torch.zeros(width, dtype=dtype)
        return zeros, torch.ones_like(zeros), torch.zeros_like(zeros), torch.zeros_like(zeros)
