"""The ZeroOut layer multiplies what enters a consumer by the mask, and leaves the network's files and code alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from recognizers.compaction import compact
from recognizers.dependency import build_unit_table
from recognizers.units import UnitTable
from recognizers.zero_out import ZeroOut, insert_zero_outs, set_mask, zero_outs


class TestLayer:
    @pytest.mark.parametrize(("shape", "dimension"), [((2, 4, 3, 5), 1), ((2, 4), -1), ((2, 7, 4), -1)])
    def test_zeroes_channels_and_keeps_the_rest(self, shape: tuple[int, ...], dimension: int) -> None:
        layer = ZeroOut(np.array([2, -1, 0, 2]), channel_dimension=dimension)
        layer.set_mask(torch.tensor([0, 0, 1]))  # unit 2 kept: channels 0 and 3; channel 1 cannot be pruned
        x = torch.randn(shape)
        expected = x.clone()
        expected.select(dimension, 2).zero_()
        assert torch.equal(layer(x), expected)

    def test_starts_complete_and_comes_back(self) -> None:
        layer = ZeroOut(np.array([0, 1]), channel_dimension=-1)
        x = torch.randn(3, 2)
        assert torch.equal(layer(x), x)
        layer.set_mask(torch.tensor([0, 1]))
        assert not torch.equal(layer(x), x)
        layer.set_mask(torch.tensor([1, 1]))
        assert torch.equal(layer(x), x)

    def test_says_what_it_is(self) -> None:
        assert "channels=3, prunable=2" in repr(ZeroOut(np.array([0, -1, 1]), channel_dimension=1))


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Sigmoid(),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    layers[1].running_mean.normal_()
    layers[1].bias.data.normal_()
    return layers.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def table(network: nn.Sequential, images: torch.Tensor) -> UnitTable:
    return build_unit_table(network, images)


MASK = np.array([1, 0, 1, 0, 1, 1, 0, 0, 1], dtype=np.int8)


def test_equals_zeroing_activations_by_hand(network: nn.Sequential, table: UnitTable, images: torch.Tensor) -> None:
    with torch.no_grad():
        first = network[:3](images)
        first[:, [1, 3]] = 0
        second = network[3:5](first)
        second[:, [2, 3]] = 0
        expected = network[5:](second)
    insert_zero_outs(network, table)
    set_mask(network, MASK)
    torch.testing.assert_close(network(images), expected)


def test_complete_mask_changes_no_bit(network: nn.Sequential, table: UnitTable, images: torch.Tensor) -> None:
    plain = network(images)
    insert_zero_outs(network, table)
    set_mask(network, np.ones(9, dtype=np.int8))
    assert torch.equal(network(images), plain)


def test_state_dict_stays_that_of_the_plain_network(
    network: nn.Sequential, table: UnitTable, images: torch.Tensor
) -> None:
    plain = copy.deepcopy(network)
    insert_zero_outs(network, table)
    set_mask(network, MASK)
    assert list(network.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(network.state_dict())
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(
        parameter.numel() for parameter in plain.parameters()
    )


def test_one_for_each_consumer(network: nn.Sequential, table: UnitTable) -> None:
    insert_zero_outs(network, table)
    assert len(list(zero_outs(network))) == 2
    assert isinstance(network[3].zero_out, ZeroOut)
    assert isinstance(network[7].zero_out, ZeroOut)
    assert network[7].zero_out.mask.tolist() == [1.0] * 20
    set_mask(network, MASK)
    assert network[7].zero_out.mask.tolist() == [1.0] * 8 + [0.0] * 8 + [1.0] * 4


def test_no_gradient_reaches_a_zeroed_filter(network: nn.Sequential, table: UnitTable, images: torch.Tensor) -> None:
    insert_zero_outs(network, table)
    set_mask(network, MASK)
    network(images).square().sum().backward()
    gradient = network[0].weight.grad
    assert (gradient[[1, 3]] == 0).all()
    assert (gradient[[0, 2]] != 0).any()


def test_zero_outs_follow_the_network_onto_its_device(network: nn.Sequential, table: UnitTable) -> None:
    """A stand-in for a GPU: the mask must lie where the weights lie."""
    network.to("meta")
    insert_zero_outs(network, table)
    assert {zero_out.mask.device.type for zero_out in zero_outs(network)} == {"meta"}


def test_hooks_of_the_users_own_survive_compaction(
    network: nn.Sequential, table: UnitTable, images: torch.Tensor
) -> None:
    network[3].register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    expected = network(images)
    insert_zero_outs(network, table)
    torch.testing.assert_close(compact(network, table, np.ones(9, dtype=np.int8))(images), expected)
