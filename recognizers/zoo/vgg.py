"""VGG-16 with batch norm in its CIFAR form (Simonyan & Zisserman 2015, with one linear layer as classifier)."""

import torch
from torch import nn

from recognizers.zoo.registry import register_architecture

# Configuration D of the paper; 0 is a 2x2 max-pool.
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class VGG(nn.Module):
    """Thirteen 3x3 convolutions with batch norm and ReLU, five max-pools, one linear layer.

    ``features`` is numbered as in torchvision's ``vgg16_bn``, so that model's convolution weights fit. Images are at
    least 32x32; larger ones are averaged before the classifier.
    """

    def __init__(self, classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in _VGG16:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        features = self.features(images)  # [N, 512, H/32, W/32]
        logits: torch.Tensor = self.classifier(self.flatten(self.pool(features)))
        return logits


@register_architecture("vgg16_bn")
def vgg16_bn(*, classes: int, in_channels: int) -> VGG:
    """Build VGG-16 with batch norm for images of 32x32 and more."""
    return VGG(classes, in_channels)
