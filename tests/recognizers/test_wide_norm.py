"""Batch norms in training mode that take several pixels for one: the same figures as PyTorch's own."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recognizers.execution.wide_norm import normalise, wide_norms


def _norm(channels: int, *, affine: bool = True, momentum: float | None = 0.1) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, affine=affine, momentum=momentum).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 140), st.integers(1, 6), st.integers(1, 9)),
    affine=st.booleans(),
    momentum=st.sampled_from([None, 0.1]),
)
def test_outputs_gradients_and_statistics_are_pytorchs(
    shape: tuple[int, int, int, int], affine: bool, momentum: float | None
) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    features = 3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 5
    features = features.to(memory_format=torch.channels_last)
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    plain = _norm(shape[1], affine=affine, momentum=momentum)
    fast = copy.deepcopy(plain)
    results = []
    for norm in (plain, fast):
        inputs = features.clone().requires_grad_()
        with wide_norms([norm] if norm is fast else []):
            for _ in range(2):  # the second time momentum counts
                output = norm(inputs)
        output.backward(gradient)
        parameters = [parameter.grad for parameter in norm.parameters()]
        results.append([output.detach(), inputs.grad, *parameters, *norm.buffers()])
    for expected, actual in zip(*results, strict=True):
        # Of channels that hardly vary the gradient is large.
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8 * max(1.0, float(expected.abs().max())))


def test_the_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, 2, 4, generator=generator, dtype=torch.float64)
    features = features.to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *inputs: normalise(*inputs, 1e-5)[0], (features, weight, bias))


def test_statistics_of_bfloat16_features_are_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    features = (torch.randn(64, 6, 8, 8, generator=generator) + 3).bfloat16().to(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(6, momentum=None)
    with wide_norms([norm]):
        assert norm(features).dtype == torch.bfloat16
    wide = features.double()
    torch.testing.assert_close(norm.running_mean.double(), wide.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), wide.var((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_other_modules_layouts_and_modes_are_left_to_pytorch() -> None:
    modules: list[nn.Module] = [nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm1d(4)]
    contiguous = torch.randn(2, 4, 3, 3)
    with wide_norms(modules):
        assert torch.equal(modules[0](contiguous), nn.BatchNorm2d(4)(contiguous))
        modules[0].eval()
        last = contiguous.to(memory_format=torch.channels_last)
        assert torch.equal(modules[0](last), modules[0].eval().forward(last))
        assert "forward" not in modules[1].__dict__ | modules[2].__dict__
    assert not any("forward" in module.__dict__ for module in modules)


def test_a_single_value_per_channel_is_refused_as_by_pytorch() -> None:
    with pytest.raises(ValueError, match="more than 1 value"), wide_norms([norm := nn.BatchNorm2d(3)]):
        norm(torch.zeros(1, 3, 1, 1))
