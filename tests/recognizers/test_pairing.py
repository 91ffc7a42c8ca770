"""Images in pairs: every layout computes the same, and pairs are made where they are of use."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stage_graphs import GRAPHS, Graph
from torch import Tensor, fx, nn
from torch.nn import functional

from recognizers import zoo
from recognizers.compaction import make_plain
from recognizers.execution.fusion import fuse
from recognizers.execution.in_place import in_place
from recognizers.execution.pairing import (
    Layout,
    PairedConvolution,
    PairedPool,
    before_conversions,
    gains_by_pairs,
    pair,
    paired_geometry,
    takes_pairs,
    unpair,
)
from recognizers.execution.reshaping import Size
from recognizers.execution.stages import Stage, cut
from recognizers.recovery import batch_norms, recalibrating

Enliven = Callable[..., nn.Module]
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 6))


def _images(size: int = 8, batch: int = 6) -> Tensor:
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    return images.to(memory_format=torch.channels_last)


class TestLayouts:
    @given(count=st.integers(1, 7), channels=st.integers(1, 3), size=SIZES, channels_last=st.booleans())
    def test_the_second_half_lies_beside_the_first(
        self, count: int, channels: int, size: Size, channels_last: bool
    ) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        height, width = size
        features = torch.arange(count * channels * height * width).view(count, channels, height, width)
        features = features.contiguous(memory_format=layout)
        both = pair(features, width)
        if count % 2:
            assert both is features
        else:
            assert both.is_contiguous(memory_format=torch.channels_last)
            for image, column in np.ndindex(count, width):
                beside, first = divmod(image, count // 2)
                assert torch.equal(both[first, :, :, 2 * column + beside], features[image, :, :, column])
            assert pair(both, width) is both
        assert torch.equal(unpair(both, width), features)
        assert unpair(features, width) is features

    @settings(max_examples=100, deadline=None)
    @given(
        channels=st.integers(1, 3),
        filters=st.integers(1, 3),
        kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
        step=st.integers(1, 3),
        padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        size=SIZES,
        bias=st.booleans(),
    )
    def test_convolutions_and_their_gradients_are_the_same(
        self, channels: int, filters: int, kernel: Size, step: int, padding: Size, size: Size, bias: bool
    ) -> None:
        assume(all(length + 2 * pad >= taps for length, pad, taps in zip(size, padding, kernel, strict=True)))
        torch.manual_seed(0)
        convolution = nn.Conv2d(channels, filters, kernel, (step, 1), padding, bias=bias).double()
        paired = PairedConvolution(copy.deepcopy(convolution), size[1])
        features, width = torch.randn(4, channels, *size, dtype=torch.float64), size[1]
        one, other = features.clone().requires_grad_(), features.clone().requires_grad_()
        expected = convolution(one)
        for given_features in (other, pair(other, width)):
            actual = paired(given_features)
            torch.testing.assert_close(unpair(actual, expected.shape[3]), expected)
        gradient = torch.randn_like(expected)
        expected.backward(gradient)
        unpair(actual, expected.shape[3]).backward(gradient)
        for tensor, right in [
            (other, one),
            *zip(paired.convolution.parameters(), convolution.parameters(), strict=True),
        ]:
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, right.grad)

    @pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(2, ceil_mode=True)], ids=str)
    def test_poolings_are_the_same(self, pool: nn.MaxPool2d) -> None:
        features = _images(size=7, batch=4)
        expected = pool(features)
        width = expected.shape[3]
        for given_features in (features, pair(features, 7)):
            assert torch.equal(unpair(PairedPool(pool, 7)(given_features), width), expected)

    def test_geometry_by_hand(self) -> None:
        convolution = nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(2, 1), groups=2)
        assert paired_geometry(convolution, 1) == ((2, 1), (2, 1), (1, 1), 2)
        assert paired_geometry(convolution, 2) == ((2, 2), (2, 1), (1, 2), 2)


@pytest.mark.parametrize(
    ("convolution", "size", "takes", "gains"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (32, 32), True, True),
        (nn.Conv2d(3, 4, 3, padding=1), (4, 4), True, True),
        (nn.Conv2d(3, 4, 3, padding=1), (33, 33), True, False),  # long enough
        (nn.Conv2d(3, 4, 3, padding=1), (2, 2), False, False),  # a linear map
        (nn.Conv2d(3, 4, 1), (8, 8), True, False),
        (nn.Conv2d(3, 4, 3, stride=(2, 1), padding=1), (8, 8), True, True),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (8, 8), False, False),
        (nn.Conv2d(3, 3, 3, padding=1, groups=3), (8, 8), False, False),
        (nn.Conv2d(3, 4, 3, padding=2, dilation=2), (8, 8), False, False),
        (nn.Conv2d(3, 4, 3, padding="same"), (8, 8), False, False),
    ],
    ids=str,
)
def test_which_convolutions_are_given_pairs(convolution: nn.Conv2d, size: Size, takes: bool, gains: bool) -> None:
    assert (takes_pairs(convolution, size), gains_by_pairs(convolution, size)) == (takes, gains)


def _layouts(stage: fx.GraphModule) -> list[str]:
    """The conversions of a stage, in order."""
    return [node.target.__name__ for node in stage.graph.nodes if node.target in (pair, unpair)]  # type: ignore[union-attr]


def _stages(network: nn.Module, images: Tensor) -> tuple[Stage, ...]:
    stages = cut(network, images[:2])
    assert all(stage.graph is not None for stage in stages)
    return stages


def _unpaired(features: Tensor, stage: Stage) -> Tensor:
    """What a stage hands on, in the layout of single images."""
    assert stage.graph is not None
    shape = before_conversions(next(iter(stage.graph.find_nodes(op="output"))).all_input_nodes[0]).meta["shape"]
    return unpair(features, shape[3]) if len(shape) == 4 else features


class TestStages:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("batch", [6, 5])
    @pytest.mark.parametrize("name", GRAPHS)
    def test_inference(self, name: str, batch: int, dtype: torch.dtype, enliven: Enliven) -> None:
        """Whether its input is paired or not, may be overwritten or not, and of an odd number, too."""
        network = enliven(Graph(GRAPHS[name][0]), _images(batch=16))
        stem, stage = _stages(network, _images())
        assert stage.graph is not None
        tolerance = 6e-2 if dtype == torch.bfloat16 else 1e-4
        with torch.no_grad():
            features = stem.module(network)(_images(batch=batch)).to(dtype).float()
            expected = stage.module(network)(features)
            given_features = features.to(dtype).contiguous(memory_format=torch.channels_last)
            for paired in (False, True):
                fused = fuse(stage.graph, network, lambda _: "same", dtype, Layout(paired))
                taken = pair(given_features, 8) if paired else given_features
                before = taken.clone()
                for disposable in (False, True):
                    actual = fused(taken.clone() if disposable else taken, disposable=disposable)
                    actual = _unpaired(actual, stage).float()
                    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
                assert torch.equal(taken, before)

    @pytest.mark.parametrize("batch", [6, 5])
    @pytest.mark.parametrize("name", GRAPHS)
    def test_recalibration(self, name: str, batch: int) -> None:
        torch.manual_seed(0)
        network = Graph(GRAPHS[name][0]).eval()
        other = copy.deepcopy(network)
        stem, stage = _stages(network, _images())
        assert stage.graph is not None
        with torch.inference_mode():
            features = stem.module(network)(_images(batch=batch))
            with recalibrating(batch_norms(other.modules())):
                expected = stage.module(other)(features)
            for paired in (False, True):
                fast = in_place(stage.graph, network, lambda _: "same", torch.float32, Layout(paired))
                taken = pair(features, 8) if paired else features
                before = taken.clone()
                with recalibrating(batch_norms(network.modules())):
                    actual = _unpaired(fast(taken), stage)
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
                for buffer, right in zip(network.buffers(), other.buffers(), strict=True):
                    torch.testing.assert_close(buffer, right, rtol=1e-4, atol=1e-4)
                assert torch.equal(taken, before)

    @pytest.mark.parametrize("architecture", ["vgg16_bn", "resnet20", "mobilenet_v2", "densenet121"])
    @pytest.mark.parametrize("batch", [4, 3])
    def test_architectures(self, architecture: str, batch: int, enliven: Enliven) -> None:
        network = make_plain(zoo.create(architecture, classes=10, in_channels=3))
        network = enliven(network, _images(size=32, batch=16))
        images = _images(size=32, batch=batch)
        features, converted, layout = images, list[str](), Layout()
        with torch.no_grad():
            for stage in _stages(network, images):
                assert stage.graph is not None
                fused = fuse(stage.graph, network, lambda _: "same", torch.float32, layout)
                features = fused(features)
                converted += _layouts(fused)
            torch.testing.assert_close(features, network(images), rtol=1e-3, atol=1e-3)
        assert ("pair" in converted) == (architecture != "mobilenet_v2")  # its stem strides, the others are depthwise

    def test_a_residual_network_stays_paired_within_its_resolutions(self) -> None:
        network = make_plain(zoo.create("resnet20", classes=10, in_channels=3)).eval()
        layouts, layout = [], Layout()
        for stage in _stages(network, _images(size=32)):
            assert stage.graph is not None
            layouts.append(_layouts(fuse(stage.graph, network, lambda _: "same", torch.float32, layout)))
        # Stem and three blocks; twice a block that halves the maps (of its two branches) and two others, the last of
        # which is pooled; the classifier.
        halving = ["pair", "pair", "unpair"]
        assert layouts[:4] == [["pair"], [], [], []]
        assert [sorted(part) for part in layouts[4:9]] == [halving, [], [], halving, []]
        assert layouts[9:] == [["unpair"], []]
        assert not layout.paired

    def test_without_leave_nothing_is_paired(self) -> None:
        network = make_plain(zoo.create("resnet20", classes=10, in_channels=3)).eval()
        for stage in _stages(network, _images(size=32)):
            assert stage.graph is not None
            assert not _layouts(fuse(stage.graph, network, lambda _: "same", torch.float32))

    def test_a_sum_takes_the_place_of_a_paired_summand(self, enliven: Enliven) -> None:
        """Conversions may hand on what they were given, so they are no reason for a copy, nor for leaving it out."""
        network = enliven(Graph(GRAPHS["one behind the other"][0]), _images(batch=16))
        _, stage = _stages(network, _images())
        assert stage.graph is not None
        fused = fuse(stage.graph, network, lambda _: "same", torch.float32, Layout(paired=True))
        features = pair(torch.randn(6, 6, 8, 8).contiguous(memory_format=torch.channels_last), 8)
        with torch.no_grad():
            for disposable in (False, True):
                result = fused(features, disposable=disposable)
                assert (result.data_ptr() == features.data_ptr()) == disposable


def test_other_batches_in_between(enliven: Enliven) -> None:
    """The last batch of a pass may be odd."""
    network = enliven(zoo.create("convnet", classes=10, in_channels=3, widths=[5, 6]), _images(batch=16))
    stages, layout = _stages(network, _images()), Layout()
    fused = [
        fuse(stage.graph, network, lambda _: "same", torch.float32, layout)
        for stage in stages
        if stage.graph is not None
    ]
    with torch.no_grad():
        for batch in (4, 3, 2, 1, 6):
            features = _images(batch=batch)
            for stage in fused:
                features = stage(features)
            torch.testing.assert_close(features, network(_images(batch=batch)), rtol=1e-4, atol=1e-5)


def test_pooling_beside_the_functional_one() -> None:
    features = _images(size=4, batch=2)
    assert torch.equal(unpair(PairedPool(nn.MaxPool2d(2), 4)(pair(features, 4)), 2), functional.max_pool2d(features, 2))
