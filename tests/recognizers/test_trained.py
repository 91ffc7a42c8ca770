"""Stages for training: outputs, gradients and statistics are those of the network itself."""

import copy
from collections.abc import Callable

import odd_networks
import pytest
import torch
from stage_graphs import GRAPHS, Graph
from torch import Tensor, nn
from torch.nn import functional

from recognizers import zoo
from recognizers.compaction import make_plain
from recognizers.execution.pairing import Layout, pair
from recognizers.execution.stages import cut, trains_as_it_infers
from recognizers.execution.trained import rectified, trained

Compute = Callable[[nn.Module, Tensor], Tensor]


def _images(size: int = 8, batch: int = 6, channels: int = 3) -> Tensor:
    images = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))
    return images.to(memory_format=torch.channels_last)


def _chain(network: nn.Module, images: Tensor) -> nn.Sequential:
    stages = cut(network.eval(), images[:2])
    network.train()
    layout = Layout()
    return nn.Sequential(*(trained(stage.graph, network, layout) for stage in stages if stage.graph is not None))


def _assert_same(network: nn.Module, images: Tensor, tolerance: float) -> None:
    """Run it forth and back as it is, and by stages."""
    other = copy.deepcopy(network)
    chain = _chain(network, images)
    other.train()
    actual, expected = chain(images), other(images)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    gradient = torch.randn_like(expected)
    actual.backward(gradient)
    expected.backward(gradient)
    for (name, one), right in zip(network.named_parameters(), other.parameters(), strict=True):
        if right.grad is None:
            assert one.grad is None, name
            continue
        assert one.grad is not None
        close = tolerance * max(1.0, float(right.grad.abs().max()))
        torch.testing.assert_close(one.grad, right.grad, rtol=tolerance, atol=close, msg=name)
    for one, right in zip(network.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", [6, 5])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, batch: int) -> None:
    torch.manual_seed(0)
    compute: Compute = GRAPHS[name][0]
    network = Graph(lambda graph, features: compute(graph, features).flatten(1)).double()
    _assert_same(network, _images(batch=batch).double(), 1e-9)


@pytest.mark.parametrize("architecture", ["vgg16_bn", "resnet20", "resnet18", "densenet121"])
def test_architectures(architecture: str) -> None:
    torch.manual_seed(0)
    network = make_plain(zoo.create(architecture, classes=10, in_channels=3)).double()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    _assert_same(network, _images(size=32, batch=8).double(), 1e-7)


def test_images_are_paired() -> None:
    network = make_plain(zoo.create("resnet20", classes=10, in_channels=3))
    chain = _chain(network, _images(size=32))
    assert any(node.target is pair for stage in chain for node in stage.graph.nodes)  # type: ignore[union-attr]
    assert any(node.target is rectified for stage in chain for node in stage.graph.nodes)  # type: ignore[union-attr]


def test_dropout_drops() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)).train()
    outputs = _chain(network, _images())(_images())
    assert (outputs == 0).float().mean() > 0.6  # half of them by the ReLU, half of the rest by the dropout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_relus_and_their_gradients(dtype: torch.dtype) -> None:
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, torch.inf])]).to(dtype)
    one, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    gradient = torch.randn(values.shape).to(dtype)
    before = one * 1.0
    result = rectified(before)
    expected = other.relu()
    assert torch.equal(result, expected)
    assert result.data_ptr() == before.data_ptr()
    result.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


class Moody(nn.Module):
    """It does in training what it does not in evaluation."""

    def __init__(self, mood: str) -> None:
        super().__init__()
        self.convolution, self.norm, self.mood = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), mood

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.convolution(images)).relu()
        if self.mood == "drops":
            features = functional.dropout(features, 0.5, self.training)
        if self.mood == "branches" and self.training:
            features = 2 * features
        if self.mood == "raises" and self.training:
            raise ValueError("it cannot be trained")
        return features.flatten(1)


@pytest.mark.parametrize("mood", ["drops", "branches", "raises"])
def test_networks_that_train_otherwise_are_found(mood: str) -> None:
    network = Moody(mood).eval()
    assert not trains_as_it_infers(network)
    assert not network.training


def test_networks_that_train_alike_are_found() -> None:
    assert trains_as_it_infers(Moody("even"))
    assert all(
        trains_as_it_infers(make_plain(zoo.create(name, classes=10, in_channels=3)))
        for name in ("vgg16_bn", "resnet56", "densenet121", "convnet")
    )
    assert not trains_as_it_infers(odd_networks.DataDependent())
