"""Residual networks for CIFAR-sized images (He et al. 2016, "Deep Residual Learning for Image Recognition").

Two families share one class: the paper's CIFAR networks of 6n+2 layers (`resnet20` ... `resnet56`, three stages of 16,
32, 64 channels, parameter-free shortcuts), and its ImageNet networks `resnet18` and `resnet34` (four stages of 64 to
512 channels, projection shortcuts) with the stem that is usual on CIFAR: 3x3, stride 1, no max-pool.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from recognizers.zoo.registry import register_architecture

# (input channels, output channels, stride) -> shortcut of a block that changes its shape
MakeShortcut = Callable[[int, int, int], nn.Module]


class PaddedShortcut(nn.Module):
    """Shortcut of option A: every ``stride``-th pixel, new channels filled with zeros. It has no parameters.

    The padding puts input channel ``i`` at a fixed place among the output channels, so the channels that it joins
    cannot be sliced independently of each other; units of these networks are the inner channels of the blocks.
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


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks (``layer1``, ``layer2``, ...), global average pooling, one linear layer.

    Every stage but the first starts by halving height and width. Images may have any size.
    """

    def __init__(
        self, classes: int, in_channels: int, depths: Sequence[int], widths: Sequence[int], make_shortcut: MakeShortcut
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages: list[str] = []
        channels = widths[0]
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            blocks = []
            for position in range(depth):
                stride = 2 if number > 1 and position == 0 else 1
                blocks.append(BasicBlock(channels, width, stride, make_shortcut))
                channels = width
            self.stages.append(f"layer{number}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        features = self.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            features = self.get_submodule(stage)(features)
        logits: torch.Tensor = self.linear(self.flatten(self.pool(features)))
        return logits


def _cifar(classes: int, in_channels: int, depth: int) -> ResNet:
    return ResNet(classes, in_channels, (depth,) * 3, (16, 32, 64), PaddedShortcut)


def _wide(classes: int, in_channels: int, depths: Sequence[int]) -> ResNet:
    return ResNet(classes, in_channels, depths, (64, 128, 256, 512), projection_shortcut)


@register_architecture("resnet20")
def resnet20(*, classes: int, in_channels: int) -> ResNet:
    """Build the CIFAR network of 20 layers (three blocks a stage)."""
    return _cifar(classes, in_channels, 3)


@register_architecture("resnet32")
def resnet32(*, classes: int, in_channels: int) -> ResNet:
    """Build the CIFAR network of 32 layers (five blocks a stage)."""
    return _cifar(classes, in_channels, 5)


@register_architecture("resnet44")
def resnet44(*, classes: int, in_channels: int) -> ResNet:
    """Build the CIFAR network of 44 layers (seven blocks a stage)."""
    return _cifar(classes, in_channels, 7)


@register_architecture("resnet56")
def resnet56(*, classes: int, in_channels: int) -> ResNet:
    """Build the CIFAR network of 56 layers (nine blocks a stage)."""
    return _cifar(classes, in_channels, 9)


@register_architecture("resnet18")
def resnet18(*, classes: int, in_channels: int) -> ResNet:
    """Build ResNet-18 with the CIFAR stem (two blocks in each of four stages)."""
    return _wide(classes, in_channels, (2, 2, 2, 2))


@register_architecture("resnet34")
def resnet34(*, classes: int, in_channels: int) -> ResNet:
    """Build ResNet-34 with the CIFAR stem (3, 4, 6 and 3 blocks in four stages)."""
    return _wide(classes, in_channels, (3, 4, 6, 3))
