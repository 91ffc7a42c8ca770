"""Stages that work in place compute what their graphs say, and overwrite nothing that others still need."""

import copy
from collections.abc import Callable

import odd_networks
import pytest
import torch
from stage_graphs import GRAPHS, Graph
from torch import fx, nn

from recognizers import zoo
from recognizers.compaction import make_plain
from recognizers.execution.in_place import in_place, rectify
from recognizers.execution.stages import Stage, cut
from recognizers.recovery import batch_norms, recalibrating

NORM, SUM, RELU = "_InPlaceNorm", "_add_to", "rectify"
IN_PLACE = {
    "norm": [NORM],
    "norm, relu": [NORM, RELU],
    "relu as function": [NORM, RELU],
    "relu as another function": [NORM, RELU],
    "relu as method": [NORM, RELU],
    "another activation": [NORM],
    "norm, sum": [NORM, SUM],
    "norm, sum, relu": [NORM, SUM, RELU],
    "sum the other way round": [NORM, SUM, RELU],
    "sum as function": [NORM, SUM],
    "norm, relu, sum": [NORM, RELU],
    "both summands": [NORM, NORM, SUM, RELU],
    "both summands, rectified": [NORM, RELU, NORM, RELU],
    "one behind the other": [NORM, RELU],
    "relu, pool": [NORM, RELU],
    "norm, pool": [NORM],
    "two users of the norm": [NORM],
}
"""What overwrites something, by graph; nothing in the other graphs."""


def _images(size: int = 8, batch: int = 6) -> torch.Tensor:
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    return images.to(memory_format=torch.channels_last)


def _stages(
    network: nn.Module, images: torch.Tensor, dtype: torch.dtype = torch.float32
) -> list[tuple[Stage, fx.GraphModule]]:
    """With their counterparts in place."""
    stages = cut(network.eval(), images[:2])
    return [
        (stage, in_place(stage.graph, network, lambda _: "same", dtype)) for stage in stages if stage.graph is not None
    ]


def _overwriting(stage: fx.GraphModule) -> list[str]:
    names = [
        type(stage.get_submodule(node.target)).__name__
        if node.op == "call_module"
        else getattr(node.target, "__name__", "")
        for node in stage.graph.nodes
    ]
    return [name for name in names if name in (NORM, SUM, RELU)]


def _calibrated(network: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), recalibrating(batch_norms(network.modules())):
        return run(images)


def _assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    """As close as sums in another order are; in bfloat16 fused convolutions add their bias before they round."""
    tolerance = {torch.bfloat16: 2e-2, torch.float32: 1e-4, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_and_statistics_are_those_of_the_graph(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Graph(GRAPHS[name][0]).eval()
    other = copy.deepcopy(network)
    (_, stem), (stage, fast) = _stages(network, _images(), dtype)
    features = stem(_images()).detach()
    before = features.clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        actual = _calibrated(network, fast, features)
        expected = _calibrated(other, stage.module(other), features)
    _assert_close(actual, expected, dtype)
    for buffer, right in zip(network.buffers(), other.buffers(), strict=True):
        _assert_close(buffer, right, dtype)
    assert torch.equal(features, before), "what is kept between stages must outlive the stage that reads it"
    assert _overwriting(fast) == IN_PLACE.get(name, [])


@pytest.mark.parametrize("architecture", ["vgg16_bn", "resnet20", "mobilenet_v2", "densenet121"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_architectures(architecture: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = make_plain(zoo.create(architecture, classes=10, in_channels=3)).to(dtype).eval()
    other = copy.deepcopy(network)
    actual = expected = _images(size=32, batch=24).to(dtype)  # of fewer, batch norms make roundings grow
    pairs = _stages(network, actual, dtype)
    for stage, fast in pairs:
        actual, expected = _calibrated(network, fast, actual), _calibrated(other, stage.module(other), expected)
        _assert_close(actual, expected, dtype)
    for buffer, right in zip(network.buffers(), other.buffers(), strict=True):
        _assert_close(buffer, right, dtype)
    assert any(_overwriting(fast) for _, fast in pairs)


@pytest.mark.parametrize(("inner", "third"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("width", [1, 3])
def test_a_single_channel_leaves_its_layout_open(width: int, inner: int, third: int) -> None:
    torch.manual_seed(0)
    network = odd_networks.Residual(width, inner)
    network.blocks[2] = odd_networks.Bottleneck(width, third, stride=2)  # its sum is that of two norms
    network.eval()
    other = copy.deepcopy(network)
    actual = expected = _images()[:, :1].contiguous().to(memory_format=torch.channels_last)
    for stage, fast in _stages(network, actual):
        actual, expected = _calibrated(network, fast, actual), _calibrated(other, stage.module(other), expected)
        _assert_close(actual, expected)


def test_hooked_modules_are_called() -> None:
    network, seen = Graph(GRAPHS["norm, relu"][0]), list[str]()
    network.relu.register_forward_hook(lambda *_: seen.append("relu"))
    _, (_, fast) = _stages(network, _images())
    seen.clear()
    with torch.inference_mode():
        fast(torch.randn(2, 6, 8, 8))
    assert seen == ["relu"]
    assert _overwriting(fast) == [NORM]


def test_the_graph_is_left_unchanged() -> None:
    network = Graph(GRAPHS["norm, sum, relu"][0])
    _, (stage, _) = _stages(network, _images())
    assert stage.graph is not None
    before = str(stage.graph)
    in_place(stage.graph, network, lambda _: "same", torch.float32)
    assert str(stage.graph) == before


def test_relus_of_bfloat16_are_pytorchs() -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    features = bits.view(torch.bfloat16)[~bits.view(torch.bfloat16).isnan()]  # every number that there is
    expected = features.relu().abs()  # without the sign that PyTorch's own leaves to zeros
    assert torch.equal(rectify(features).view(torch.int16), expected.view(torch.int16))
