"""The compact network computes what the masked network computes, follows the mask, and writes back what it learnt."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recognizers import zoo
from recognizers.compaction import CompactNetwork, make_plain
from recognizers.costs import CostModel, count_cost
from recognizers.dependency import build_unit_table
from recognizers.training import sgd_steps
from recognizers.units import UnitTable
from recognizers.zero_out import insert_zero_outs, set_mask

TORCHVISION = ("mobilenet_v2", "densenet121", "efficientnet_b0")


def _images(size: int, batch: int = 8, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=[*zoo.available(), *TORCHVISION])
def architecture(request: pytest.FixtureRequest, enliven: Callable[..., nn.Module]) -> tuple[nn.Module, UnitTable]:
    torch.manual_seed(0)
    network = enliven(zoo.create(request.param, classes=10, in_channels=3), _images(32))
    return network, build_unit_table(network, _images(32, 2))


class TestEveryArchitecture:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_masked_and_compact_agree_in_outputs_and_cost(
        self,
        architecture: tuple[nn.Module, UnitTable],
        seed: int,
        random_mask: Callable[..., np.ndarray],
        masked_and_compact: Callable[..., tuple[nn.Module, nn.Module]],
    ) -> None:
        network, table = architecture
        mask = random_mask(table, seed)
        masked, compact = masked_and_compact(network, table, mask)
        images = _images(32, 3)
        with torch.no_grad():
            dense, expected, actual = network(images), masked(images), compact(images)
        assert dense.std(dim=0).mean() > 0.1, "the comparison would mean nothing"
        assert (dense - expected).abs().mean() > 0.1, "the mask would have no effect"
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        assert CostModel(network, table, images)(mask) == count_cost(compact, images)

    def test_costs_of_the_complete_network(self, architecture: tuple[nn.Module, UnitTable]) -> None:
        network, table = architecture
        model = CostModel(network, table, _images(32, 2))
        assert model.baseline == count_cost(network, _images(32, 2))
        assert model.reductions(np.ones(table.n_units, dtype=np.int8)) == (0.0, 0.0, None)

    def test_the_network_itself_is_left_alone(
        self, architecture: tuple[nn.Module, UnitTable], random_mask: Callable[..., np.ndarray]
    ) -> None:
        network, table = architecture
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        CompactNetwork(network, table).follow(random_mask(table, 2))
        assert list(before) == list(network.state_dict())
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.fixture
def small(enliven: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return enliven(zoo.create("convnet", classes=4, in_channels=3, widths=[5, 6, 7]), _images(8, 16))


class TestFollowing:
    def test_successive_masks_equal_slicing_at_once(
        self,
        small: nn.Module,
        random_mask: Callable[..., np.ndarray],
        masked_and_compact: Callable[..., tuple[nn.Module, nn.Module]],
    ) -> None:
        table = build_unit_table(small, _images(8, 2))
        follower = CompactNetwork(small, table)
        for seed in range(12):  # channels come back, too
            mask = random_mask(table, seed)
            follower.follow(mask)
            fresh = masked_and_compact(small, table, mask)[1].state_dict()
            state = follower.module.state_dict()
            assert list(state) == list(fresh)
            assert all(torch.equal(state[name], fresh[name]) for name in fresh)

    def test_modules_say_their_new_sizes(self, small: nn.Module) -> None:
        table = build_unit_table(small, _images(8, 2))
        mask = np.ones(table.n_units, dtype=np.int8)
        mask[[0, 5, 6, 11]] = 0  # one of conv1, two of conv2, one of conv3
        follower = CompactNetwork(small, table)
        follower.follow(mask)
        features, linear = follower.module.features, follower.module.linear
        assert [(conv.in_channels, conv.out_channels) for conv in (features.conv1, features.conv2, features.conv3)] == [
            (3, 4),
            (4, 4),
            (4, 6),
        ]
        assert [norm.num_features for norm in (features.bn1, features.bn2, features.bn3)] == [4, 4, 6]
        assert (linear.in_features, linear.out_features) == (6, 4)

    def test_depthwise_convolution_stays_depthwise(self) -> None:
        network = nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ).eval()
        table = build_unit_table(network, _images(8, 2))
        mask = np.ones(table.n_units, dtype=np.int8)
        mask[1:6] = 0
        follower = CompactNetwork(network, table)
        follower.follow(mask)
        depthwise = follower.module[1]
        assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (1, 1, 1)
        mask[3] = 1
        follower.follow(mask)
        assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (2, 2, 2)

    def test_only_reload_takes_over_values_changed_from_outside(self, small: nn.Module) -> None:
        table = build_unit_table(small, _images(8, 2))
        mask = np.ones(table.n_units, dtype=np.int8)
        follower = CompactNetwork(small, table)
        follower.follow(mask)
        with torch.no_grad():
            small.linear.bias.fill_(3.0)
        follower.follow(mask)
        assert not (follower.module.linear.bias == 3.0).any()
        follower.reload()
        assert (follower.module.linear.bias == 3.0).all()

    def test_compact_values_are_not_shared_with_the_dense_network(self, small: nn.Module) -> None:
        table = build_unit_table(small, _images(8, 2))
        follower = CompactNetwork(small, table)
        follower.reload()
        before = copy.deepcopy(small.state_dict())
        with torch.no_grad():
            for value in follower.module.state_dict().values():
                value.add_(1)
        assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())

    def test_shrinking_keeps_values_and_what_comes_back_has_base_values(self, small: nn.Module) -> None:
        table = build_unit_table(small, _images(8, 2))
        mask = np.ones(table.n_units, dtype=np.int8)
        follower = CompactNetwork(small, table)
        with torch.no_grad():
            for value in follower.module.state_dict().values():
                value.fill_(9)
        mask[[0, 7]] = 0
        assert follower.follow(mask) == set()
        assert all((value == 9).all() for value in follower.module.state_dict().values())
        mask[0] = 1
        assert follower.follow(mask) == {"features.conv1", "features.bn1", "features.conv2"}
        kept = [0, 1, 3, 4, 5]  # of conv2: unit 7 is still gone
        assert torch.equal(follower.module.features.conv2.weight, small.features.conv2.weight[kept])
        assert (follower.module.features.bn2.weight == 9).all()

    def test_versions_tell_every_module_that_changed_and_no_other(
        self, small: nn.Module, random_mask: Callable[..., np.ndarray]
    ) -> None:
        """By them fused weights know that they are out of date; a version too many is work for nothing."""
        table = build_unit_table(small, _images(8, 2))
        follower = CompactNetwork(small, table)
        modules = {path: module for path, module in follower.module.named_modules() if path in table.slots}
        last = random_mask(table, 0)
        for seed in range(6):
            mask = last.copy()
            units = table.layers[seed % 3].units
            mask[units] = random_mask(table, seed + 1)[units]
            before = {path: copy.deepcopy(module.state_dict()) for path, module in modules.items()}
            versions = follower.versions.copy()
            follower.follow(mask)
            for path, module in modules.items():
                state = module.state_dict()
                same = all(
                    value.shape == state[name].shape and torch.equal(value, state[name])
                    for name, value in before[path].items()
                )
                assert (follower.versions[path] == versions[path]) == same, path
            last = mask

    def test_values_and_back(self, small: nn.Module, random_mask: Callable[..., np.ndarray]) -> None:
        table = build_unit_table(small, _images(8, 2))
        follower = CompactNetwork(small, table)
        mask = random_mask(table, 0)
        follower.follow(mask)
        with torch.no_grad():
            for value in follower.module.state_dict().values():
                value.add_(1)
        values = follower.values()
        expected = copy.deepcopy(values)
        follower.follow(random_mask(table, 1))
        versions = follower.versions.copy()
        follower.restore(mask, values)
        assert np.array_equal(follower.mask, mask)
        assert all(follower.versions[path] > versions[path] for path in table.slots)
        with torch.no_grad():
            for name, value in follower.module.state_dict().items():
                assert torch.equal(value, expected[name])
                value.add_(1)
        assert all(torch.equal(value, expected[name]) for name, value in values.items()), "they are copies"


class TestSharing:
    def test_tensors_that_are_not_sliced_are_the_complete_networks(self, small: nn.Module) -> None:
        table = build_unit_table(small, _images(8, 2))
        follower = CompactNetwork(small, table, share=True)
        parameters = dict(small.named_parameters())

        def shared() -> set[str]:
            pairs = follower.module.named_parameters()
            return {name for name, value in pairs if value.data_ptr() == parameters[name].data_ptr()}

        assert shared() == set(parameters)
        mask = np.ones(table.n_units, dtype=np.int8)
        mask[-1] = 0
        follower.follow(mask)
        sliced = {"features.conv3.weight", "features.bn3.weight", "features.bn3.bias", "linear.weight"}
        assert shared() == set(parameters) - sliced
        follower.follow(np.ones_like(mask))
        assert shared() == set(parameters)

    def test_statistics_are_its_own_and_nothing_is_written_back(
        self, small: nn.Module, random_mask: Callable[..., np.ndarray]
    ) -> None:
        table = build_unit_table(small, _images(8, 2))
        before = copy.deepcopy(small.state_dict())
        follower = CompactNetwork(small, table, share=True)
        for seed in range(6):
            follower.follow(random_mask(table, seed) if seed % 3 else np.ones(table.n_units, dtype=np.int8))
            for buffer in follower.module.buffers():
                buffer.fill_(7)
            follower.module.train()(_images(8))
            if seed == 4:
                follower.reload()
        assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
        assert all(parameter.requires_grad for parameter in follower.module.parameters())

    def test_follows_as_one_that_does_not_share(self, small: nn.Module, random_mask: Callable[..., np.ndarray]) -> None:
        table = build_unit_table(small, _images(8, 2))
        sharing, other = CompactNetwork(small, table, share=True), CompactNetwork(small, table)
        for seed in range(8):
            mask = random_mask(table, seed)
            sharing.follow(mask)
            other.follow(mask)
            state = other.module.state_dict()
            assert all(torch.equal(value, state[name]) for name, value in sharing.module.state_dict().items())


class TestScattering:
    @pytest.fixture
    def pruned(self, small: nn.Module) -> tuple[nn.Module, CompactNetwork]:
        """conv1 has lost units 1 and 3, conv2 unit 0; then every value of the compact network becomes 9."""
        table = build_unit_table(small, _images(8, 2))
        mask = np.ones(table.n_units, dtype=np.int8)
        mask[[1, 3, 5]] = 0
        follower = CompactNetwork(small, table)
        follower.follow(mask)
        with torch.no_grad():
            for value in follower.module.state_dict().values():
                value.fill_(9)
        return small, follower

    def test_kept_entries_and_nothing_else_are_written(self, pruned: tuple[nn.Module, CompactNetwork]) -> None:
        network, follower = pruned
        before = copy.deepcopy(network.state_dict())
        follower.scatter(network)
        kept = {"1": [0, 2, 4], "2": [1, 2, 3, 4, 5], "3": list(range(7))}
        inputs = {"1": [0, 1, 2], "2": [0, 2, 4], "3": [1, 2, 3, 4, 5]}
        for name, value in network.state_dict().items():
            changed = torch.zeros(value.shape, dtype=torch.bool)
            number = name.split(".")[1][-1]
            if name.startswith("features.conv"):
                rows = torch.tensor(kept[number])
                changed[rows[:, None], torch.tensor(inputs[number])] = True
            elif name.startswith("features.bn") and value.ndim:
                changed[kept[number]] = True
            else:
                changed[...] = True
            assert (value[changed] == 9).all(), name
            assert torch.equal(value[~changed], before[name][~changed]), name

    def test_untouched_round_trip_changes_nothing(
        self, small: nn.Module, random_mask: Callable[..., np.ndarray]
    ) -> None:
        table = build_unit_table(small, _images(8, 2))
        before = copy.deepcopy(small.state_dict())
        follower = CompactNetwork(small, table)
        for seed in range(6):
            follower.follow(random_mask(table, seed))
            follower.scatter(small)
        assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())


def _mixed_network() -> nn.Module:
    """Every way of slicing in one network: plain, depthwise, grouped, flattened into linear."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.PReLU(6),
        nn.Conv2d(6, 8, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
    )


@pytest.mark.parametrize(
    "build", [lambda: zoo.create("convnet", classes=4, in_channels=3, widths=[5, 6, 7]), _mixed_network]
)
def test_training_the_compact_network_is_training_the_masked_one(
    build: Callable[[], nn.Module], enliven: Callable[..., nn.Module], random_mask: Callable[..., np.ndarray]
) -> None:
    torch.manual_seed(0)
    network = enliven(build(), _images(8, 16))
    table = build_unit_table(network, _images(8, 2))
    assert table.n_units > 0
    mask = random_mask(table, 3)
    assert (mask == 0).sum() >= 4
    masked = copy.deepcopy(network)
    insert_zero_outs(masked, table)
    set_mask(masked, mask)
    follower = CompactNetwork(network, table)
    follower.follow(mask)

    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (64, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (64,), generator=generator)

    class Plain:
        def normalize(self, images: torch.Tensor) -> torch.Tensor:
            return images.float() / 128 - 1

    settings: dict[str, Any] = {"steps": 6, "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
    settings |= {"batch_size": 16, "flip": True, "padding": 1, "precision": "float32"}
    for one in (masked, follower.module):
        sgd_steps(one, pixels, labels, Plain(), generator=torch.Generator().manual_seed(7), **settings)  # type: ignore[arg-type]

    sliced = CompactNetwork(make_plain(copy.deepcopy(masked)), table)
    sliced.follow(mask)
    expected = sliced.module.state_dict()
    trained = follower.module.state_dict()
    start = CompactNetwork(network, table)
    start.follow(mask)
    moved = [name for name, value in start.module.state_dict().items() if not torch.equal(value, trained[name])]
    assert set(moved) == set(trained), "every tensor learns"
    for name, value in expected.items():
        torch.testing.assert_close(
            trained[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
