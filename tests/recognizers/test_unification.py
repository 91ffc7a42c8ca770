"""Neuron unification against sums done by hand, and against samples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recognizers.reconstruction.consumers import Consumer
from recognizers.reconstruction.layer import Part
from recognizers.reconstruction.least_squares import moments
from recognizers.reconstruction.unification import behaviour, costs, merge, unify


def _consumer(values: Tensor, weights: Tensor, units: list[int] | None = None, *, offset: bool = True) -> Consumer:
    """Of inputs ``[N, d]`` and weights ``[d, m]``."""
    inputs = torch.cat([values, values.new_ones(len(values), 1)], 1)
    known = torch.arange(values.shape[1]) if units is None else torch.tensor(units)
    full = torch.cat([weights, weights.new_zeros(1, weights.shape[1])]).double()
    part = Part(torch.arange(values.shape[1]), torch.arange(weights.shape[1]))
    outputs = inputs.double() @ full
    return Consumer("layer", None, part, known, full, moments(inputs, outputs.to(inputs.dtype)), offset, 0.0)


def _mask(*bits: int) -> np.ndarray:
    return np.array(bits, dtype=np.int8)


class TestMerge:
    def test_without_offset_by_hand(self) -> None:
        values = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [2.0, 4.0, 0.0]])
        consumer = _consumer(values, torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]), offset=False)
        expected = [[0.0, 0.0], [2.5, 25.0], [3.0, 30.0], [0.0, 0.0]]  # half of the second is the first
        assert merge(consumer, _mask(0, 1, 1)).tolist() == expected

    def test_with_offset_by_hand(self) -> None:
        """3.5 less half of the second is the first."""
        values = torch.tensor([[1.0, 5.0, 1.0], [2.0, 3.0, -2.0], [3.0, 1.0, 1.0]])
        consumer = _consumer(values, torch.tensor([[2.0], [7.0], [3.0]]))
        torch.testing.assert_close(merge(consumer, _mask(0, 1, 1)).flatten(), torch.tensor([0, 6, 3, 7]).double())

    def test_several_units_go_to_their_nearest_kept_one(self) -> None:
        """Even where a removed one would be nearer."""
        values = torch.eye(4).repeat(2, 1)
        values[:, 1] += 0.5 * values[:, 0]  # 0 and 1 are alike, 2 is a little like 0
        values[:, 2] += 0.1 * values[:, 0]
        consumer = _consumer(values, torch.tensor([[1.0], [2.0], [3.0], [4.0]]), offset=False)
        expected = [0.0, 0.0, 3 + 0.1 / 1.01 + 2 * 0.05 / 1.01, 4.0, 0.0]
        torch.testing.assert_close(merge(consumer, _mask(0, 0, 1, 1)).flatten(), torch.tensor(expected).double())

    def test_all_places_of_a_unit_go_to_the_same_places_of_the_other(self) -> None:
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(30, 2, generator=generator)
        values = torch.stack([first[:, 0], 3 * first[:, 0], first[:, 1], 3 * first[:, 1]], 1)
        consumer = _consumer(values, torch.tensor([[1.0], [2.0], [3.0], [4.0]]), units=[0, 1, 0, 1])
        merged = merge(consumer, _mask(0, 1)).flatten()
        torch.testing.assert_close(merged, torch.tensor([0, 2 + 1 / 3, 0, 5, 0]).double(), atol=1e-5, rtol=0)

    def test_units_that_occur_more_often_are_compared_among_themselves(self) -> None:
        values = torch.tensor([[1.0, 2.0, 2.0, 0.0, 4.0, 1.0], [0.0, 1.0, 0.0, 2.0, 0.0, 5.0]])
        weights = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
        consumer = _consumer(values, weights, units=[0, 2, 1, 0, 1, 3], offset=False)
        # The first goes to the second (both are read twice), the third to the fourth.
        merged = merge(consumer, _mask(0, 1, 0, 1)).flatten()
        one, other = 0.5 * (1 * 2 + 0 * 4) / (0.5 * (4 + 16)), (2 * 1 + 1 * 5) / (1 + 25)
        expected = [0, 0, 3 + one * 1, 0, 5 + one * 4, 6 + other * 2, 0]
        torch.testing.assert_close(merged, torch.tensor(expected).double())

    def test_where_nobody_is_left_the_mean_stays(self) -> None:
        values = torch.tensor([[1.0, 5.0, 1.0], [3.0, 1.0, 1.0]])
        consumer = _consumer(values, torch.tensor([[2.0], [7.0], [3.0]]), units=[0, 1, -1])
        assert merge(consumer, _mask(0, 0)).flatten().tolist() == [0.0, 0.0, 3.0, 2 * 2 + 3 * 7]

    @pytest.mark.parametrize("seed", range(5))
    def test_a_unit_that_never_varies_takes_nothing_over(self, seed: int) -> None:
        """Rounding may make its variance or its covariances anything, of either sign."""
        values = torch.randn(3000, 3, generator=torch.Generator().manual_seed(seed)) + 1
        values[:, 2] = 0.7
        consumer = _consumer(values, torch.tensor([[2.0], [7.0], [3.0]]))
        merged = merge(consumer, _mask(0, 1, 1)).flatten()
        assert float(merged[1]) != 7.0 and float(merged[2]) == 3.0
        products = behaviour(consumer, torch.arange(3)[:, None]).products
        order, added = unify([products], [torch.tensor([2.0, 7.0, 3.0]).double()[:, None, None]])
        assert order == [2, 0, 1]
        assert added[0] == pytest.approx(0, abs=1e-9) and added[1] == pytest.approx(4, rel=0.2)


class TestUnify:
    PRODUCTS = torch.tensor([[4.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 16.0]]).double()
    ONES = torch.ones(3, 1, 1).double()

    def test_costs_by_hand(self) -> None:
        inf = float("inf")
        assert costs(self.PRODUCTS, torch.ones(3)).tolist() == [[inf, 2, 4], [1, inf, 2], [16, 16, inf]]

    def test_three_units_by_hand(self) -> None:
        """The second goes to the first, whose weight becomes 1.5; that goes next; the last loses all."""
        order, added = unify([self.PRODUCTS], [self.ONES])
        assert order == [1, 0, 2]
        assert added == [1.0, 4 * 1.5**2, 16.0]

    def test_two_layers_by_hand(self) -> None:
        """For the other layer it is the first that is like the third."""
        other = torch.tensor([[4.0, 0.0, 4.0], [0.0, 9.0, 0.0], [4.0, 0.0, 4.0]]).double()
        order, added = unify([self.PRODUCTS, other], [self.ONES, self.ONES])
        assert order == [0, 1, 2]
        assert added == [4 + 0, 2 + 9, 16 + 4 * 2**2]  # to the third, which weighs 1 and 2 then

    def test_a_single_unit(self) -> None:
        assert unify([self.PRODUCTS[:1, :1]], [self.ONES[:1]]) == ([0], [4.0])

    @given(st.integers(0, 10**6))
    @settings(max_examples=30, deadline=None)
    def test_costs_are_those_on_samples(self, seed: int) -> None:
        """Of replacing any unit by any other with the best factor."""
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(25, 4, generator=generator, dtype=torch.float64)
        weights = torch.randn(4, 1, 3, generator=generator, dtype=torch.float64)
        products = values.T @ values
        table = costs(products, weights.square().sum((1, 2)))
        for leaver in range(4):
            for taker in set(range(4)) - {leaver}:
                factor = np.linalg.lstsq(values[:, [taker]].numpy(), values[:, leaver].numpy(), rcond=None)[0]
                rest = values[:, leaver] - float(factor[0]) * values[:, taker]
                lost = float((rest[:, None] * weights[leaver]).square().sum())
                assert float(table[leaver, taker]) == pytest.approx(lost, rel=1e-9)
        order, added = unify([products], [weights])
        assert sorted(order) == list(range(4))
        assert added[0] == pytest.approx(float(table.min()))
