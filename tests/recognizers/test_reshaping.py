"""Convolutions in other shapes compute what PyTorch's convolution computes, and are chosen where they save products."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from exact_gradients import assert_exact
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from recognizers.execution import convolution as convolution_module
from recognizers.execution import reshaping as reshaping_module
from recognizers.execution.convolution import FusedConvolution
from recognizers.execution.reshaping import (
    Size,
    as_linear,
    is_linear_faster,
    join_pixels,
    joined,
    linear_map,
    output_size,
    rows_to_join,
    small_maps,
    split_pixels,
    split_rows,
)

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=100, deadline=None)
@given(
    filters=st.integers(1, 4),
    channels=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=SIZES,
    bias=st.booleans(),
)
def test_shapes_compute_the_same(
    filters: int, channels: int, kernel: Size, stride: Size, padding: Size, size: Size, bias: bool
) -> None:
    assume(all(length + 2 * pad >= taps for length, pad, taps in zip(size, padding, kernel, strict=True)))
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, filters, kernel, stride, padding, bias=bias).double()
    features = torch.randn(2, channels, *size, dtype=torch.float64)
    expected = convolution(features)
    outputs = output_size(size, kernel, stride, padding)
    assert outputs == expected.shape[2:]
    weight, offset = convolution.weight, convolution.bias
    torch.testing.assert_close(linear_map(convolution, weight, offset, size)(features), expected)
    for rows in (rows for rows in (1, 2, 3, 4) if outputs[0] % rows == 0):
        high = joined(weight, stride=stride[0], rows=rows)
        repeated = None if offset is None else offset.repeat(rows)
        result = functional.conv2d(features, high, repeated, (rows * stride[0], stride[1]), padding)
        torch.testing.assert_close(split_rows(result, rows), expected)


@given(pixels=st.integers(1, 4), size=SIZES, channels=st.integers(1, 3))
def test_pixels_are_joined_side_by_side(pixels: int, size: Size, channels: int) -> None:
    height, width = size[0], size[1] * pixels
    features = torch.arange(2 * channels * height * width).view(2, channels, height, width)
    features = features.to(memory_format=torch.channels_last)
    wide = join_pixels(features, pixels)
    for pixel, channel in itertools.product(range(pixels), range(channels)):
        assert torch.equal(wide[:, pixel * channels + channel], features[:, channel, :, pixel::pixels])
    assert torch.equal(split_pixels(wide, pixels), features)
    assert wide.data_ptr() == features.data_ptr(), "no copy"


@given(
    rows=st.integers(1, 4),
    size=SIZES,
    filters=st.integers(1, 17),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_rows_are_split_as_they_were_joined(rows: int, size: Size, filters: int, dtype: torch.dtype) -> None:
    height, width = size
    features = torch.arange(2 * rows * filters * height * width).view(2, rows * filters, height, width).to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        apart = split_rows(features.contiguous(memory_format=layout), rows)
        assert apart.shape == (2, filters, height * rows, width)
        assert apart.is_contiguous(memory_format=torch.channels_last)
        for row in range(rows):
            assert torch.equal(apart[:, :, row::rows], features[:, row * filters : (row + 1) * filters])


@pytest.mark.parametrize(
    ("convolution", "size", "faster"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (2, 2), True),  # 4 products in place of 9
        (nn.Conv2d(3, 4, 3, padding=1), (1, 4), True),
        (nn.Conv2d(3, 4, 3, padding=1), (3, 2), False),
        (nn.Conv2d(3, 4, 5, padding=2), (3, 4), True),
        (nn.Conv2d(3, 4, 1), (1, 1), False),
        (nn.Conv2d(3, 3, 3, padding=1, groups=3), (2, 2), False),
        (nn.Conv2d(3, 4, 3, padding=2, dilation=2), (2, 2), False),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 2), False),
        (nn.Conv2d(3, 4, 3, padding="same"), (2, 2), False),
    ],
    ids=str,
)
def test_where_a_linear_map_is_faster(convolution: nn.Conv2d, size: Size, faster: bool) -> None:
    assert is_linear_faster(convolution, size) == faster


@pytest.mark.parametrize(
    ("convolution", "size", "by_16", "by_8"),
    [
        # Vectors of outputs times rows of the kernel, per row: 3 for one, 4 / 2 for two, 6 / 4 for four.
        (nn.Conv2d(16, 2, 3, padding=1), (32, 32), 4, 4),
        (nn.Conv2d(16, 4, 3, padding=1), (32, 32), 4, 2),
        (nn.Conv2d(16, 5, 3, padding=1), (32, 32), 2, 1),
        (nn.Conv2d(16, 8, 3, padding=1), (32, 32), 2, 1),
        (nn.Conv2d(16, 9, 3, padding=1), (32, 32), 1, 1),
        (nn.Conv2d(16, 2, 3, padding=1), (8, 8), 4, 4),
        (nn.Conv2d(16, 4, 3, padding=1), (16, 16), 4, 2),
        (nn.Conv2d(16, 4, 3, padding=1), (4, 4), 4, 2),
        (nn.Conv2d(16, 4, 3, padding=1), (6, 8), 2, 2),
        (nn.Conv2d(16, 4, 3, padding=1), (33, 32), 1, 1),
        (nn.Conv2d(16, 4, 3, stride=2, padding=1), (32, 32), 4, 1),  # 9 / 4 in place of 3; 5 / 2 is no great gain
        (nn.Conv2d(16, 8, 3, stride=2, padding=1), (32, 32), 1, 1),
        (nn.Conv2d(16, 4, 1), (32, 32), 1, 1),  # its zeros cost as much as is gained
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (32, 32), 1, 1),
    ],
    ids=str,
)
def test_how_many_rows_are_joined(convolution: nn.Conv2d, size: Size, by_16: int, by_8: int) -> None:
    assert [rows_to_join(convolution, size, lanes) for lanes in (16, 8, 1)] == [by_16, by_8, 1]


@pytest.mark.parametrize(
    ("vectors", "amx", "float32", "bfloat16"),
    [("avx512", True, 16, 1), ("avx512", False, 16, 16), ("avx2", False, 8, 8), ("none", False, 1, 1)],
)
def test_lanes_of_processors(
    monkeypatch: pytest.MonkeyPatch, vectors: str, amx: bool, float32: int, bfloat16: int
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: vectors == "avx512")
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: vectors != "none")
    assert [convolution_module.lanes(dtype) for dtype in (torch.float32, torch.bfloat16)] == [float32, bfloat16]


class TestFusedConvolution:
    """It takes the shape that is chosen, whatever else it is given."""

    @pytest.fixture(autouse=True)
    def _lanes(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(convolution_module, "lanes", lambda dtype: 16)
        yield

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("size", [2, 16, 32])
    @pytest.mark.parametrize("filters", [1, 3, 7])
    @pytest.mark.parametrize(("normed", "bias"), [(False, False), (False, True), (True, False)])
    @pytest.mark.parametrize("adds", ["nothing", "what stays", "what is disposable"])
    @pytest.mark.parametrize("relu", [False, True])
    def test_it_computes_the_same(
        self, dtype: torch.dtype, size: int, filters: int, normed: bool, bias: bool, adds: str, relu: bool
    ) -> None:
        torch.manual_seed(0)
        convolution = nn.Conv2d(5, filters, 3, padding=1, bias=bias)
        norm = nn.BatchNorm2d(filters) if normed else None
        if norm is not None:
            norm(torch.randn(8, filters, 4, 4))
            nn.init.normal_(norm.bias)
            norm.eval()
        fused = FusedConvolution(convolution, norm, relu=relu, version=lambda: 0, dtype=dtype)
        features, other = (
            torch.randn(3, count, size, size).to(memory_format=torch.channels_last) for count in (5, filters)
        )
        features, other = features.to(dtype), other.to(dtype)
        kept = other.clone()
        with torch.no_grad():
            expected = convolution(features.float())
            expected = expected if norm is None else norm(expected)
            expected = expected if adds == "nothing" else expected + other.float()
            expected = expected.relu() if relu else expected
            disposable = adds == "what is disposable"
            actual = fused(features, None if adds == "nothing" else other, disposable)
        close = 2e-2 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(actual.float(), expected, rtol=close, atol=close)
        assert actual.dtype == dtype
        assert actual.is_contiguous(memory_format=torch.channels_last)
        assert disposable or torch.equal(other, kept)

    @pytest.mark.parametrize(("size", "shape"), [(2, "linear"), (16, "joined"), (9, None)])
    def test_it_takes_that_shape(self, monkeypatch: pytest.MonkeyPatch, size: int, shape: str | None) -> None:
        taken = []
        for module, name, function in (
            (reshaping_module, "as_linear", as_linear),
            (convolution_module, "joined", joined),
        ):

            def counted(*given: object, name: str = name, function: object = function, **named: object) -> object:
                taken.append(name.removeprefix("as_"))
                return function(*given, **named)  # type: ignore[operator]

            monkeypatch.setattr(module, name, counted)
        fused = FusedConvolution(nn.Conv2d(5, 4, 3, padding=1), None, relu=True, version=lambda: 0, dtype=torch.float32)
        for _ in range(2):  # weights are brought into shape once
            fused(torch.randn(2, 5, size, size))
        assert taken == ([] if shape is None else [shape])

    def test_other_sizes_take_other_shapes(self) -> None:
        convolution = nn.Conv2d(5, 4, 3, padding=1)
        fused = FusedConvolution(convolution, None, relu=False, version=lambda: 0, dtype=torch.float32)
        for size in (2, 32, 1, 16, 2):
            features = torch.randn(2, 5, size, size)
            torch.testing.assert_close(fused(features), convolution(features).detach(), rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 5),
    filters=st.integers(1, 5),
    size=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    # Of other strides oneDNN itself is wrong, where a single column of a single channel is left.
    stride=st.sampled_from([(1, 1), (2, 2)]),
    bias=st.booleans(),
)
def test_small_maps_have_the_outputs_and_gradients_of_float64(
    channels: int, filters: int, size: Size, stride: Size, bias: bool
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=bias)
    assert_exact(convolution, small_maps([convolution]), images=6, size=size, atol=1e-4)


@pytest.mark.parametrize(
    ("convolution", "chosen"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), True),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), True),
        (nn.Conv2d(4, 6, 1, stride=2), False),  # which other functions take care of
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), False),
        (nn.Conv2d(4, 6, 3, padding="same"), False),
    ],
    ids=str,
)
def test_which_convolutions_are_changed_and_that_they_are_changed_back(convolution: nn.Conv2d, chosen: bool) -> None:
    for size in (1, 2, 5):
        for layout in (torch.contiguous_format, torch.channels_last):
            features = torch.randn(3, 4, size, size).to(memory_format=layout)
            expected = convolution(features)
            with small_maps([nn.Sequential(convolution), convolution]):
                assert ("forward" in vars(convolution)) == chosen
                torch.testing.assert_close(convolution(features), expected)
                torch.testing.assert_close(convolution(features[0]), expected[0])  # without a batch
    assert "forward" not in vars(convolution)


def test_small_maps_are_linear_where_channels_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []
    original = functional.linear
    monkeypatch.setattr(functional, "linear", lambda *given: products.append(1) or original(*given))  # type: ignore[func-returns-value]
    convolution = nn.Conv2d(4, 6, 3, padding=1)
    with small_maps([convolution]):
        convolution(torch.randn(3, 4, 2, 2))
        convolution(torch.randn(3, 4, 5, 5).to(memory_format=torch.channels_last))
        assert not products
        convolution(torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last))
        assert len(products) == 1
