"""Comparing a convolution's outputs and gradients with those that float64 gives."""

import copy
from contextlib import AbstractContextManager

import torch
from torch import nn


def assert_exact(
    convolution: nn.Conv2d, within: AbstractContextManager[None], images: int, size: tuple[int, int], atol: float
) -> None:
    """Run it on random channels-last features ``[images, C, *size]`` within a context, forth and back.

    Gradients may differ by ``atol``.
    """
    exact = copy.deepcopy(convolution).double()
    features = torch.randn(images, convolution.in_channels, *size)
    features = features.to(memory_format=torch.channels_last).requires_grad_()
    double = features.detach().double().contiguous().requires_grad_()
    with within:
        output = convolution(features)
    expected = exact(double)
    gradient = torch.randn_like(expected)
    output.backward(gradient.float())
    expected.backward(gradient)
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-4)
    for tensor, right in [(features, double), *zip(convolution.parameters(), exact.parameters(), strict=True)]:
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad.double(), right.grad, rtol=1e-4, atol=atol)
