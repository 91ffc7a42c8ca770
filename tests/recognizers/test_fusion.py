"""Fused stages compute what the network computes, fuse what they should, and never use weights that are out of date."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import odd_networks
import pytest
import torch
from stage_graphs import CONVOLUTION, GRAPHS, Graph
from torch import fx, nn
from torch.nn import functional

from recognizers import zoo
from recognizers.compaction import make_plain
from recognizers.execution import convolution
from recognizers.execution.convolution import FusedConvolution, folded
from recognizers.execution.fusion import fuse
from recognizers.execution.stages import cut

Enliven = Callable[..., nn.Module]


def _images(channels: int = 3, size: int = 8, batch: int = 4) -> torch.Tensor:
    images = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))
    return images.to(memory_format=torch.channels_last)


def _fused(
    network: nn.Module, images: torch.Tensor, dtype: torch.dtype = torch.float32, versions: Counter[str] | None = None
) -> nn.Sequential:
    """All stages of a network, fused. ``versions`` says, by path, what has changed."""
    seen = Counter[str]() if versions is None else versions

    def version(paths: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(seen[path] for path in paths)

    stages = cut(network, images[:2])
    assert all(stage.graph is not None for stage in stages)
    return nn.Sequential(*(fuse(stage.graph, network, version, dtype) for stage in stages if stage.graph is not None))


def _operations(fused: nn.Module) -> list[str]:
    """What is left to do, in order: names of modules, functions and methods."""
    names = []
    for stage in fused.children():
        assert isinstance(stage, fx.GraphModule)
        for node in stage.graph.nodes:
            if node.op == "call_module":
                names.append(type(stage.get_submodule(str(node.target))).__name__)
            elif node.op in ("call_function", "call_method"):
                names.append(getattr(node.target, "__name__", str(node.target)))
    return names


@contextmanager
def _onednn(enabled: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the flags of other devices
        with torch.backends.mkldnn.flags(enabled=enabled):
            yield


@pytest.fixture(params=[True, False], ids=["oneDNN", "plain"])
def onednn(request: pytest.FixtureRequest) -> Iterator[None]:
    """With and without oneDNN's fused operations."""
    with _onednn(request.param):
        yield


class TestPatterns:
    @pytest.mark.parametrize("name", GRAPHS)
    def test_what_is_computed_and_what_is_left(self, name: str, enliven: Enliven, onednn: None) -> None:
        compute, left = GRAPHS[name]
        network = enliven(Graph(compute), _images(batch=16))
        fused = _fused(network, _images())
        with torch.no_grad():
            torch.testing.assert_close(fused(_images()), network(_images()), rtol=1e-4, atol=1e-5)
        assert sorted(_operations(fused)) == sorted([CONVOLUTION, *left])

    @pytest.mark.parametrize(
        "settings",
        [
            {"bias": False},
            {"stride": 2},
            {"dilation": 2},
            {"padding": (0, 1)},
            {"kernel_size": (1, 3)},
            {"groups": 2},
            {"groups": 6},  # depthwise
        ],
        ids=str,
    )
    @pytest.mark.parametrize("normed", [False, True])
    def test_geometry(self, settings: dict[str, Any], normed: bool, enliven: Enliven, onednn: None) -> None:
        convolution = nn.Conv2d(6, 6, **{"kernel_size": 3, "padding": 1, **settings})
        norm = [nn.BatchNorm2d(6)] if normed else []
        network = enliven(nn.Sequential(nn.Conv2d(3, 6, 1), convolution, *norm, nn.ReLU()), _images(batch=16))
        fused = _fused(network, _images())
        with torch.no_grad():
            torch.testing.assert_close(fused(_images()), network(_images()), rtol=1e-4, atol=1e-5)
        assert _operations(fused) == [CONVOLUTION] * 2

    @pytest.mark.parametrize(
        "convolution",
        [nn.Conv2d(3, 6, 3, padding="same"), nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")],
        ids=["string padding", "padding mode"],
    )
    def test_padding_of_other_kinds_is_left_to_pytorch(self, convolution: nn.Conv2d, enliven: Enliven) -> None:
        network = enliven(nn.Sequential(convolution, nn.BatchNorm2d(6), nn.ReLU()), _images(batch=16))
        fused = _fused(network, _images())
        with torch.no_grad():
            assert torch.equal(fused(_images()), network(_images()))
        assert _operations(fused) == ["Conv2d", "BatchNorm2d", "ReLU"]

    @pytest.mark.parametrize(
        ("norm", "left"),
        [
            (nn.BatchNorm2d(6, affine=False), [CONVOLUTION]),
            (nn.BatchNorm2d(6, eps=0.3), [CONVOLUTION]),
            (nn.BatchNorm2d(6, track_running_stats=False), [CONVOLUTION, "BatchNorm2d"]),  # those of the batch
            (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), [CONVOLUTION, "InstanceNorm2d"]),
        ],
        ids=str,
    )
    def test_kinds_of_norms(self, norm: nn.Module, left: list[str]) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 6, 3), norm)
        network(_images(batch=16))  # gives it statistics
        network.eval()
        fused = _fused(network, _images())
        with torch.no_grad():
            torch.testing.assert_close(fused(_images()), network(_images()), rtol=1e-4, atol=1e-5)
        assert _operations(fused) == left

    def test_a_hook_on_a_convolution_is_called(self) -> None:
        network = odd_networks.Hooked().eval()
        images = _images(channels=1)
        with torch.no_grad():
            torch.testing.assert_close(_fused(network, images)(images), network(images), rtol=1e-4, atol=1e-5)

    def test_the_graph_is_left_unchanged(self, enliven: Enliven) -> None:
        network = enliven(Graph(GRAPHS["norm, sum, relu"][0]), _images())
        stages = cut(network, _images())
        before = [[node.name for node in stage.graph.nodes] for stage in stages if stage.graph is not None]
        for stage in stages:
            assert stage.graph is not None
            fuse(stage.graph, network, lambda paths: 0, torch.float32)
        assert [[node.name for node in stage.graph.nodes] for stage in stages if stage.graph is not None] == before

    @pytest.mark.parametrize("name", ["norm, sum, relu", "norm, sum", "both summands"])
    def test_inputs_are_left_unchanged(self, name: str, enliven: Enliven, onednn: None) -> None:
        """What is kept between stages must outlive the stage that reads it, the summand above all."""
        network = enliven(Graph(GRAPHS[name][0]), _images(batch=16))
        _, stage = _fused(network, _images())
        features = torch.randn(4, 6, 8, 8)
        before = features.clone()
        with torch.no_grad():
            stage(features)
        assert torch.equal(features, before)

    def test_shortcuts_that_do_nothing_are_not_called(self, enliven: Enliven) -> None:
        """They would hide that a summand is the stage's own input."""
        network = enliven(zoo.create("resnet20", classes=10, in_channels=3), _images(batch=16))
        fused = _fused(network, _images())
        assert "Identity" not in _operations(fused)
        features = _images(channels=16)
        with torch.no_grad():
            expected = network.layer1[0](features)
            result = fused[1](features, disposable=True)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
        assert result.data_ptr() == features.data_ptr()

    def test_shortcuts_with_hooks_are_called(self, enliven: Enliven) -> None:
        network, seen = enliven(zoo.create("resnet20", classes=10, in_channels=3), _images(batch=16)), list[int]()
        network.layer1[0].shortcut.register_forward_hook(lambda *_: seen.append(1))
        fused = _fused(network, _images())
        seen.clear()
        with torch.no_grad():
            fused(_images())
        assert seen == [1]

    @pytest.mark.parametrize("name", GRAPHS)
    def test_disposable_inputs_give_the_same(self, name: str, enliven: Enliven, onednn: None) -> None:
        network = enliven(Graph(GRAPHS[name][0]), _images(batch=16))
        _, *stages = _fused(network, _images())
        features = _images(channels=6)
        with torch.no_grad():
            for stage in stages:
                expected = stage(features)
                assert torch.equal(stage(features.clone(), disposable=True), expected)
                features = expected

    def test_a_view_taken_of_a_summand_before_it_outlives_the_sum(self, enliven: Enliven, onednn: None) -> None:
        network = enliven(Graph(lambda g, x: x.transpose(2, 3) - g.relu(g.conv2(g.conv(x)) + x)), _images(batch=16))
        (whole,) = _fused(network, _images())
        with torch.no_grad():
            torch.testing.assert_close(whole(_images()), network(_images()))

    def test_a_disposable_summand_becomes_the_sum(self, enliven: Enliven) -> None:
        network = enliven(Graph(GRAPHS["one behind the other"][0]), _images(batch=16))
        _, stage = _fused(network, _images())
        features = _images(channels=6)
        with torch.no_grad():
            for disposable in (False, True):
                result = stage(features, disposable=disposable)
                assert (result.data_ptr() == features.data_ptr()) == disposable


class TestArchitectures:
    NAMES = ("convnet", "resnet20", "resnet18", "mobilenet_v2", "efficientnet_b0", "densenet121")

    @pytest.fixture(scope="class", params=NAMES)
    def network(self, request: pytest.FixtureRequest, enliven: Enliven) -> nn.Module:
        torch.manual_seed(0)
        return make_plain(enliven(zoo.create(request.param, classes=10, in_channels=3), _images(size=32, batch=8)))

    def test_in_float64_it_is_the_network(self, network: nn.Module) -> None:
        exact, images = copy.deepcopy(network).double(), _images(size=32).double()
        with torch.no_grad(), _onednn(False):
            expected = exact(images)
            torch.testing.assert_close(_fused(exact, images, torch.float64)(images), expected, rtol=1e-8, atol=1e-8)
        assert expected.std(dim=0).mean() > 0.1, "the comparison would mean nothing"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_it_rounds_no_more_than_the_network_itself(self, network: nn.Module, dtype: torch.dtype) -> None:
        images = _images(size=32, batch=16).to(dtype)
        with torch.no_grad():
            exact = copy.deepcopy(network).double()(images.double())
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                fused, unfused = _fused(network, images, dtype)(images), network(images)
        assert (fused - exact).norm() < 2 * (unfused - exact).norm()

    def test_nothing_fusable_is_left(self, network: nn.Module) -> None:
        operations = Counter(_operations(_fused(network, _images(size=32))))
        pre_activated = type(network).__name__ == "DenseNet"  # its norms stand before the convolutions
        depths = 9 if type(network).__name__ == "EfficientNet" else 0  # stochastic depth lies before its sums
        assert operations["Conv2d"] == 0
        assert (operations["BatchNorm2d"] == 0) != pre_activated
        assert (operations["ReLU"] == 0) != pre_activated
        assert operations["add"] == depths


def test_folding_by_hand() -> None:
    convolution, norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=0.0)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([2.0, 3.0])[:, None, None, None])
        convolution.bias.copy_(torch.tensor([1.0, 5.0]))
        norm.running_mean.copy_(torch.tensor([3.0, 1.0]))
        norm.running_var.copy_(torch.tensor([4.0, 0.25]))
        norm.weight.copy_(torch.tensor([6.0, 1.0]))
        norm.bias.copy_(torch.tensor([10.0, -1.0]))
        weight, bias = folded(convolution, norm)  # scales 6/2 and 1/0.5
    assert weight.flatten().tolist() == [6.0, 6.0]
    assert bias.tolist() == [10.0 + (1 - 3) * 3, -1.0 + (5 - 1) * 2]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_folding_is_exact(bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 5, 3, bias=bias).double(), nn.BatchNorm2d(5, affine=affine).double()
    norm(convolution(_images().double()))
    norm.eval()
    with torch.no_grad():
        weight, shift = folded(convolution, norm)
        actual = functional.conv2d(_images().double(), weight, shift)
        torch.testing.assert_close(actual, norm(convolution(_images().double())), rtol=1e-12, atol=1e-12)


class TestPrecision:
    def test_weights_are_folded_in_float32_and_rounded_once(self) -> None:
        """Rounding before folding would err twice."""
        torch.manual_seed(0)
        convolution, norm = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5)
            norm.running_var.uniform_(0.5, 2.0)
            norm.eval()
            fused = FusedConvolution(convolution, norm, relu=False, version=lambda: 0, dtype=torch.bfloat16)
            units = torch.eye(16)[:, :, None, None].contiguous(memory_format=torch.channels_last)
            columns = fused(units)  # one weight each: nothing is summed, so nothing else is rounded
            weight, _ = folded(convolution, norm)
        assert columns.dtype == torch.bfloat16
        assert torch.equal(columns[:, :, 0, 0].T.float(), weight[:, :, 0, 0].bfloat16().float())

    def test_inputs_of_another_type_are_taken(self) -> None:
        fused = FusedConvolution(nn.Conv2d(3, 4, 1), None, relu=True, version=lambda: 0, dtype=torch.bfloat16)
        assert fused(_images(), torch.zeros(4, 4, 8, 8)).dtype == torch.bfloat16

    def test_processors_whose_onednn_refuses_bfloat16(self, enliven: Enliven, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(convolution, "_onednn_takes_bfloat16", lambda: False)
        network = enliven(Graph(GRAPHS["norm, sum, relu"][0]), _images(batch=16))
        with torch.no_grad():
            logits = _fused(network, _images(), torch.bfloat16)(_images())
            torch.testing.assert_close(logits.float(), network(_images()), rtol=0.05, atol=0.05)
        assert logits.dtype == torch.bfloat16


class TestFreshness:
    @pytest.fixture
    def versions(self) -> Counter[str]:
        return Counter()

    @pytest.fixture
    def network(self, enliven: Enliven) -> nn.Module:
        torch.manual_seed(0)
        return enliven(zoo.create("convnet", classes=10, in_channels=3, widths=[5, 6]), _images(batch=16))

    @pytest.mark.parametrize(
        "tensor", ["conv2.weight", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var"]
    )
    def test_a_change_that_is_told_shows(self, network: nn.Module, versions: Counter[str], tensor: str) -> None:
        fused = _fused(network, _images(), versions=versions)
        with torch.no_grad():
            before = fused(_images())
            network.features.state_dict()[tensor].mul_(1.7).add_(0.1)
            versions["features." + tensor.split(".", maxsplit=1)[0]] += 1
            after = fused(_images())
            torch.testing.assert_close(after, network(_images()), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)

    def test_tensors_that_were_replaced_are_found(self, network: nn.Module, versions: Counter[str]) -> None:
        """As slicing does it: other parameters, of other sizes, in the same modules."""
        fused = _fused(network, _images(), versions=versions)
        features = network.features
        with torch.no_grad():
            fused(_images())
            kept = torch.tensor([0, 2, 3])
            features.conv1.weight = nn.Parameter(features.conv1.weight[kept])
            features.conv2.weight = nn.Parameter(features.conv2.weight[:, kept])
            for name in ("weight", "bias"):
                setattr(features.bn1, name, nn.Parameter(getattr(features.bn1, name)[kept]))
            for name in ("running_mean", "running_var"):
                setattr(features.bn1, name, getattr(features.bn1, name)[kept])
            versions.update(["features.conv1", "features.bn1", "features.conv2"])
            torch.testing.assert_close(fused(_images()), network(_images()), rtol=1e-4, atol=1e-5)

    def test_other_sizes_of_images_and_batches(self, network: nn.Module) -> None:
        fused = _fused(network, _images())
        with torch.no_grad():
            for images in (_images(), _images(batch=1), _images(size=12, batch=7), _images()):
                torch.testing.assert_close(fused(images), network(images), rtol=1e-4, atol=1e-5)

    def test_it_registers_no_parameters_of_its_own(self, network: nn.Module) -> None:
        fused = FusedConvolution(network.features.conv1, None, relu=True, version=lambda: 0, dtype=torch.float32)
        assert not list(fused.parameters()) and not list(fused.buffers())
