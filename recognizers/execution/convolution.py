"""Convolutions for inference, with what follows them in one pass over memory."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from recognizers.execution.pairing import images_of, paired_geometry
from recognizers.execution.reshaping import (
    Size,
    is_linear_faster,
    joined,
    linear_map,
    rows_to_join,
    split_rows,
)

Convolve = Callable[[Tensor, Tensor | None, bool], Tensor]
"""From features, what is to be added to the result, if anything, and whether the result may overwrite that."""


class FusedConvolution(nn.Module):
    """A convolution with what follows it: batch norm folded into its weights, a sum with another tensor, ReLU.

    On CPUs oneDNN does the sum and the ReLU while the convolution's result is still in the cache. The sum takes the
    place of the other tensor, or of a copy: oneDNN is slow at reading one that lies elsewhere. Weights are folded in
    float32 and rounded once. Where another shape takes less time (see :mod:`recognizers.execution.reshaping`), the
    convolution is computed in that.

    Args:
        convolution: whose tensors are read again when they changed.
        norm: the batch norm behind it, likewise.
        relu: whether a ReLU ends it.
        version: changes whenever a tensor of either module does.
        dtype: to compute in.
        width: columns of a single image, where its input may come in pairs of images
            (see :mod:`recognizers.execution.pairing`).
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        norm: nn.BatchNorm2d | None,
        *,
        relu: bool,
        version: Callable[[], object],
        dtype: torch.dtype,
        width: int | None = None,
    ) -> None:
        super().__init__()
        # In a tuple, so that they are not registered as submodules of this module.
        self._read = (convolution, norm)
        self._relu, self._current, self._dtype, self._width = relu, version, dtype, width
        self._convolve: Convolve | None = None
        self._prepared: object = None

    @property
    def convolution(self) -> nn.Conv2d:
        """The convolution that it computes."""
        return self._read[0]

    def forward(self, features: Tensor, other: Tensor | None = None, disposable: bool = False) -> Tensor:
        """Convolve ``features``, ``[N, C, H, W]``, and add ``other``, shaped like the result.

        Args:
            features: to convolve.
            other: to add.
            disposable: whether ``other`` may be overwritten.
        """
        features = features.to(self._dtype)
        state = (self._current(), features.shape[1:], runs_on_onednn(features))
        if self._convolve is None or self._prepared != state:
            self._convolve, self._prepared = self._prepare(features, sums=other is not None), state
        return self._convolve(features, None if other is None else other.to(self._dtype), disposable)

    @torch.no_grad()
    def _prepare(self, features: Tensor, *, sums: bool) -> Convolve:
        convolution, norm = self._read
        weight, bias = (convolution.weight, convolution.bias) if norm is None else folded(convolution, norm)
        weight, bias = weight.detach().to(self._dtype), None if bias is None else bias.detach()
        images = images_of(features, self._width)
        size = features.shape[2], features.shape[3] // images
        if not runs_on_onednn(features):
            return self._plain(weight, bias, images)
        if is_linear_faster(convolution, size):
            return self._linear(weight, bias, size)
        if bias is not None and sums:  # only oneDNN's plain convolution takes a bias in float32
            bias = bias.to(self._dtype)
        rows = 1 if sums else rows_to_join(convolution, size, lanes(self._dtype))
        return self._fused(weight, bias, features, images, rows)

    def _plain(self, weight: Tensor, bias: Tensor | None, images: int) -> Convolve:
        """By PyTorch's operations."""
        weight = weight.contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.to(self._dtype)
        padding, stride, dilation, groups = paired_geometry(self.convolution, images)

        def convolve(features: Tensor, other: Tensor | None, disposable: bool) -> Tensor:
            return self._finished(functional.conv2d(features, weight, bias, stride, padding, dilation, groups), other)

        return convolve

    def _linear(self, weight: Tensor, bias: Tensor | None, size: Size) -> Convolve:
        """As a product of matrices."""
        product = linear_map(self.convolution, weight, None if bias is None else bias.to(self._dtype), size)

        def convolve(features: Tensor, other: Tensor | None, disposable: bool) -> Tensor:
            return self._finished(product(features), other)

        return convolve

    def _fused(self, weight: Tensor, bias: Tensor | None, features: Tensor, images: int, rows: int) -> Convolve:
        """By oneDNN, ``images`` images side by side, ``rows`` rows as one."""
        padding, (step, along), dilation, groups = paired_geometry(self.convolution, images)
        if rows > 1:
            weight = joined(weight, stride=step, rows=rows)
            bias = None if bias is None else bias.repeat(rows)
        geometry = (padding, (step * rows, along), dilation, groups)
        weight = weight.contiguous(memory_format=torch.channels_last)
        weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(features.shape))
        apart, onto = torch.ops.mkldnn._convolution_pointwise, torch.ops.mkldnn._convolution_pointwise_.binary
        relu = "relu" if self._relu else None

        def convolve(features: Tensor, other: Tensor | None, disposable: bool) -> Tensor:
            if other is None:
                result = apart(features, weight, bias, *geometry, relu or "none", [], None)
                return result if rows == 1 else split_rows(result, rows)
            if not (disposable and other.is_contiguous(memory_format=torch.channels_last)):
                other = other.clone(memory_format=torch.channels_last)
            onto(other, features, weight, bias, *geometry, "add", 1.0, relu, [], None)
            return other

        return convolve

    def _finished(self, result: Tensor, other: Tensor | None) -> Tensor:
        result = result if other is None else result + other
        return result.relu_() if self._relu else result


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals a convolution with a batch norm in evaluation mode behind it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else norm.bias + shift * scale
    return convolution.weight * scale[:, None, None, None], bias


def runs_on_onednn(features: Tensor) -> bool:
    """Whether oneDNN's fused operations take these features."""
    onednn = torch.backends.mkldnn
    if features.device.type != "cpu" or not (onednn.is_available() and onednn.enabled):
        return False
    # Without vectors of 512 bits its fused operations refuse bfloat16; PyTorch's own are slow there, but work.
    return features.dtype == torch.float32 or (features.dtype == torch.bfloat16 and _onednn_takes_bfloat16())


@functools.cache
def _onednn_takes_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def lanes(dtype: torch.dtype) -> int:
    """Outputs that a vector holds, by which a convolution takes time: it sums in float32.

    1 where nothing is known of vectors: of other processors, and of AMX, which multiplies tiles of pixels and outputs.
    """
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return 1
    return 16 if torch.cpu._is_avx512_supported() else 8 if torch.cpu._is_avx2_supported() else 1
