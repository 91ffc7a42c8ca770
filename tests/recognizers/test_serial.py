"""Serial networks and skip convolutions compute exactly what the residual network computes, and free its channels."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recognizers import zoo
from recognizers.blueprint import Blueprint
from recognizers.compaction import compact
from recognizers.costs import CostModel, count_cost
from recognizers.dependency import build_unit_table
from recognizers.errors import ConfigurationError
from recognizers.zoo.resnet import (
    BasicBlock,
    MakeShortcut,
    PaddedShortcut,
    ResNet,
    add_skip_convolutions,
    projection_shortcut,
)
from recognizers.zoo.serial import SerialResNet, serialise

FAMILIES = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet18", "resnet34"]
SHORTCUTS = {"padded": PaddedShortcut, "projection": projection_shortcut}


def _images(height: int, width: int | None = None, batch: int = 4, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, height, width or height, generator=generator)


def _agree(actual: nn.Module, expected: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        logits = expected(images)
        assert logits.std(dim=0).mean() > 0.01, "the comparison would mean nothing"
        torch.testing.assert_close(actual(images), logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


def _same(actual: nn.Module, expected: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(actual(images), expected(images))


@pytest.fixture(params=SHORTCUTS)
def make_shortcut(request: pytest.FixtureRequest) -> MakeShortcut:
    return SHORTCUTS[request.param]


@pytest.fixture
def small(make_shortcut: MakeShortcut, enliven: Callable[..., nn.Module]) -> ResNet:
    """Two stages of 4 and 6 channels and of two blocks, with random batch norms."""
    torch.manual_seed(0)
    network = enliven(ResNet(5, 3, (2, 2), (4, 6), make_shortcut), _images(8, batch=16))
    assert isinstance(network, ResNet)
    return network


class TestSerialisation:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_every_family_is_exact_and_fits_its_own_name(self, name: str, enliven: Callable[..., nn.Module]) -> None:
        torch.manual_seed(0)
        network = enliven(zoo.create(name, classes=10, in_channels=3), _images(16, batch=16))
        serial = zoo.create(f"serial_{name}", classes=10, in_channels=3)
        serial.load_state_dict(serialise(network).state_dict())  # type: ignore[arg-type]
        for size in ((16, 16), (13, 9)):
            _agree(serial.eval(), network, _images(*size, batch=3))

    @pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (7, 7), (8, 8), (9, 12), (32, 32)])
    def test_any_image_size(self, size: tuple[int, int], small: ResNet) -> None:
        network, images = small.double(), _images(*size).double()
        with torch.no_grad():
            torch.testing.assert_close(serialise(network)(images), network(images))

    @settings(max_examples=25, deadline=None)
    @given(
        stages=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 7)), min_size=1, max_size=4),
        shortcut=st.sampled_from(sorted(SHORTCUTS)),
        skip_convolutions=st.booleans(),
        size=st.integers(1, 11),
        seed=st.integers(0, 99),
    )
    def test_any_depths_and_widths(
        self,
        stages: list[tuple[int, int]],
        shortcut: str,
        skip_convolutions: bool,
        size: int,
        seed: int,
        enliven: Callable[..., nn.Module],
    ) -> None:
        depths, widths = zip(*stages, strict=True)
        if shortcut == "padded":
            widths = tuple(sorted(widths))  # a padded shortcut cannot drop channels
        torch.manual_seed(seed)
        network = ResNet(4, 2, depths, widths, SHORTCUTS[shortcut], skip_convolutions=skip_convolutions).double()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, -1.5, 1.5),
                    (module.bias, -0.5, 0.5),
                    (module.running_mean, -1.0, 1.0),
                    (module.running_var, 0.2, 2.0),
                ):
                    nn.init.uniform_(tensor, low, high)
            elif isinstance(module, nn.Conv2d) and skip_convolutions and module.kernel_size == (1, 1):
                nn.init.normal_(module.weight)
        network.eval()
        images = _images(size, batch=2, channels=2).double()
        with torch.no_grad():
            torch.testing.assert_close(serialise(network)(images), network(images))

    def test_is_a_chain_of_convolutions_and_relus(self, small: ResNet) -> None:
        serial = serialise(small)
        graph = torch.fx.symbolic_trace(serial).graph
        kinds = [type(serial.get_submodule(str(n.target))) for n in graph.nodes if n.op == "call_module"]
        assert {node.op for node in graph.nodes} == {"placeholder", "call_module", "output"}
        assert kinds == [nn.Conv2d, nn.ReLU] * 9 + [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
        assert all(module.bias is not None for module in serial.modules() if isinstance(module, nn.Conv2d))

    def test_the_network_and_the_random_numbers_are_left_alone(self, small: ResNet) -> None:
        before, state = copy.deepcopy(small.state_dict()), torch.random.get_rng_state()
        serial = serialise(small)
        assert torch.equal(torch.random.get_rng_state(), state)
        for parameter in serial.parameters():
            assert parameter.requires_grad and parameter.is_leaf and parameter.dtype == torch.float32
            nn.init.zeros_(parameter)
        assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
        assert not serial.training and serialise(small.train()).training

    def test_pruned_networks_and_foreign_shortcuts_are_refused(self, small: ResNet) -> None:
        table = build_unit_table(small, _images(8, batch=2))
        mask = np.ones(table.n_units, dtype=np.int8)
        mask[table.layer("layer2.0.conv1").start] = 0
        pruned = compact(small, table, mask)
        with pytest.raises(ConfigurationError, match="pruned"):
            serialise(pruned)  # type: ignore[arg-type]
        block = small.get_submodule("layer2.0")
        assert isinstance(block, BasicBlock)
        block.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 6, 1))
        with pytest.raises(ConfigurationError, match="AvgPool2d"):
            serialise(small)


class TestSerialNetwork:
    @pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet18"])
    def test_every_convolution_is_a_layer_of_its_own(self, name: str) -> None:
        torch.manual_seed(0)
        network = serialise(zoo.create(name, classes=10, in_channels=3).eval())  # type: ignore[arg-type]
        table = build_unit_table(network, _images(8, batch=2))
        convolutions = {path: m.out_channels for path, m in network.named_modules() if isinstance(m, nn.Conv2d)}
        assert {layer.name: len(layer) for layer in table.layers} == convolutions
        assert all(layer.producers == (layer.name,) for layer in table.layers)
        assert [entry.name for entry in table.excluded] == ["linear"]

    def test_masked_and_compact_agree(
        self,
        small: ResNet,
        random_mask: Callable[..., np.ndarray],
        masked_and_compact: Callable[..., tuple[nn.Module, nn.Module]],
    ) -> None:
        serial = serialise(small)
        images = _images(8)
        table = build_unit_table(serial, images)
        for seed in range(3):
            masked, sliced = masked_and_compact(serial, table, random_mask(table, seed))
            with torch.no_grad():
                torch.testing.assert_close(sliced(images), masked(images))

    def test_reductions_are_stated_against_the_residual_network(self, small: ResNet) -> None:
        """Without the channels that pass the input on, the chain costs what the residual network's filters cost."""
        serial, images = serialise(small), _images(9, batch=2)
        table = build_unit_table(serial, images)
        mask = np.ones(table.n_units, dtype=np.int8)
        for path, block in small.named_modules():
            if isinstance(block, BasicBlock):
                start = table.layer(f"{path}.conv1").start
                mask[start : start + block.conv1.in_channels] = 0
        small.get_submodule("layer2.0").shortcut = PaddedShortcut(4, 6, stride=2)  # which costs nothing
        original, costs = count_cost(small, images), CostModel(serial, table, images)
        assert costs(mask).macs == original.macs
        assert costs.baseline.macs > 1.8 * original.macs

    def test_files_rebuild_it(self) -> None:
        network = Blueprint("serial_resnet20", 7, 1, {"depths": [1, 2], "widths": [3, 5]}).create()
        assert isinstance(network, SerialResNet)
        assert network(_images(8, channels=1)).shape == (4, 7)

    @pytest.mark.parametrize(
        ("depths", "widths"), [((), ()), ((1,), ()), ((1, 2), (4,)), ((0, 1), (4, 4)), ((1, 1), (4, 0))]
    )
    def test_unusable_shapes_are_refused(self, depths: Sequence[int], widths: Sequence[int]) -> None:
        with pytest.raises(ConfigurationError, match="as many widths as depths"):
            zoo.create("serial_resnet20", classes=10, in_channels=3, depths=depths, widths=widths)


class TestSkipConvolutions:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_builders_start_from_the_same_network(self, name: str) -> None:
        def build(**arguments: bool) -> tuple[nn.Module, torch.Tensor]:
            torch.manual_seed(3)
            network = zoo.create(name, classes=10, in_channels=3, **arguments).eval()
            return network, torch.rand(1)

        (plain, drawn), (skipping, drawn_too) = build(), build(skip_convolutions=True)
        assert torch.equal(drawn, drawn_too)
        shortcuts = [m.shortcut for m in skipping.modules() if isinstance(m, BasicBlock)]
        assert all(isinstance(shortcut, nn.Conv2d | nn.Sequential) for shortcut in shortcuts)
        _same(skipping, plain, _images(9, 12, batch=2))

    @pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (9, 12)])
    def test_trained_weights_are_taken_over(self, size: tuple[int, int], small: ResNet) -> None:
        before = copy.deepcopy(small.state_dict())
        skipping = add_skip_convolutions(small)
        _same(skipping, small, _images(*size))
        assert list(before) == list(small.state_dict())
        assert not any(module.training for module in skipping.modules())
        assert all(parameter.requires_grad for parameter in skipping.parameters())
        again = add_skip_convolutions(skipping)
        assert list(again.state_dict()) == list(skipping.state_dict())

    def test_kernel_of_a_padded_shortcut(self) -> None:
        network = ResNet(2, 1, (1, 1), (2, 5), PaddedShortcut, skip_convolutions=True)
        convolution = network.get_submodule("layer2.0.shortcut")
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.stride == (2, 2) and convolution.bias is None
        assert convolution.weight[:, :, 0, 0].tolist() == [[0, 0], [1, 0], [0, 1], [0, 0], [0, 0]]

    @pytest.mark.parametrize("name", FAMILIES[:1] + FAMILIES[4:5])
    def test_channels_of_every_block_are_units_of_their_own(self, name: str) -> None:
        torch.manual_seed(0)
        network = zoo.create(name, classes=10, in_channels=3, skip_convolutions=True).eval()
        table = build_unit_table(network, _images(8, batch=2))
        expected: list[tuple[str, ...]] = [("conv1",)]
        for path, block in network.named_modules():
            if isinstance(block, BasicBlock):
                shortcut = f"{path}.shortcut" + (".0" if isinstance(block.shortcut, nn.Sequential) else "")
                expected += [(f"{path}.conv1",), (f"{path}.conv2", shortcut)]
        assert [tuple(sorted(layer.producers)) for layer in table.layers] == expected
        assert [entry.name for entry in table.excluded] == ["linear"]

    def test_masked_and_compact_agree(
        self,
        small: ResNet,
        random_mask: Callable[..., np.ndarray],
        masked_and_compact: Callable[..., tuple[nn.Module, nn.Module]],
    ) -> None:
        skipping, images = add_skip_convolutions(small), _images(8)
        table = build_unit_table(skipping, images)
        for seed in range(3):
            mask = random_mask(table, seed)
            masked, sliced = masked_and_compact(skipping, table, mask)
            with torch.no_grad():
                torch.testing.assert_close(sliced(images), masked(images))
            assert CostModel(skipping, table, images)(mask) == count_cost(sliced, images)

    def test_they_learn(self) -> None:
        network = ResNet(2, 1, (1, 1), (2, 4), PaddedShortcut, skip_convolutions=True)
        network(_images(8, channels=1)).sum().backward()
        gradient = network.get_parameter("layer2.0.shortcut.weight").grad
        assert gradient is not None and gradient.abs().sum() > 0
