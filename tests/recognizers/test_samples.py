"""Samples are what a layer reads and puts out at the places that were drawn."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recognizers.reconstruction.layer import affine, parts
from recognizers.reconstruction.samples import padding, positions, sampled_inputs, sampled_outputs

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    """Of 4 channels to 6, with random weights."""
    paddings: Any = st.one_of(st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 2), st.integers(0, 2)))
    pad = draw(paddings)
    torch.manual_seed(draw(st.integers(0, 1000)))
    return nn.Conv2d(
        4,
        6,
        draw(PAIRS),
        stride=1 if pad == "same" else draw(PAIRS),
        padding=pad,
        dilation=draw(PAIRS),
        groups=draw(st.sampled_from([1, 2])),
        bias=draw(st.booleans()),
    )


def _assert_explained(layer: nn.Conv2d | nn.Linear, inputs: Tensor, per_image: int) -> None:
    """Inputs times weights are the outputs, at the same places."""
    with torch.no_grad():
        outputs = layer(inputs)
    places = positions(outputs.shape, per_image, torch.Generator().manual_seed(0))
    read, expected = sampled_inputs(layer, inputs, places), sampled_outputs(outputs, places)
    assert len(read) == len(expected) == places.numel()
    assert read.shape[1] == layer.weight[0].numel() * (layer.groups if isinstance(layer, nn.Conv2d) else 1)
    for part in parts(layer):
        weights = affine(layer, None, part)
        actual = read[:, part.inputs].double() @ weights[:-1] + weights[-1]
        torch.testing.assert_close(actual.float(), expected[:, part.outputs], rtol=1e-4, atol=1e-5)


@given(convolutions(), st.integers(3, 7), st.integers(3, 7), st.integers(1, 60), st.booleans())
@settings(max_examples=150, deadline=None)
def test_inputs_times_weights_are_outputs(
    layer: nn.Conv2d, height: int, width: int, per_image: int, channels_last: bool
) -> None:
    reach = [
        size + sum(pad) - dilation * (kernel - 1)
        for size, pad, dilation, kernel in zip(
            (height, width), padding(layer), layer.dilation, layer.kernel_size, strict=True
        )
    ]
    assume(min(reach) > 0)
    inputs = torch.randn(3, 4, height, width, generator=torch.Generator().manual_seed(1))
    if channels_last:
        inputs = inputs.to(memory_format=torch.channels_last)
    _assert_explained(layer, inputs, per_image)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(bias: bool) -> None:
    _assert_explained(nn.Linear(4, 6, bias=bias), torch.randn(5, 4), per_image=64)


def test_bfloat16_features_become_float32() -> None:
    features = torch.randn(2, 3, 4, 4).bfloat16()
    places = torch.tensor([[0, 5], [15, 5]])
    outputs, inputs = sampled_outputs(features, places), sampled_inputs(nn.Conv2d(3, 2, 1), features, places)
    assert outputs.dtype == inputs.dtype == torch.float32
    expected = torch.stack([features[0, :, 0, 0], features[0, :, 1, 1], features[1, :, 3, 3], features[1, :, 1, 1]])
    assert torch.equal(outputs, expected.float()) and torch.equal(inputs, expected.float())


class TestPositions:
    def test_all_places_where_there_are_no_more(self) -> None:
        generator = torch.Generator().manual_seed(0)
        places = positions(torch.Size([2, 7, 3, 4]), 12, generator)
        assert places.tolist() == [list(range(12))] * 2
        assert positions(torch.Size([3, 7]), 64, generator).tolist() == [[0]] * 3

    def test_they_follow_from_the_generator(self) -> None:
        first, again, other = (
            positions(torch.Size([50, 7, 4, 4]), 8, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert first.shape == (50, 8)
        assert first.unique().tolist() == list(range(16)), "all places come up, and no others"
        assert not torch.equal(first[0], first[1]), "each image has places of its own"
