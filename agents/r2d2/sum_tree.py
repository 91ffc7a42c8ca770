"""A sum tree over numpy arrays: draw indices in proportion to their priority in logarithmic time."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Values = NDArray[np.float64]


class SumTree:
    """Complete binary tree whose inner nodes hold the sums of their children (Schaul et al. 2016, appendix B.2.1).

    All operations take whole batches; there is no Python loop over items, only over the tree's levels.

    Args:
        capacity: number of leaves offered.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._leaves = 1 << (capacity - 1).bit_length()
        self._depth = self._leaves.bit_length() - 1
        self._nodes: Values = np.zeros(2 * self._leaves, dtype=np.float64)  # node i has children 2i and 2i + 1

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._nodes[1])

    @property
    def values(self) -> Values:
        """Values of all leaves, ``[capacity]``, as a copy."""
        return self._nodes[self._leaves : self._leaves + self.capacity].copy()

    def __getitem__(self, indices: Indices) -> Values:
        return self._nodes[self._leaves + indices]

    def set(self, indices: Indices, values: Values) -> None:
        """Give leaves new values.

        Args:
            indices: ``[K]``. Where an index repeats, its last value counts.
            values: ``[K]``, not negative.
        """
        nodes = indices + self._leaves
        self._nodes[nodes] = values
        for _ in range(self._depth):
            # Sums are recomputed, not adjusted by differences, so that rounding errors never build up.
            nodes = np.unique(nodes >> 1)
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def find(self, masses: Values) -> Indices:
        """Leaf in which each cumulated mass falls.

        Args:
            masses: ``[K]``, each in ``[0, total)``.

        Returns:
            Leaf indices ``[K]``; never a leaf of value 0 while the total is positive.
        """
        nodes = np.ones(len(masses), dtype=np.int64)
        rest = masses.astype(np.float64, copy=True)
        for _ in range(self._depth):
            left = self._nodes[2 * nodes]
            # Rounding can carry a mass just past the last positive leaf; an empty branch is never entered.
            right = (rest >= left) & (self._nodes[2 * nodes + 1] > 0.0)
            rest -= np.where(right, left, 0.0)
            nodes = 2 * nodes + right
        return nodes - self._leaves

    def sample(self, count: int, generator: np.random.Generator) -> Indices:
        """Draw ``count`` leaves in proportion to their values, one from each of ``count`` equal strata."""
        if self.total <= 0.0:
            raise ValueError("cannot sample from an empty tree")
        strata = (np.arange(count) + generator.random(count)) / count
        return self.find(strata * self.total)
