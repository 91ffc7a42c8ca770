"""The unit table of small networks, worked out by hand; and what cannot be pruned is left out with a reason."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from recognizers import zoo
from recognizers.costs import CostModel, count_cost
from recognizers.dependency import build_unit_table
from recognizers.errors import ConfigurationError


def _conv(inputs: int, outputs: int, size: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups)


class Headed(nn.Module):
    """Ends in average pooling and a linear layer of 5 outputs, ``head``."""

    def __init__(self, channels: int, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.head = nn.Linear(channels, 5)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features.mean((2, 3)))


class Residual(Headed):
    def __init__(self) -> None:
        super().__init__(4, a=_conv(3, 4), b=_conv(4, 6), c=_conv(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        return self.classify((x + self.c(self.b(x).relu())).relu())


class Concatenation(Headed):
    def __init__(self) -> None:
        super().__init__(5, a=_conv(3, 3), b=_conv(3, 4), c=_conv(7, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.c(torch.cat([self.a(x), self.b(x)], 1)).relu())


class DenseConnection(Headed):
    """The features of ``a`` are summed with those of ``b`` and concatenated with those of ``c``."""

    def __init__(self) -> None:
        super().__init__(7, a=_conv(3, 4), b=_conv(3, 4), c=_conv(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = (self.a(x) + self.b(x)).relu()
        return self.classify(torch.cat([self.c(total).relu(), total], 1))


class Grouped(Headed):
    def __init__(self) -> None:
        super().__init__(6, a=_conv(3, 8), g=_conv(8, 6, groups=2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.g(self.a(x).relu()).relu())


class Depthwise(Headed):
    def __init__(self) -> None:
        super().__init__(5, a=_conv(3, 4), d=_conv(4, 4, groups=4), n=nn.BatchNorm2d(4), p=_conv(4, 5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.p(self.n(self.d(self.a(x).relu()))).relu())


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool = _conv(3, 3), nn.AdaptiveAvgPool2d(2)
        self.f, self.head = nn.Linear(12, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.f(self.pool(self.a(x)).flatten(1)).relu())


class SqueezeExcitation(Headed):
    def __init__(self) -> None:
        super().__init__(4, a=_conv(3, 4), r=_conv(4, 2, 1), e=_conv(2, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        gate = self.e(self.r(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.classify(x * gate)


class PerChannelActivation(Headed):
    def __init__(self) -> None:
        super().__init__(4, a=_conv(3, 4), own=nn.PReLU(4), b=_conv(4, 4), common=nn.PReLU(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.common(self.b(self.own(self.a(x)))))


class SigmoidAfterNorm(Headed):
    """A zero before the sigmoid would become a half: the place of the ZeroOut matters."""

    def __init__(self) -> None:
        super().__init__(5, a=_conv(3, 4), n=nn.BatchNorm2d(4, affine=False), b=_conv(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.b(self.n(self.a(x)).sigmoid()).relu())


class Unused(Flattened):
    def __init__(self) -> None:
        super().__init__()
        self.never, self.never_either = _conv(3, 3), nn.BatchNorm2d(7)


class CalledTwice(Headed):
    def __init__(self) -> None:
        super().__init__(4, a=_conv(3, 4), b=_conv(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.b(self.b(self.a(x)).relu()).relu())


class SideOutput(Headed):
    """``b`` is a second output; ``a`` feeds both."""

    def __init__(self) -> None:
        super().__init__(4, a=_conv(3, 4), b=_conv(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        return torch.cat([self.classify(x), self.b(x).mean((2, 3))], 1)


class BareParameter(Headed):
    def __init__(self) -> None:
        super().__init__(4, a=_conv(3, 4), b=_conv(4, 4))
        self.scale = nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.b(self.a(x) * self.scale).relu())


class Normalised(Headed):
    """A normalisation over channels between ``a`` and ``b``."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(5, a=_conv(3, 4), n=norm, b=_conv(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.b(self.n(self.a(x))).relu())


class NormalisedBackwards(Headed):
    """The tracer does not see that ``n`` meets the channels in reverse; a fresh ``n`` treats all of them alike."""

    def __init__(self) -> None:
        super().__init__(5, a=_conv(3, 6), n=nn.BatchNorm2d(6), b=_conv(6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.b(self.n(self.a(x).flip(1)).flip(1)).relu())


class LayerNormalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.head = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.n(self.a(x.mean((2, 3))))).relu())


class Chunked(Headed):
    """A gated linear unit: the halves of ``a`` are tied by nothing that the table knows."""

    def __init__(self) -> None:
        super().__init__(4, a=_conv(3, 8), b=_conv(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.a(x).chunk(2, 1)
        return self.classify(self.b(value.relu() * gate.sigmoid()))


class OneFilter(Headed):
    def __init__(self) -> None:
        super().__init__(5, a=_conv(3, 1), b=_conv(1, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.b(self.a(x).relu()))


@dataclass
class Case:
    """A network and its table: layers as (name, producers, units), slots as (out, in), reasons of what is left out."""

    build: Callable[[], nn.Module]
    layers: list[tuple[str, tuple[str, ...], int]]
    slots: dict[str, tuple[list[int] | None, list[int] | None]]
    excluded: dict[str, str] = field(default_factory=dict)


OUTPUT = "network's output"
CASES = {
    "residual": Case(
        Residual,
        [("a", ("a", "c"), 4), ("b", ("b",), 6)],
        {
            "a": ([0, 1, 2, 3], None),
            "b": ([4, 5, 6, 7, 8, 9], [0, 1, 2, 3]),
            "c": ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9]),
            "head": (None, [0, 1, 2, 3]),
        },
        {"head": OUTPUT},
    ),
    "concatenation": Case(
        Concatenation,
        [("a", ("a",), 3), ("b", ("b",), 4), ("c", ("c",), 5)],
        {
            "a": ([0, 1, 2], None),
            "b": ([3, 4, 5, 6], None),
            "c": ([7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5, 6]),
            "head": (None, [7, 8, 9, 10, 11]),
        },
        {"head": OUTPUT},
    ),
    "dense connection": Case(
        DenseConnection,
        [("a", ("a", "b"), 4), ("c", ("c",), 3)],
        {
            "a": ([0, 1, 2, 3], None),
            "b": ([0, 1, 2, 3], None),
            "c": ([4, 5, 6], [0, 1, 2, 3]),
            "head": (None, [4, 5, 6, 0, 1, 2, 3]),
        },
        {"head": OUTPUT},
    ),
    "grouped": Case(  # the same position of both groups goes together, so that the groups stay equal
        Grouped,
        [("a", ("a",), 4), ("g", ("g",), 3)],
        {
            "a": ([0, 1, 2, 3, 0, 1, 2, 3], None),
            "g": ([4, 5, 6, 4, 5, 6], [0, 1, 2, 3, 0, 1, 2, 3]),
            "head": (None, [4, 5, 6, 4, 5, 6]),
        },
        {"head": OUTPUT},
    ),
    "depthwise": Case(  # the depthwise convolution follows its producer and has no units of its own
        Depthwise,
        [("a", ("a",), 4), ("p", ("p",), 5)],
        {
            "a": ([0, 1, 2, 3], None),
            "d": ([0, 1, 2, 3], None),
            "n": ([0, 1, 2, 3], None),
            "p": ([4, 5, 6, 7, 8], [0, 1, 2, 3]),
            "head": (None, [4, 5, 6, 7, 8]),
        },
        {"head": OUTPUT},
    ),
    "flattened": Case(
        Flattened,
        [("a", ("a",), 3), ("f", ("f",), 4)],
        {
            "a": ([0, 1, 2], None),
            "f": ([3, 4, 5, 6], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
            "head": (None, [3, 4, 5, 6]),
        },
        {"head": OUTPUT},
    ),
    "squeeze-excitation": Case(
        SqueezeExcitation,
        [("a", ("a", "e"), 4), ("r", ("r",), 2)],
        {
            "a": ([0, 1, 2, 3], None),
            "r": ([4, 5], [0, 1, 2, 3]),
            "e": ([0, 1, 2, 3], [4, 5]),
            "head": (None, [0, 1, 2, 3]),
        },
        {"head": OUTPUT},
    ),
    "per-channel activation": Case(
        PerChannelActivation,
        [("a", ("a",), 4), ("b", ("b",), 4)],
        {
            "a": ([0, 1, 2, 3], None),
            "own": ([0, 1, 2, 3], None),
            "b": ([4, 5, 6, 7], [0, 1, 2, 3]),
            "head": (None, [4, 5, 6, 7]),
        },
        {"head": OUTPUT},
    ),
    "sigmoid after norm": Case(
        SigmoidAfterNorm,
        [("a", ("a",), 4), ("b", ("b",), 5)],
        {
            "a": ([0, 1, 2, 3], None),
            "n": ([0, 1, 2, 3], None),
            "b": ([4, 5, 6, 7, 8], [0, 1, 2, 3]),
            "head": (None, [4, 5, 6, 7, 8]),
        },
        {"head": OUTPUT},
    ),
    "unused": Case(
        Unused,
        [("a", ("a",), 3), ("f", ("f",), 4)],
        {
            "a": ([0, 1, 2], None),
            "f": ([3, 4, 5, 6], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
            "head": (None, [3, 4, 5, 6]),
        },
        {"head": OUTPUT},
    ),
    "called twice": Case(
        CalledTwice,
        [("a", ("a", "b"), 4)],
        {"a": ([0, 1, 2, 3], None), "b": ([0, 1, 2, 3], [0, 1, 2, 3]), "head": (None, [0, 1, 2, 3])},
        {"head": OUTPUT},
    ),
    "side output": Case(
        SideOutput,
        [("a", ("a",), 4)],
        {"a": ([0, 1, 2, 3], None), "b": (None, [0, 1, 2, 3]), "head": (None, [0, 1, 2, 3])},
        {"head": OUTPUT},
    ),
    "bare parameter": Case(
        BareParameter,
        [("b", ("b",), 4)],
        {"b": ([0, 1, 2, 3], None), "head": (None, [0, 1, 2, 3])},
        {"a": "bare parameter", "head": OUTPUT},
    ),
    "group norm": Case(
        lambda: Normalised(nn.GroupNorm(2, 4)),
        [("b", ("b",), 5)],
        {"b": ([0, 1, 2, 3, 4], None), "head": (None, [0, 1, 2, 3, 4])},
        {"a": "GroupNorm 'n' mixes", "head": OUTPUT},
    ),
    "group norm without parameters": Case(
        lambda: Normalised(nn.GroupNorm(1, 4, affine=False)),
        [("b", ("b",), 5)],
        {"b": ([0, 1, 2, 3, 4], None), "head": (None, [0, 1, 2, 3, 4])},
        {"a": "does not compute what the masked one does", "head": OUTPUT},
    ),
    "softmax over channels": Case(
        lambda: Normalised(nn.Softmax(1)),
        [("b", ("b",), 5)],
        {"b": ([0, 1, 2, 3, 4], None), "head": (None, [0, 1, 2, 3, 4])},
        {"a": "does not compute what the masked one does", "head": OUTPUT},
    ),
    "normalised backwards": Case(
        NormalisedBackwards,
        [("b", ("b",), 5)],
        {"b": ([0, 1, 2, 3, 4], None), "head": (None, [0, 1, 2, 3, 4])},
        {"a": "does not compute what the masked one does", "head": OUTPUT},
    ),
    "layer norm": Case(
        LayerNormalised,
        [("b", ("b",), 5)],
        {"b": ([0, 1, 2, 3, 4], None), "head": (None, [0, 1, 2, 3, 4])},
        {"a": "LayerNorm 'n' mixes", "head": OUTPUT},
    ),
    "transposed convolution": Case(
        lambda: Normalised(nn.ConvTranspose2d(4, 4, 2)),
        [("b", ("b",), 5)],
        {"b": ([0, 1, 2, 3, 4], None), "head": (None, [0, 1, 2, 3, 4])},
        {"a": "ConvTranspose2d 'n' mixes", "head": OUTPUT},
    ),
    "one filter": Case(
        OneFilter,
        [("b", ("b",), 5)],
        {"b": ([0, 1, 2, 3, 4], None), "head": (None, [0, 1, 2, 3, 4])},
        {"a": "single unit", "head": OUTPUT},
    ),
}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]


def test_table(case: Case, images: torch.Tensor) -> None:
    table = build_unit_table(case.build().eval(), images)
    assert [(layer.name, layer.producers, len(layer)) for layer in table.layers] == case.layers
    assert [layer.start for layer in table.layers] == np.cumsum([0, *(size for *_, size in case.layers)])[:-1].tolist()
    slots = {
        path: tuple(None if units is None else units.tolist() for units in (slot.out_units, slot.in_units))
        for path, slot in table.slots.items()
    }
    assert slots == case.slots
    assert {entry.name for entry in table.excluded} == set(case.excluded)
    for entry in table.excluded:
        assert case.excluded[entry.name] in entry.reason


@pytest.mark.parametrize("seed", range(3))
def test_masked_and_compact_agree(
    case: Case,
    images: torch.Tensor,
    seed: int,
    enliven: Callable[..., nn.Module],
    random_mask: Callable[..., np.ndarray],
    masked_and_compact: Callable[..., tuple[nn.Module, nn.Module]],
) -> None:
    network = enliven(case.build(), images)
    table = build_unit_table(network, images)
    mask = random_mask(table, seed)
    masked, compact = masked_and_compact(network, table, mask)
    with torch.no_grad():
        expected = masked(images)
        if not mask.all():
            assert (network(images) - expected).abs().max() > 1e-3
        torch.testing.assert_close(compact(images), expected)
    assert CostModel(network, table, images)(mask) == count_cost(compact, images)


@pytest.mark.parametrize("depth", [20, 32])
def test_padded_shortcuts_leave_the_inner_channels_of_each_block(depth: int, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = zoo.create(f"resnet{depth}", classes=10, in_channels=3).eval()
    table = build_unit_table(network, images)
    blocks = [
        (f"layer{stage}.{block}", 16 * 2 ** (stage - 1)) for stage in (1, 2, 3) for block in range((depth - 2) // 6)
    ]
    assert [(layer.name, layer.producers, len(layer)) for layer in table.layers] == [
        (f"{block}.conv1", (f"{block}.conv1",), width) for block, width in blocks
    ]
    assert all(entry.reason for entry in table.excluded)
    left_out = {producer for entry in table.excluded for producer in entry.producers}
    assert left_out == {"conv1", "linear", *(f"{block}.conv2" for block, _ in blocks)}


def test_identity_and_projection_shortcuts_tie_a_stage(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    table = build_unit_table(zoo.create("resnet18", classes=10, in_channels=3).eval(), images)
    assert table.layer("conv1").producers == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    stage = next(layer for layer in table.layers if "layer2.0.conv2" in layer.producers)
    assert set(stage.producers) == {"layer2.0.conv2", "layer2.0.shortcut.0", "layer2.1.conv2"}
    assert [len(layer) for layer in table.layers if len(layer.producers) == 1] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [entry.name for entry in table.excluded] == ["linear"]


class TestTable:
    def test_questions(self, images: torch.Tensor) -> None:
        table = build_unit_table(Residual().eval(), images)
        assert table.n_units == 10
        assert table.layer_of_unit.tolist() == [0] * 4 + [1] * 6
        assert table.layer("b").units.tolist() == [4, 5, 6, 7, 8, 9]
        with pytest.raises(KeyError, match="head"):
            table.layer("head")
        mask = np.ones(10, dtype=np.int8)
        mask[[0, 4, 5]] = 0
        assert table.kept_per_layer(mask) == {"a": 3, "b": 4}

    def test_restriction_renumbers(self, images: torch.Tensor) -> None:
        table = build_unit_table(Concatenation().eval(), images).restricted({"b"})
        assert [(layer.name, layer.start, layer.stop) for layer in table.layers] == [("b", 0, 4)]
        assert set(table.slots) == {"b", "c"}
        assert table.slots["c"].out_units is None
        assert table.slots["c"].in_units.tolist() == [-1, -1, -1, 0, 1, 2, 3]

    def test_nothing_to_prune(self, images: torch.Tensor) -> None:
        network = nn.Sequential(_conv(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        table = build_unit_table(network, images)
        assert (table.layers, table.slots, table.n_units) == ((), {}, 0)
        assert table.layer_of_unit.size == 0
        assert CostModel(network, table, images)(np.empty(0, dtype=np.int8)) == count_cost(network, images)


class TestTheNetworkIsLeftAsItWas:
    def test_modes_gradients_and_values(self, images: torch.Tensor) -> None:
        network = Depthwise()
        network.train()
        network.n.eval()
        network.a.weight.requires_grad_(False)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        build_unit_table(network, images)
        assert network.training
        assert not network.n.training
        assert not network.a.weight.requires_grad
        assert network.p.weight.requires_grad
        assert network.a.weight.grad is None
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
        assert list(before) == list(network.state_dict())
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class ReturnsDictionary(Residual):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"logits": super().forward(x)}


class ReturnsTuple(Residual):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().forward(x), x


class Detached(Residual):
    """Without a gradient there is nothing that a tracer could follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).detach()


class Raises(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("forgotten")


class TestUnusableNetworks:
    """One clear error of the library's own, that names the network."""

    def test_channel_shuffle(self) -> None:
        network = zoo.create("shufflenet_v2_x0_5", classes=5, in_channels=3).eval()
        with pytest.raises(ConfigurationError, match="ShuffleNetV2 cannot be traced"):
            build_unit_table(network, torch.randn(2, 3, 32, 32))

    @pytest.mark.parametrize("build", [ReturnsDictionary, ReturnsTuple, Detached, Raises])
    def test_no_logits_to_trace(self, build: Callable[[], nn.Module], images: torch.Tensor) -> None:
        with pytest.raises(ConfigurationError, match=build.__name__):  # type: ignore[attr-defined]
            build_unit_table(build().eval(), images)

    def test_images_that_do_not_fit(self) -> None:
        with pytest.raises(ConfigurationError, match="Residual"):
            build_unit_table(Residual().eval(), torch.randn(2, 1, 8, 8))


def test_reason_for_chunked_channels(images: torch.Tensor) -> None:
    """They feed a convolution: to say flatly that they are the network's output would mislead."""
    torch.manual_seed(0)
    table = build_unit_table(Chunked().eval(), images)
    reasons = {entry.name: entry.reason for entry in table.excluded}
    assert reasons["a"] != "its channels are the network's output"


@pytest.mark.parametrize("scale", [1.0, 5.0, 30.0])
def test_local_response_normalisation_never_slips_through(
    scale: float,
    random_mask: Callable[..., np.ndarray],
    masked_and_compact: Callable[..., tuple[nn.Module, nn.Module]],
) -> None:
    """Its mixing of neighbours is weak where activations are small: accepted or not, outputs must agree."""
    torch.manual_seed(0)
    network = Normalised(nn.LocalResponseNorm(3)).eval()
    images = scale * torch.randn(2, 3, 8, 8)
    table = build_unit_table(network, images)
    masked, compact = masked_and_compact(network, table, random_mask(table, 0))
    with torch.no_grad():
        expected = masked(images)
        torch.testing.assert_close(compact(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
