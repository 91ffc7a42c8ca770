"""Residual networks for CIFAR-sized images (He et al. 2016, "Deep Residual Learning for Image Recognition").

Two families share one class: the paper's CIFAR networks of 6n+2 layers (`resnet20` ... `resnet56`, three stages of 16,
32, 64 channels, parameter-free shortcuts), and its ImageNet networks `resnet18` and `resnet34` (four stages of 64 to
512 channels, projection shortcuts) with the stem that is usual on CIFAR: 3x3, stride 1, no max-pool.

With ``skip_convolutions`` every skip has a convolution, so no sum ties the channels of one block to those of another.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from recognizers.errors import ConfigurationError
from recognizers.zoo.registry import register_architecture

# (input channels, output channels, stride) -> shortcut of a block that changes its shape
MakeShortcut = Callable[[int, int, int], nn.Module]

CIFAR_WIDTHS = (16, 32, 64)
WIDE_WIDTHS = (64, 128, 256, 512)


class PaddedShortcut(nn.Module):
    """Shortcut of option A: every ``stride``-th pixel, new channels filled with zeros. It has no parameters.

    The padding puts input channel ``i`` at a fixed place among the output channels, so the channels that it joins
    cannot be sliced independently of each other; units of these networks are the inner channels of the blocks,
    unless skip convolutions take the place of such shortcuts.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, ceil(H/stride), ceil(W/stride)]."""
        sampled = features[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(sampled, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Arguments as shown when the module is printed."""
        return f"zeros={self.before}+{self.after}, stride={self.stride}"


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Shortcut of option B: 1x1 convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def dirac_kernel(shortcut: nn.Identity | PaddedShortcut, channels: int) -> torch.Tensor:
    """The 1x1 kernel, ``[out, in, 1, 1]``, that computes what a shortcut without parameters does to ``channels``."""
    padding = (shortcut.before, shortcut.after) if isinstance(shortcut, PaddedShortcut) else (0, 0)
    return nn.functional.pad(torch.eye(channels), (0, 0, *padding))[:, :, None, None]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to a shortcut; ReLU after the first and after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, make_shortcut: MakeShortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        keeps_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if keeps_shape else make_shortcut(in_channels, out_channels, stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H/stride, W/stride]."""
        inner = self.relu1(self.bn1(self.conv1(features)))
        inner = self.bn2(self.conv2(inner))
        out: torch.Tensor = self.relu2(inner + self.shortcut(features))
        return out


def block_shapes(depths: Sequence[int], widths: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """For each stage the input channels, output channels and stride of its blocks.

    Raises:
        ConfigurationError: there is no stage, or one without blocks or channels.
    """
    if not depths or len(depths) != len(widths) or min(*depths, *widths) < 1:
        raise ConfigurationError(
            f"residual networks need as many widths as depths, each >= 1, got {list(depths)} and {list(widths)}"
        )
    stages, channels = [], widths[0]
    for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        stages.append([(channels, width, 2 if number else 1)] + [(width, width, 1)] * (depth - 1))
        channels = width
    return stages


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks (``layer1``, ``layer2``, ...), global average pooling, one linear layer.

    Every stage but the first starts by halving height and width. Images may have any size.

    Args:
        classes: number of logits.
        in_channels: channels of the images.
        depths: blocks of each stage.
        widths: output channels of each stage.
        make_shortcut: makes the shortcut of a block that changes its shape.
        skip_convolutions: put a 1x1 convolution, the identity at first, on every skip that has none.
    """

    def __init__(
        self,
        classes: int,
        in_channels: int,
        depths: Sequence[int],
        widths: Sequence[int],
        make_shortcut: MakeShortcut,
        *,
        skip_convolutions: bool = False,
    ) -> None:
        super().__init__()
        stages = block_shapes(depths, widths)
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages: list[str] = []
        for number, shapes in enumerate(stages, start=1):
            self.stages.append(f"layer{number}")
            self.add_module(self.stages[-1], nn.Sequential(*(BasicBlock(*shape, make_shortcut) for shape in shapes)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if skip_convolutions:
            _convolve_skips(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        features = self.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            features = self.get_submodule(stage)(features)
        logits: torch.Tensor = self.linear(self.flatten(self.pool(features)))
        return logits


def add_skip_convolutions(network: ResNet) -> ResNet:
    """A copy of a residual network with a convolution on each skip that has none; it computes the same.

    The convolution (1x1, without bias) starts as what is there now: the identity, or the shifted channels of a
    `PaddedShortcut`. Projection shortcuts stay as they are.
    """
    network = copy.deepcopy(network)
    _convolve_skips(network)
    return network


def _convolve_skips(network: ResNet) -> None:
    for block in network.modules():
        if not isinstance(block, BasicBlock) or not isinstance(block.shortcut, nn.Identity | PaddedShortcut):
            continue
        kernel = dirac_kernel(block.shortcut, block.conv1.in_channels).to(block.conv1.weight)
        # On the meta device no random start is drawn, so the other weights of a seeded network stay what they were.
        convolution = nn.Conv2d(
            block.conv1.in_channels, len(kernel), kernel_size=1, stride=block.conv1.stride[0], bias=False, device="meta"
        )
        convolution.weight = nn.Parameter(kernel)
        block.shortcut = convolution.train(block.training)


def _cifar(classes: int, in_channels: int, depth: int, skip_convolutions: bool) -> ResNet:
    return ResNet(classes, in_channels, (depth,) * 3, CIFAR_WIDTHS, PaddedShortcut, skip_convolutions=skip_convolutions)


def _wide(classes: int, in_channels: int, depths: Sequence[int], skip_convolutions: bool) -> ResNet:
    return ResNet(classes, in_channels, depths, WIDE_WIDTHS, projection_shortcut, skip_convolutions=skip_convolutions)


@register_architecture("resnet20")
def resnet20(*, classes: int, in_channels: int, skip_convolutions: bool = False) -> ResNet:
    """Build the CIFAR network of 20 layers (three blocks a stage)."""
    return _cifar(classes, in_channels, 3, skip_convolutions)


@register_architecture("resnet32")
def resnet32(*, classes: int, in_channels: int, skip_convolutions: bool = False) -> ResNet:
    """Build the CIFAR network of 32 layers (five blocks a stage)."""
    return _cifar(classes, in_channels, 5, skip_convolutions)


@register_architecture("resnet44")
def resnet44(*, classes: int, in_channels: int, skip_convolutions: bool = False) -> ResNet:
    """Build the CIFAR network of 44 layers (seven blocks a stage)."""
    return _cifar(classes, in_channels, 7, skip_convolutions)


@register_architecture("resnet56")
def resnet56(*, classes: int, in_channels: int, skip_convolutions: bool = False) -> ResNet:
    """Build the CIFAR network of 56 layers (nine blocks a stage)."""
    return _cifar(classes, in_channels, 9, skip_convolutions)


@register_architecture("resnet18")
def resnet18(*, classes: int, in_channels: int, skip_convolutions: bool = False) -> ResNet:
    """Build ResNet-18 with the CIFAR stem (two blocks in each of four stages)."""
    return _wide(classes, in_channels, (2, 2, 2, 2), skip_convolutions)


@register_architecture("resnet34")
def resnet34(*, classes: int, in_channels: int, skip_convolutions: bool = False) -> ResNet:
    """Build ResNet-34 with the CIFAR stem (3, 4, 6 and 3 blocks in four stages)."""
    return _wide(classes, in_channels, (3, 4, 6, 3), skip_convolutions)
