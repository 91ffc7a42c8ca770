"""A small convolutional network for small images: trained in seconds, pruned in minutes."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from recognizers.errors import ConfigurationError
from recognizers.zoo.registry import register_architecture


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, batch norm and ReLU, global average pooling, one linear layer.

    The first two blocks end in a 2x2 max-pool, so images are at least 4x4. Three blocks of 32, 64 and 64 filters
    (160 units) suit digits (8x8) and Fashion-MNIST (28x28).
    """

    def __init__(self, classes: int, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ConfigurationError(f"convnet needs at least one width, each >= 1, got {list(widths)}")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for index, width in enumerate(widths, start=1):
            layers[f"conv{index}"] = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
            layers[f"bn{index}"] = nn.BatchNorm2d(width)
            layers[f"relu{index}"] = nn.ReLU()
            if index <= 2:
                layers[f"pool{index}"] = nn.MaxPool2d(2)
            channels = width
        self.features = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        features = self.features(images)  # [N, widths[-1], H/4, W/4]
        logits: torch.Tensor = self.linear(self.flatten(self.pool(features)))
        return logits


@register_architecture("convnet")
def convnet(*, classes: int, in_channels: int, widths: Sequence[int] = (32, 64, 64)) -> ConvNet:
    """Build a `ConvNet`; ``widths`` are the numbers of filters of its blocks."""
    return ConvNet(classes, in_channels, widths)
