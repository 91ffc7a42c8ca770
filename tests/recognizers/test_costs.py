"""Costs in closed form: worked by hand, and equal to the compact network's own count for any mask."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recognizers.compaction import compact
from recognizers.costs import Cost, CostModel, count_cost, output_positions
from recognizers.dependency import build_unit_table
from recognizers.units import UnitTable

IMAGES = torch.zeros(2, 3, 8, 8)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),  # 4x4 positions
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.PReLU(6),
        nn.Conv2d(6, 6, 3, groups=6),  # 2x2 positions
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    ).eval()


@pytest.fixture(scope="module")
def pruned() -> tuple[nn.Sequential, UnitTable, CostModel]:
    network = _network()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    table = build_unit_table(network, images)
    return network, table, CostModel(network, table, images)


def test_by_hand(pruned: tuple[nn.Sequential, UnitTable, CostModel]) -> None:
    _, table, model = pruned
    # Position p of both groups is one unit: 2 units in the first convolution, 3 in the second, 5 in the linear layer.
    assert [len(layer) for layer in table.layers] == [2, 3, 5]
    assert model.baseline == Cost(
        parameters=(4 * 3 * 9) + 2 * 4 + (6 * 2 * 9 + 6) + 6 + (6 * 9 + 6) + (5 * 24 + 5) + (2 * 5 + 2),
        macs=16 * 4 * 3 * 9 + 16 * 6 * 2 * 9 + 4 * 6 * 9 + 5 * 24 + 2 * 5,
    )
    mask = np.array([1, 0, 1, 0, 1, 1, 1, 0, 1, 1], dtype=np.int8)  # 2, 4 and 4 channels stay
    assert model(mask) == Cost(
        parameters=(2 * 3 * 9) + 2 * 2 + (4 * 1 * 9 + 4) + 4 + (4 * 9 + 4) + (4 * 16 + 4) + (2 * 4 + 2),
        macs=16 * 2 * 3 * 9 + 16 * 4 * 1 * 9 + 4 * 4 * 9 + 4 * 16 + 2 * 4,
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_closed_form_is_the_count(data: st.DataObject, pruned: tuple[nn.Sequential, UnitTable, CostModel]) -> None:
    network, table, model = pruned
    bits = [
        data.draw(st.lists(st.integers(0, 1), min_size=len(layer), max_size=len(layer)).filter(any))
        for layer in table.layers
    ]
    mask = np.array([bit for layer in bits for bit in layer], dtype=np.int8)
    cost = model(mask)
    assert cost == count_cost(compact(network, table, mask), IMAGES)
    assert model.reductions(mask) == (
        1 - cost.parameters / model.baseline.parameters,
        1 - cost.macs / model.baseline.macs,
        None,
    )


def test_every_removal_saves(pruned: tuple[nn.Sequential, UnitTable, CostModel]) -> None:
    _, table, model = pruned
    mask = np.ones(table.n_units, dtype=np.int8)
    for unit in (0, 2, 5, 6, 3):
        before = model(mask)
        mask[unit] = 0
        assert model(mask).parameters < before.parameters
        assert model(mask).macs < before.macs


def test_macs_follow_the_size_of_the_images() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    small = count_cost(network, torch.zeros(1, 3, 8, 8))
    large = count_cost(network, torch.zeros(1, 3, 16, 16))
    assert small.parameters == large.parameters
    assert (small.macs, large.macs) == (64 * 108 + 8, 256 * 108 + 8)


class Recurrent(nn.Module):
    """Calls a layer twice, another one never, and a linear layer at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 9, 3)
        self.pixelwise = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pixelwise(self.twice(self.twice(x)).permute(0, 2, 3, 1)).mean((1, 2))


def test_positions_are_those_of_all_calls() -> None:
    network = Recurrent().eval()
    assert output_positions(network, IMAGES) == {"twice": 128, "never": 0, "pixelwise": 64}
    assert count_cost(network, IMAGES).macs == 128 * 81 + 64 * 12


def test_counting_leaves_the_network_as_it_was() -> None:
    network = _network().train()
    network[1].eval()
    statistics = network[1].running_mean.clone()
    output_positions(network, IMAGES)
    assert network.training
    assert not network[1].training
    assert torch.equal(network[1].running_mean, statistics)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_shared_weight_counts_once() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.Flatten())
    network[2].weight = network[0].weight
    table = build_unit_table(network.eval(), torch.randn(2, 3, 8, 8))
    model = CostModel(network, table, IMAGES)
    assert model.baseline == count_cost(network, IMAGES)
