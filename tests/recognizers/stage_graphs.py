"""Small networks of a stem and a stage, for every way of putting norms, sums and ReLUs behind convolutions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Graph(nn.Module):
    """Two convolutions of the same shape with batch norms, and whatever is done with them."""

    def __init__(self, compute: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.relu, self.relu6, self.pool = nn.ReLU(), nn.ReLU6(), nn.MaxPool2d(2)
        self._compute = compute

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._compute(self, self.stem(images))


def broadcast_sum(g: Graph, x: torch.Tensor) -> torch.Tensor:
    return g.conv(x) + functional.adaptive_avg_pool2d(x, 1)


def two_users(g: Graph, x: torch.Tensor) -> torch.Tensor:
    inner = g.norm(g.conv(x))
    return g.relu(inner) * inner


def doubled(g: Graph, x: torch.Tensor) -> torch.Tensor:
    inner = g.conv(x)
    return inner + inner


def late_norm(g: Graph, x: torch.Tensor) -> torch.Tensor:
    inner = g.conv(x)
    return g.norm(inner) - inner


CONVOLUTION, POOL = "FusedConvolution", "MaximumPool"
# What is computed, and what must be left of it behind the stem once it is fused.
GRAPHS: dict[str, tuple[Callable[[Any, torch.Tensor], torch.Tensor], list[str]]] = {
    "convolution": (lambda g, x: g.conv(x), [CONVOLUTION]),
    "norm": (lambda g, x: g.norm(g.conv(x)), [CONVOLUTION]),
    "relu": (lambda g, x: g.relu(g.conv(x)), [CONVOLUTION]),
    "norm, relu": (lambda g, x: g.relu(g.norm(g.conv(x))), [CONVOLUTION]),
    "relu as function": (lambda g, x: functional.relu(g.norm(g.conv(x))), [CONVOLUTION]),
    "relu as another function": (lambda g, x: torch.relu(g.norm(g.conv(x))), [CONVOLUTION]),
    "relu as method": (lambda g, x: g.norm(g.conv(x)).relu(), [CONVOLUTION]),
    "another activation": (lambda g, x: g.relu6(g.norm(g.conv(x))), [CONVOLUTION, "ReLU6"]),
    "relu before the norm": (lambda g, x: g.norm(g.relu(g.conv(x))), [CONVOLUTION, "BatchNorm2d"]),
    "norm, sum": (lambda g, x: g.norm(g.conv(x)) + x, [CONVOLUTION]),
    "norm, sum, relu": (lambda g, x: g.relu(g.norm(g.conv(x)) + x), [CONVOLUTION]),
    "sum the other way round": (lambda g, x: g.relu(x + g.norm(g.conv(x))), [CONVOLUTION]),
    "sum as function": (lambda g, x: torch.add(x, g.norm(g.conv(x))), [CONVOLUTION]),
    "norm, relu, sum": (lambda g, x: g.relu(g.norm(g.conv(x))) + x, [CONVOLUTION, "add"]),
    "both summands": (lambda g, x: g.relu(g.norm(g.conv(x)) + g.norm2(g.conv2(x))), [CONVOLUTION] * 2),
    "both summands, rectified": (
        lambda g, x: g.relu(g.norm(g.conv(x)).relu() + g.norm2(g.conv2(x)).relu()),
        [CONVOLUTION, CONVOLUTION, "add", "ReLU"],
    ),
    "one behind the other": (lambda g, x: g.relu(g.conv2(g.relu(g.norm(g.conv(x)))) + x), [CONVOLUTION] * 2),
    "summand read afterwards": (lambda g, x: g.relu(g.conv2(g.conv(x)) + x) * x, [CONVOLUTION] * 2 + ["mul"]),
    "view of the summand read afterwards": (
        lambda g, x: g.relu(g.conv2(g.conv(x)) + x) - x.transpose(2, 3),
        [CONVOLUTION, CONVOLUTION, "transpose", "sub"],
    ),
    "twice itself": (doubled, [CONVOLUTION, "add"]),
    "weighted sum": (lambda g, x: torch.add(g.conv(x), x, alpha=2), [CONVOLUTION, "add"]),
    "sum with a number": (lambda g, x: g.relu(g.conv(x) + 1.5), [CONVOLUTION, "add", "ReLU"]),
    "difference": (lambda g, x: g.relu(x - g.conv(x)), [CONVOLUTION, "sub", "ReLU"]),
    "broadcast sum": (broadcast_sum, [CONVOLUTION, "adaptive_avg_pool2d", "add"]),
    "relu, pool": (lambda g, x: g.pool(g.relu(g.norm(g.conv(x)))), [CONVOLUTION, POOL]),
    "norm, pool": (lambda g, x: g.pool(g.norm(g.conv(x))), [CONVOLUTION, POOL]),
    "one pool for both": (
        lambda g, x: g.pool(g.relu(g.conv(x))) + g.pool(g.conv2(x)),
        [CONVOLUTION, POOL, CONVOLUTION, POOL, "add"],
    ),
    "two users of the norm": (two_users, [CONVOLUTION, "ReLU", "mul"]),
    "two users of the convolution": (late_norm, [CONVOLUTION, "BatchNorm2d", "sub"]),
}
