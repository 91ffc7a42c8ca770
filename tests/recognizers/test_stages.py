"""Cutting a network: the stages in turn are the network, cut where it may be cut, and nowhere else."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import odd_networks
import pytest
import torch
from torch import nn

from recognizers import zoo
from recognizers.compaction import make_plain
from recognizers.costs import CostModel
from recognizers.execution.stages import Stage, cut
from recognizers.units import UnitTable

ZOO = ("convnet", "resnet20", "resnet18", "vgg16_bn", "mobilenet_v2", "densenet121", "efficientnet_b0")
LAYERS = (nn.Conv2d, nn.Linear)


def _images(size: int = 8, batch: int = 3, channels: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def _layers(network: nn.Module, stage: Stage) -> list[str]:
    return sorted(path for path in stage.paths if isinstance(network.get_submodule(path), LAYERS))


@dataclass
class Case:
    """A network, its stages, and what it was like before and after it was cut."""

    network: nn.Module
    stages: tuple[Stage, ...]
    before: tuple[object, ...]
    after: tuple[object, ...]
    state: dict[str, torch.Tensor]


def _looks(network: nn.Module) -> tuple[object, ...]:
    return tuple((path, module.training, set(vars(module))) for path, module in network.named_modules())


@pytest.fixture(scope="module", params=ZOO)
def case(request: pytest.FixtureRequest, enliven: Callable[..., nn.Module]) -> Case:
    torch.manual_seed(0)
    network = make_plain(enliven(zoo.create(request.param, classes=10, in_channels=3), _images(32, 8, 3))).train()
    state, before = copy.deepcopy(network.state_dict()), _looks(network)
    stages = cut(network, _images(32, 2, 3))
    return Case(network, stages, before, _looks(network), state)


class TestArchitectures:
    def test_the_network_is_left_alone(self, case: Case) -> None:
        assert case.before == case.after
        state = case.network.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in case.state.items())

    def test_stages_in_turn_are_the_network(self, case: Case) -> None:
        network = case.network.eval()
        features = images = _images(32, 5, 3)  # another number of images than the example's
        with torch.no_grad():
            for stage in case.stages:
                before = features.clone()
                behind = stage.module(network)(features)
                assert torch.equal(features, before), "what is kept before a stage must outlive it"
                assert behind.numel() == stage.outputs * len(images)
                features = behind
            assert torch.equal(features, network(images))

    def test_macs_are_those_of_the_network(self, case: Case) -> None:
        model = CostModel(case.network, UnitTable((), {}), _images(32, 2, 3))
        assert sum(stage.macs for stage in case.stages) == model.baseline.macs

    def test_each_layer_is_in_one_stage_and_each_stage_has_one(self, case: Case) -> None:
        parts = [_layers(case.network, stage) for stage in case.stages]
        assert len(parts) > 3
        assert all(parts), "a stage without a layer would be work for nothing"
        assert sorted(path for part in parts for path in part) == sorted(
            path for path, module in case.network.named_modules() if isinstance(module, LAYERS)
        )


class TestBoundaries:
    def test_a_chain_is_cut_before_every_layer(self) -> None:
        network = zoo.create("vgg16_bn", classes=10, in_channels=3).eval()
        stages = cut(network, _images(32, 2, 3))
        convolutions = [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d)]
        assert [_layers(network, stage) for stage in stages] == [[path] for path in (*convolutions, "classifier")]
        # With its layer goes all that follows it.
        assert stages[0].paths == {"features.0", "features.1", "features.2"}
        assert stages[1].paths == {"features.3", "features.4", "features.5", "features.6"}

    @pytest.mark.parametrize(("name", "blocks"), [("resnet20", (3, 3, 3)), ("resnet18", (2, 2, 2, 2))])
    def test_residual_networks_are_cut_between_blocks(self, name: str, blocks: tuple[int, ...]) -> None:
        network = zoo.create(name, classes=10, in_channels=3).eval()
        stages = cut(network, _images(32, 2, 3))
        of_blocks = [
            {path for path, module in network.named_modules() if path.startswith(prefix) and isinstance(module, LAYERS)}
            for prefix in (f"layer{stage}.{block}." for stage, depth in enumerate(blocks, 1) for block in range(depth))
        ]
        assert [set(_layers(network, stage)) for stage in stages] == [{"conv1"}, *of_blocks, {"linear"}]

    def test_sizes_by_hand(self) -> None:
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, groups=1),  # 64 pixels: reads 64, writes 256
            nn.ReLU(),  # reads 256, writes 256
            nn.Conv2d(4, 8, 3, stride=2, groups=2),  # 9 pixels: reads 256, writes 72
            nn.Flatten(),
            nn.Linear(72, 10),
        )
        stages = cut(network, _images())
        assert [stage.macs for stage in stages] == [64 * 4 * 9, 9 * 8 * 2 * 9, 72 * 10]
        assert [stage.outputs for stage in stages] == [256, 72, 10]
        assert [stage.widest for stage in stages] == [512, 328, 82]

    def test_a_sum_counts_all_that_it_reads(self) -> None:
        network = odd_networks.Residual(width=4, inner=1).eval()
        block = cut(network, _images())[1]
        assert block.widest == 3 * 4 * 64

    def test_no_cut_where_two_tensors_are_alive(self) -> None:
        class Across(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two, self.three, self.four = (nn.Conv2d(1, 1, 1) for _ in range(4))

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                first = self.one(images)
                second = self.two(first)
                return self.four(self.three(second) + first).flatten(1)

        network = Across()
        assert [_layers(network, stage) for stage in cut(network, _images())] == [["one"], ["three", "two"], ["four"]]

    def test_an_image_that_is_read_again_late(self) -> None:
        class Again(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return (self.two(self.one(images)) + images).flatten(1)

        network = Again()
        (stage,) = cut(network, _images())
        assert torch.equal(stage.module(network)(_images()), network(_images()))


class TestOddNetworks:
    @pytest.mark.parametrize("name", odd_networks.UNCUT)
    def test_what_cannot_be_run_in_parts_is_one_stage(self, name: str) -> None:
        network = odd_networks.UNCUT[name]().eval()
        (stage,) = cut(network, _images())
        assert stage.graph is None
        assert stage.paths == {path for path, _ in network.named_modules()}
        assert stage.module(network) is network

    @pytest.mark.parametrize("name", [*odd_networks.CUT, "late in place"])
    def test_what_can_be_is_cut_and_stays_what_it_is(self, name: str) -> None:
        network = make_plain({**odd_networks.CUT, **odd_networks.UNTRAINABLE}[name]()).eval()
        stages = cut(network, _images())
        assert len(stages) >= 3
        features = images = _images(batch=5)
        with torch.no_grad():
            for stage in stages:
                before = features.clone()
                behind = stage.module(network)(features)
                assert torch.equal(features, before)
                features = behind
            assert torch.equal(features, network(images))

    def test_an_activation_may_be_used_twice(self) -> None:
        relu = nn.ReLU()
        network = nn.Sequential(nn.Conv2d(1, 2, 1), relu, nn.Conv2d(2, 2, 1), relu, nn.Flatten())
        assert len(cut(network, _images())) == 2

    def test_modules_whose_tensors_are_read_count_as_called(self) -> None:
        network = odd_networks.BareParameter().eval()
        first, *others = cut(network, _images())
        assert {"", "part"} <= first.paths
        assert not any({"", "part"} & stage.paths for stage in others)

    def test_stages_read_parameters_as_they_are_now(self) -> None:
        network = odd_networks.BareParameter().eval()
        first, *_ = cut(network, _images())
        module = first.module(network)
        with torch.no_grad():
            before = module(_images())
            network.gain.fill_(-3.0)
            network.first.weight.mul_(2)
            assert not torch.allclose(module(_images()), before)
            expected = network.between(network.norm(network.first(_images())))
        assert torch.equal(module(_images()), expected)

    def test_layers_within_a_module_of_pytorch_belong_to_its_stage(self) -> None:
        """Else a mask of theirs would go unnoticed."""
        network = odd_networks.Transformer().eval()
        stages = cut(network, _images())
        assert any({"encoder.linear1", "encoder.linear2"} <= stage.paths for stage in stages)

    def test_a_graph_that_does_not_compute_the_same_is_not_used(self) -> None:
        class Moody(nn.Module):
            """Each call gives something else."""

            def __init__(self) -> None:
                super().__init__()
                self.conv, self.calls = nn.Conv2d(1, 2, 1), 0

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                self.calls += 1
                return (self.conv(images) * (1 + self.calls)).flatten(1)

        (stage,) = cut(Moody(), _images())
        assert stage.graph is None
