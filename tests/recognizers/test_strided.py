"""Narrow strided convolutions of 1 x 1 have the gradients that float64 gives, and nothing else changes."""

import pytest
import torch
from exact_gradients import assert_exact
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recognizers.execution.strided import safe_strides


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 20),
    filters=st.integers(1, 20),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    bias=st.booleans(),
)
def test_outputs_and_gradients(
    channels: int, filters: int, size: tuple[int, int], stride: tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, filters, 1, stride=stride, bias=bias)
    assert_exact(convolution, safe_strides([convolution]), images=24, size=size, atol=1e-3)


@pytest.mark.parametrize(
    ("convolution", "chosen"),
    [
        (nn.Conv2d(4, 6, 1, stride=2), True),
        (nn.Conv2d(4, 6, 1, stride=(1, 2)), True),
        (nn.Conv2d(4, 6, 1, stride=2, groups=2), True),
        (nn.Conv2d(4, 6, 1), False),
        (nn.Conv2d(4, 6, 3, stride=2), False),
        (nn.Conv2d(4, 6, 1, stride=2, padding=1), False),
        (nn.Conv2d(16, 6, 1, stride=2), False),
    ],
    ids=str,
)
def test_which_convolutions_are_changed_and_that_they_are_changed_back(convolution: nn.Conv2d, chosen: bool) -> None:
    features = torch.randn(3, convolution.in_channels, 5, 6)
    expected = convolution(features)
    with safe_strides([nn.Sequential(convolution), convolution]):
        assert ("forward" in vars(convolution)) == chosen
        torch.testing.assert_close(convolution(features), expected)
        torch.testing.assert_close(convolution(features[0]), expected[0])  # without a batch
    assert "forward" not in vars(convolution)
