"""Max pooling for inference on CPUs, as maxima of whole tensors.

PyTorch's own notes where each maximum was, which only gradients need, and takes up to seven times as long; of few
channels twenty times.
"""

import functools
from typing import TypeGuard

import torch
from torch import Tensor, nn

from recognizers.execution.pairing import pooled

_Pair = tuple[int, int]


class MaximumPool(nn.Module):
    """What a max pooling of :func:`is_plain_pool` computes.

    Args:
        pool: the max pooling.
        rectified: whether it reads what a ReLU has written.
        width: columns of a single image, where its input may come in pairs of images
            (see :mod:`recognizers.execution.pairing`).
    """

    def __init__(self, pool: nn.MaxPool2d, *, rectified: bool, width: int | None = None) -> None:
        super().__init__()
        self._width = width
        self._pool, self._rectified = (pool,), rectified  # in a tuple, so that it is not registered as a submodule
        self._kernel, self._stride = _pair(pool.kernel_size), _pair(pool.stride)

    @property
    def takes_pairs(self) -> bool:
        """Whether it knows the width of a single image."""
        return self._width is not None

    def forward(self, features: Tensor) -> Tensor:
        """Pool ``[N, C, H, W]``."""
        return pooled(self._pooled, features, self._width)

    def _pooled(self, features: Tensor) -> Tensor:
        (pool,) = self._pool
        if features.device.type != "cpu" or features.dim() != 4 or not self._fits(features):
            return pool(features)  # type: ignore[no-any-return]
        if features.dtype != torch.bfloat16:
            return self._maxima(features)
        # PyTorch compares bfloat16 by way of float32. From zero on, integers of the same bits are in the same order.
        return self._maxima(features.view(torch.int16)).view(torch.bfloat16) if self._rectified else pool(features)

    def _fits(self, features: Tensor) -> bool:
        """Whether the kernel fits into the maps."""
        return all(length >= taps for length, taps in zip(features.shape[2:], self._kernel, strict=True))

    def _maxima(self, features: Tensor) -> Tensor:
        for axis, taps, step in zip((2, 3), self._kernel, self._stride, strict=True):
            reach = (features.shape[axis] - taps) // step * step + 1
            shifted = (_slice(features, axis, tap, tap + reach, step) for tap in range(taps))
            features = functools.reduce(torch.maximum, shifted)
        return features


def is_plain_pool(module: nn.Module) -> TypeGuard[nn.MaxPool2d]:
    """Whether a module is a max pooling without padding or dilation."""
    return (
        type(module) is nn.MaxPool2d
        and _pair(module.padding) == (0, 0)
        and _pair(module.dilation) == (1, 1)
        and not (module.ceil_mode or module.return_indices)
    )


def _pair(setting: int | _Pair) -> _Pair:
    return setting if isinstance(setting, tuple) else (setting, setting)


def _slice(features: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    return features[(slice(None),) * axis + (slice(start, stop, step),)]
