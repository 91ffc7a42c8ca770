"""Architectures by name: the project's own, and every torchvision classification model."""

from recognizers.zoo import convnet, resnet, serial, vgg  # noqa: F401  (registers the architectures)
from recognizers.zoo.registry import available, create, register_architecture, torchvision_models

__all__ = ["available", "create", "register_architecture", "torchvision_models"]
