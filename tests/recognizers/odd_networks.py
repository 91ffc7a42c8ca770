"""Small networks for 8x8 images of one channel, each with something that is hard to run in parts or to fuse."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Odd(nn.Module):
    """Two layers to prune; subclasses say what lies between them. Images [N, 1, 8, 8] become logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, images: Tensor) -> Tensor:
        features = self.between(self.norm(self.first(images)))
        logits: Tensor = self.head(self.norm2(self.second(features)))
        return logits

    def between(self, features: Tensor) -> Tensor:
        return functional.relu(features)


class TwiceUsed(Odd):
    """A convolution and its batch norm, each called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.norm3 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def between(self, features: Tensor) -> Tensor:
        features = self.norm3(self.again(features)).relu()
        return self.norm3(self.again(features)).relu()


class MethodInPlace(Odd):
    """It overwrites a tensor that is read before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Conv2d(6, 6, 1)

    def between(self, features: Tensor) -> Tensor:
        side = self.side(features.sigmoid())
        return features.mul_(0.5) + side


class ItemAssignment(Odd):
    """It overwrites a part of a tensor."""

    def between(self, features: Tensor) -> Tensor:
        features = features.clone()
        features[:, :, 0] = 0
        return features.relu()


class DataDependent(Odd):
    """Its control flow depends on the values that it computes."""

    def between(self, features: Tensor) -> Tensor:
        return features.relu() if features.mean() > -1e6 else features


class OperatorsInPlace(Odd):
    """Assignments that look like work in place."""

    def between(self, features: Tensor) -> Tensor:
        sum_ = functional.avg_pool2d(features, 3, 1, 1)
        sum_ += features
        sum_ *= 0.5
        return functional.leaky_relu(sum_, 0.1, inplace=True) + features


class LateInPlace(Odd):
    """It overwrites what a convolution has read: good for inference, but gradients would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Conv2d(6, 6, 1)

    def between(self, features: Tensor) -> Tensor:
        side = self.side(features)
        return functional.leaky_relu(features, 0.1, inplace=True) + side


class LateInPlaceFunction(LateInPlace):
    """The same with a function that has no other form."""

    def between(self, features: Tensor) -> Tensor:
        side = self.side(features)
        return torch.relu_(features) + side


class InPlaceModules(Odd):
    """Activations that overwrite their input, as torchvision's do; one behind the second layer reads a kept tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.silu = nn.ReLU(inplace=True), nn.SiLU(inplace=True)
        self.side = nn.Conv2d(6, 6, 1)

    def between(self, features: Tensor) -> Tensor:
        return self.relu(self.side(features)) + self.silu(features)


class BareParameter(Odd):
    """Parameters and buffers that are read without a module around them."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.7]))
        self.part = nn.Module()
        self.part.register_buffer("shift", torch.tensor([0.2]))

    def between(self, features: Tensor) -> Tensor:
        return functional.relu(features * self.gain + self.part.get_buffer("shift"))


class StandardisedConvolution(nn.Conv2d):
    """Computes with other weights than it holds."""

    def forward(self, features: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(features, weight, self.bias, self.stride, self.padding)


class AnyNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm of one's own, without the check that keeps PyTorch's from being traced."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class OwnLayers(Odd):
    """Convolutions and batch norms of its own classes."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.norm2 = StandardisedConvolution(6, 8, 3, padding=1), AnyNorm(8)


class Transformer(nn.Module):
    """A module of PyTorch's that holds layers to prune inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.first(images)).relu()
        logits: Tensor = self.head(self.encoder(features.flatten(2).transpose(1, 2)).mean(1))
        return logits


class Hooked(Odd):
    """A hook changes what a convolution puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.second.register_forward_hook(lambda _module, _inputs, output: 2 * output)


class NoNorm(nn.Sequential):
    """Nothing to recalibrate."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


class FlatNorm(nn.Sequential):
    """A batch norm behind a linear layer, and one before the first convolution."""

    def __init__(self) -> None:
        super().__init__(
            nn.BatchNorm2d(1),
            nn.Conv2d(1, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(216, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Linear(12, 10),
        )


UNCUT: dict[str, Callable[[], nn.Module]] = {
    "used twice": TwiceUsed,
    "method in place": MethodInPlace,
    "item assignment": ItemAssignment,
    "data-dependent": DataDependent,
}
CUT: dict[str, Callable[[], nn.Module]] = {
    "operators in place": OperatorsInPlace,
    "in-place modules": InPlaceModules,
    "bare parameter": BareParameter,
    "no norm": NoNorm,
    "flat norm": FlatNorm,
}
UNTRAINABLE: dict[str, Callable[[], nn.Module]] = {
    "late in place": LateInPlace,
    "late in-place function": LateInPlaceFunction,
}
OTHERS: dict[str, Callable[[], nn.Module]] = {"own layers": OwnLayers, "transformer": Transformer, "hooked": Hooked}


class Bottleneck(nn.Module):
    """Three convolutions and a sum, with the input or with a projection of it."""

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        self.reduce, self.norm1 = nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner)
        self.conv, self.norm2 = nn.Conv2d(inner, inner, 3, stride, padding=1), nn.BatchNorm2d(inner)
        self.expand, self.norm3 = nn.Conv2d(inner, width, 1), nn.BatchNorm2d(width)
        if stride > 1:
            self.project, self.norm4 = nn.Conv2d(width, width, 1, stride), nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        inner = functional.relu(self.norm2(self.conv(functional.relu(self.norm1(self.reduce(features))))))
        shortcut = self.norm4(self.project(features)) if hasattr(self, "project") else features
        return functional.relu(self.norm3(self.expand(inner)) + shortcut)


class Residual(nn.Module):
    """Blocks of little work whose sums take much memory."""

    def __init__(self, width: int = 24, inner: int = 4) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Bottleneck(width, inner, stride) for stride in (1, 1, 2, 1)))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(functional.relu(self.norm(self.stem(images))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits
