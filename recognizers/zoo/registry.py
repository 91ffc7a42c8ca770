"""The table of architectures, and how a name becomes a network."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from recognizers.errors import ConfigurationError, UnknownNameError
from recognizers.registry import Registry
from recognizers.torchvision_compat import torchvision

TORCHVISION_PREFIX = "torchvision:"

Builder = Callable[..., nn.Module]
"""From ``classes``, ``in_channels`` and arguments of its own to a network."""

_ARCHITECTURES = Registry[Builder]("architecture")


def register_architecture(name: str) -> Callable[[Builder], Builder]:
    """Register the decorated builder under ``name``.

    The builder is called as ``builder(classes=..., in_channels=..., **arguments)`` and returns a network that maps
    images [N, in_channels, H, W] to logits [N, classes].

    Raises:
        ConfigurationError: the name is taken or starts with ``torchvision:``.
    """
    if name.startswith(TORCHVISION_PREFIX):
        raise ConfigurationError(f"architecture {name!r}: names with {TORCHVISION_PREFIX} are taken by torchvision's")
    return _ARCHITECTURES.register(name)


def available() -> list[str]:
    """Names of the registered architectures, sorted. Those of torchvision come beside them."""
    return sorted(_ARCHITECTURES)


def torchvision_models() -> list[str]:
    """Names of torchvision's classification models, sorted, without the ``torchvision:`` prefix."""
    return sorted(torchvision.models.list_models(module=torchvision.models))


def create(name: str, *, classes: int, in_channels: int, **arguments: Any) -> nn.Module:
    """Build a network with fresh random weights.

    Args:
        name: a registered architecture; else a torchvision classification model (``mobilenet_v2``). Where both have
            the name, ``torchvision:resnet18`` is torchvision's.
        classes: number of logits.
        in_channels: channels of the images.
        arguments: passed on to the builder, e.g. ``widths`` of ``convnet``.

    Raises:
        UnknownNameError: no such architecture.
        ConfigurationError: the architecture does not take these arguments.
    """
    if classes < 1 or in_channels < 1:
        raise ConfigurationError(f"a network needs classes >= 1 and in_channels >= 1, got {classes} and {in_channels}")
    if name in _ARCHITECTURES:
        builder = _ARCHITECTURES[name]
        try:
            inspect.signature(builder).bind(classes=classes, in_channels=in_channels, **arguments)
        except TypeError as error:
            raise ConfigurationError(f"architecture {name!r}: {error}") from error
        return builder(classes=classes, in_channels=in_channels, **arguments)
    models = torchvision_models()
    model = name.removeprefix(TORCHVISION_PREFIX)
    if model not in models:
        known = [*_ARCHITECTURES, *models, *(TORCHVISION_PREFIX + other for other in models)]
        raise UnknownNameError("architecture", name, known)
    return _create_torchvision(model, classes, in_channels, arguments)


def _create_torchvision(model: str, classes: int, in_channels: int, arguments: dict[str, Any]) -> nn.Module:
    if model in ("googlenet", "inception_v3"):
        # Auxiliary heads return tuples while training; init_weights says out loud what is the default anyway.
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    try:
        network: nn.Module = torchvision.models.get_model(model, weights=None, num_classes=classes, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"torchvision model {model!r}: {error}") from error
    _adapt_input(network, in_channels)
    return network


def _adapt_input(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution, in place, if it takes another number of channels."""
    path, first = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == in_channels:
        return
    parent, _, attribute = path.rpartition(".")
    replacement = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]  # annotated as tuple[int, ...] on the instance
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        first.dilation,  # type: ignore[arg-type]
        bias=first.bias is not None,
        padding_mode=first.padding_mode,
    )
    setattr(network.get_submodule(parent), attribute, replacement)
