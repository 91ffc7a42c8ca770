"""Strided convolutions of 1 x 1 whose gradients can be trusted on CPUs.

oneDNN's gradient of their weights writes past its memory where the input is channels-last and has fewer channels than a
vector has numbers (https://github.com/uxlfoundation/oneDNN/issues/6035, with AVX2): it is wrong, or the process dies.
Narrow shortcuts of residual networks are such convolutions. If the pixels are picked first, no stride is left.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

from torch import Tensor, nn
from torch.nn import functional

from recognizers.execution.forward import lent_forward

_FEW = 16
"""Numbers in the longest vector of float32."""


def safe_strides(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Within, forward passes of such convolutions among ``modules`` can be differentiated; they compute the same."""
    chosen = [module for module in modules if type(module) is nn.Conv2d and _is_unsafe(module)]
    return lent_forward(chosen, _forward)


def _is_unsafe(convolution: nn.Conv2d) -> bool:
    return (
        convolution.weight.device.type == "cpu"
        and convolution.weight.shape[1] < _FEW
        and convolution.kernel_size == (1, 1)
        and convolution.stride != (1, 1)
        and convolution.padding in ((0, 0), "valid")
    )


def _forward(convolution: nn.Conv2d, features: Tensor) -> Tensor:
    rows, columns = convolution.stride
    picked = features[..., ::rows, ::columns]  # [(N,) C, H', W']
    return functional.conv2d(picked, convolution.weight, convolution.bias, groups=convolution.groups)
