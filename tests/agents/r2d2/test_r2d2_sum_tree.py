"""The sum tree against cumulative sums."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.r2d2.sum_tree import SumTree


@settings(deadline=None, max_examples=100)
@given(capacity=st.integers(1, 70), seed=st.integers(0, 2**31), rounds=st.integers(1, 5))
def test_find_equals_search_in_cumulative_sums(capacity, seed, rounds):
    generator = np.random.default_rng(seed)
    tree, plain = SumTree(capacity), np.zeros(capacity)
    for _ in range(rounds):
        indices = generator.integers(0, capacity, size=generator.integers(1, 2 * capacity + 1))
        # Whole numbers add up exactly in any order.
        values = generator.integers(0, 9, size=len(indices)).astype(np.float64)
        tree.set(indices, values)
        plain[indices] = values
    assert np.array_equal(tree.values, plain)
    assert tree.total == plain.sum()
    if plain.sum() > 0:
        masses = generator.integers(0, int(plain.sum()), size=50) + 0.5
        assert np.array_equal(tree.find(masses), np.searchsorted(np.cumsum(plain), masses, side="right"))


def test_drawing_follows_the_values_and_never_yields_an_empty_leaf():
    tree = SumTree(5)
    tree.set(np.array([0, 2, 4]), np.array([1.0, 3.0, 6.0]))
    drawn = np.bincount(tree.sample(10_000, np.random.default_rng(0)), minlength=5)
    assert drawn[[1, 3]].tolist() == [0, 0]
    assert drawn / 10_000 == pytest.approx([0.1, 0.0, 0.3, 0.0, 0.6], abs=2e-3)


def test_a_mass_beyond_the_total_ends_at_the_last_positive_leaf():
    tree = SumTree(4)
    tree.set(np.array([0, 1]), np.array([1.0, 1.0]))
    assert tree.find(np.array([2.0])).tolist() == [1]


def test_errors():
    with pytest.raises(ValueError, match="at least 1"):
        SumTree(0)
    with pytest.raises(ValueError, match="empty"):
        SumTree(3).sample(1, np.random.default_rng(0))
