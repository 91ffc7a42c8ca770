"""Residual networks as plain chains of convolutions: exact serialisation (SRN).

What enters a basic block is never negative, so it passes a ReLU unharmed. The first convolution of a block therefore
carries it along in channels of its own, next to its filters, and the second one takes in both: the shortcut becomes
some more input channels, and the sum the one that every convolution computes anyway. Batch norms are folded into the
convolutions before, so the chain has none, and each of its filters can be pruned, those that carry along included.

The chain costs about twice the residual network's MACs. State reductions against the residual network
(:func:`recognizers.costs.count_cost` counts both).
"""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from recognizers.errors import ConfigurationError
from recognizers.execution.convolution import folded
from recognizers.zoo.registry import register_architecture
from recognizers.zoo.resnet import (
    CIFAR_WIDTHS,
    WIDE_WIDTHS,
    BasicBlock,
    PaddedShortcut,
    ResNet,
    block_shapes,
    dirac_kernel,
)

SERIAL_PREFIX = "serial_"
"""What the name of a residual network's chain starts with."""


class SerialBlock(nn.Module):
    """Two 3x3 convolutions with bias, each with a ReLU; the first passes its input on beside its own filters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = in_channels + out_channels
        self.conv1 = nn.Conv2d(in_channels, inner, kernel_size=3, stride=stride, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, out_channels, kernel_size=3, padding=1)
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H/stride, W/stride]."""
        out: Tensor = self.relu2(self.conv2(self.relu1(self.conv1(features))))
        return out


class SerialResNet(nn.Module):
    """The chain that a `ResNet` of these depths and widths becomes; modules are named as there.

    Fresh weights are random: without batch norms and shortcuts a deep chain hardly trains from them, so they are there
    to be replaced by those of :func:`serialise`.

    Args:
        classes: number of logits.
        in_channels: channels of the images.
        depths: blocks of each stage.
        widths: output channels of each stage.
    """

    def __init__(self, classes: int, in_channels: int, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        stages = block_shapes(depths, widths)
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1)
        self.relu = nn.ReLU()
        self.stages: list[str] = []
        for number, shapes in enumerate(stages, start=1):
            self.stages.append(f"layer{number}")
            self.add_module(self.stages[-1], nn.Sequential(*(SerialBlock(*shape) for shape in shapes)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        features = self.relu(self.conv1(images))
        for stage in self.stages:
            features = self.get_submodule(stage)(features)
        logits: Tensor = self.linear(self.flatten(self.pool(features)))
        return logits


@torch.no_grad()
def serialise(network: ResNet) -> SerialResNet:
    """The chain that computes what a residual network computes in evaluation mode.

    Raises:
        ConfigurationError: the network is pruned, or its shortcuts are of a kind of their own.
    """
    depths = [len(list(network.get_submodule(stage).children())) for stage in network.stages]
    widths = [len(network.get_parameter(f"{stage}.0.conv1.weight")) for stage in network.stages]
    # On the meta device nothing is drawn, and nothing is filled that would be replaced.
    with torch.device("meta"):
        serial = SerialResNet(network.linear.out_features, network.conv1.in_channels, depths, widths)
    exact = copy.deepcopy(network).cpu().double()  # folded in float64, rounded once
    state = {f"linear.{name}": value for name, value in exact.linear.state_dict().items()}
    state["conv1.weight"], state["conv1.bias"] = folded(exact.conv1, exact.bn1)
    for path, block in exact.named_modules():
        if isinstance(block, BasicBlock):
            state |= {f"{path}.{name}": value for name, value in _serial_block(block).items()}
    if any(state[name].shape != value.shape for name, value in serial.state_dict().items()):
        raise ConfigurationError("only a complete residual network can be serialised; this one is pruned: prune after")
    serial.load_state_dict({name: value.to(network.conv1.weight) for name, value in state.items()}, assign=True)
    return serial.train(network.training)


def _serial_block(block: BasicBlock) -> dict[str, Tensor]:
    """Weights of the serial block that computes what a block computes from input that is not negative."""
    weight1, bias1 = folded(block.conv1, block.bn1)
    weight2, bias2 = folded(block.conv2, block.bn2)
    shortcut, shortcut_bias = _shortcut(block)
    # The centre of a 3x3 kernel of stride 2 and padding 1 meets every second pixel: what the shortcut reads.
    passing = _centred(dirac_kernel(nn.Identity(), block.conv1.in_channels).to(weight1))
    return {
        "conv1.weight": torch.cat([passing, weight1]),
        "conv1.bias": torch.cat([bias1.new_zeros(len(passing)), bias1]),
        "conv2.weight": torch.cat([_centred(shortcut), weight2], dim=1),
        "conv2.bias": shortcut_bias + bias2,
    }


def _shortcut(block: BasicBlock) -> tuple[Tensor, Tensor]:
    """The 1x1 kernel and bias of the convolution that a shortcut is, its stride apart."""
    match list(block.shortcut) if isinstance(block.shortcut, nn.Sequential) else [block.shortcut]:
        case [(nn.Identity() | PaddedShortcut()) as shortcut]:
            kernel = dirac_kernel(shortcut, block.conv1.in_channels).to(block.conv1.weight)
            return kernel, kernel.new_zeros(len(kernel))
        case [nn.Conv2d(kernel_size=(1, 1), bias=None) as convolution]:
            return convolution.weight, convolution.weight.new_zeros(convolution.out_channels)
        case [nn.Conv2d(kernel_size=(1, 1)) as convolution, nn.BatchNorm2d() as norm]:
            return folded(convolution, norm)
    raise ConfigurationError(f"a shortcut of this kind cannot be serialised: {block.shortcut}")


def _centred(kernel: Tensor) -> Tensor:
    """A 1x1 kernel as a 3x3 one."""
    return nn.functional.pad(kernel, (1, 1, 1, 1))


_SHAPES = {
    "resnet20": ((3, 3, 3), CIFAR_WIDTHS),
    "resnet32": ((5, 5, 5), CIFAR_WIDTHS),
    "resnet44": ((7, 7, 7), CIFAR_WIDTHS),
    "resnet56": ((9, 9, 9), CIFAR_WIDTHS),
    "resnet18": ((2, 2, 2, 2), WIDE_WIDTHS),
    "resnet34": ((3, 4, 6, 3), WIDE_WIDTHS),
}
for _name, (_depths, _widths) in _SHAPES.items():
    register_architecture(f"{SERIAL_PREFIX}{_name}")(partial(SerialResNet, depths=_depths, widths=_widths))
