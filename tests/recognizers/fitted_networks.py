"""Small networks for 8x8 images of one channel whose layers read pruned units in all the usual ways."""

from collections.abc import Callable
from typing import Any

import torch
from reference import few
from torch import Tensor, nn
from torch.nn import functional

from recognizers.baseline import Baseline
from recognizers.data import Normalization, Splits

Build = Callable[[], nn.Module]


def make_baseline(
    digits: tuple[Splits, Normalization],
    enliven: Callable[..., nn.Module],
    build: Build,
    images: int = 120,
    **arguments: Any,
) -> Baseline:
    """A baseline of few images around a network whose statistics mean something."""
    splits, normalization = digits
    part = few(splits, images)
    torch.manual_seed(0)
    network = enliven(build(), normalization.normalize(part.train.images))
    return Baseline(network, part, normalization, device=torch.device("cpu"), **{"batch_size": 60, **arguments})


@torch.no_grad()
def inputs_and_outputs(network: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What each module reads, before any ZeroOut, and what it puts out."""
    inputs, seen = dict[str, Tensor](), dict[str, tuple[Tensor, Tensor]]()
    handles = []
    for path, module in network.named_modules():
        handles.append(
            module.register_forward_pre_hook(lambda _, args, path=path: inputs.__setitem__(path, args[0]), prepend=True)
        )
        handles.append(
            module.register_forward_hook(
                lambda _, __, output, path=path: seen.__setitem__(path, (inputs[path], output))
            )
        )
    network(images)
    for handle in handles:
        handle.remove()
    return seen


def columns_of(layer: nn.Module, features: Tensor) -> Tensor:
    """What a layer reads at each place, ``[N, d]`` float64."""
    if isinstance(layer, nn.Linear):
        return features.double()
    assert isinstance(layer, nn.Conv2d)
    padding: Any = layer.padding
    return (
        functional.unfold(features, layer.kernel_size, layer.dilation, padding, layer.stride).mT.flatten(0, 1).double()
    )


def rows_of(features: Tensor) -> Tensor:
    """Values at each place, ``[N, C]`` float64."""
    return (features if features.dim() == 2 else features.permute(0, 2, 3, 1).flatten(0, 2)).double()


class Chain(nn.Sequential):
    """As VGG: convolutions with batch norm, then linear layers that read flattened maps."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 10)),
        )


class NoNorm(nn.Sequential):
    """No batch norm; one layer has no bias, so it has no offset at all."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 2, padding=1, bias=False), nn.ReLU()),
            *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)),
        )


class Padded(nn.Module):
    """A shortcut without parameters: every other pixel, and zeros for new channels."""

    def forward(self, features: Tensor) -> Tensor:
        return functional.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))


class Block(nn.Module):
    def __init__(self, width: int, inner: int, shortcut: nn.Module, stride: int = 1, out: int = 6) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 3, stride, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(features)))))
        return functional.relu(inner + self.shortcut(features))


class Residual(nn.Module):
    """Blocks whose shortcut is the identity, a projection, and padded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.one = Block(6, 7, nn.Identity())
        self.two = Block(6, 7, nn.Sequential(nn.Conv2d(6, 6, 1, 2, bias=False), nn.BatchNorm2d(6)), stride=2)
        self.three = Block(6, 7, Padded(), stride=2, out=8)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.three(self.two(self.one(functional.relu(self.norm(self.stem(images))))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class Dense(nn.Module):
    """As DenseNet: layers that read all before them, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.norm2 = nn.Conv2d(5, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv3, self.norm3 = nn.Conv2d(9, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        first = self.norm1(self.conv1(images)).relu()
        both = torch.cat([first, self.norm2(self.conv2(first)).relu()], 1)
        logits: Tensor = self.head(self.norm3(self.conv3(both)).relu().mean((2, 3)))
        return logits


class Repeated(nn.Module):
    """A concatenation hands on some units twice, and others once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv3, self.norm3 = nn.Conv2d(13, 6, 1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        first = self.norm1(self.conv1(images)).relu()
        second = self.norm2(self.conv2(first)).relu()
        both = torch.cat([first, functional.max_pool2d(first, 3, 1, 1), second], 1)
        logits: Tensor = self.head(self.norm3(self.conv3(both)).relu().mean((2, 3)))
        return logits


class Grouped(nn.Module):
    """A grouped and a depthwise convolution; the depthwise one is never fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.deep, self.norm3 = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.BatchNorm2d(8)
        self.point, self.norm4 = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm2(self.grouped(functional.relu(self.norm1(self.stem(images))))).relu()
        features = self.norm4(self.point(functional.relu(self.norm3(self.deep(features)))))
        logits: Tensor = self.head(functional.relu(features).mean((2, 3)))
        return logits


NETWORKS: dict[str, Build] = {
    "chain": Chain,
    "no norm": NoNorm,
    "residual": Residual,
    "dense": Dense,
    "repeated": Repeated,
    "grouped": Grouped,
}

SITES: dict[str, list[tuple[str, str | None, str | None]]] = {
    "chain": [("0", "1", None), ("4", "5", None), ("9", None, None), ("11", None, None)],
    "no norm": [("0", None, None), ("2", None, None), ("6", None, None)],
    "residual": [
        ("stem", "norm", None),
        ("one.conv1", "one.norm1", None),
        ("one.conv2", "one.norm2", "one.shortcut"),
        ("two.conv1", "two.norm1", None),
        ("two.conv2", "two.norm2", "two.shortcut"),
        ("two.shortcut.0", "two.shortcut.1", None),  # fewer weights than what it meets
        ("three.conv1", "three.norm1", None),
        ("three.conv2", "three.norm2", "three.shortcut"),
        ("head", None, None),
    ],
    "dense": [("conv1", "norm1", None), ("conv2", "norm2", None), ("conv3", "norm3", None), ("head", None, None)],
    "repeated": [("conv1", "norm1", None), ("conv2", "norm2", None), ("conv3", "norm3", None), ("head", None, None)],
    "grouped": [("stem", "norm1", None), ("grouped", "norm2", None), ("point", "norm4", None), ("head", None, None)],
}
"""Of each layer that can be fitted its path, that of the batch norm behind it, and that of the module whose output is
added to it, or None."""


class EveryPlace(nn.Module):
    """Linear layers that read every place of a map, as in ConvNeXt; they are not fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.wide, self.narrow = nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.stem(images)).relu().permute(0, 2, 3, 1)
        features = self.narrow(functional.relu(self.wide(features)))
        logits: Tensor = self.head(features.mean((1, 2)))
        return logits
