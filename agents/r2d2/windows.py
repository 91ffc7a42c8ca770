"""A pool of replayable windows: which episode, from which step, at what priority."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.r2d2.sum_tree import SumTree
from agents.r2d2.targets import importance_weights

LOWEST_PRIORITY = 1e-6
"""Keeps a window without any error drawable."""

NO_BRANCH = -1


class WindowPool:
    """Slots for windows of one kind, drawn in proportion to ``priority^alpha``.

    Args:
        capacity: windows to hold.
        priority_exponent: alpha; 0 draws uniformly.

    Attributes:
        episode: number of the episode of each slot's window, -1 where the slot is free, ``[capacity]``.
        start: its first trained step.
        branch: the branch of the episode that it ends in, :data:`NO_BRANCH` for none.
        born: the clock's time when it was inserted.
    """

    def __init__(self, capacity: int, priority_exponent: float) -> None:
        self.capacity = capacity
        self.priority_exponent = priority_exponent
        self.episode = np.full(capacity, -1, dtype=np.int64)
        self.start = np.zeros(capacity, dtype=np.int64)
        self.branch = np.full(capacity, NO_BRANCH, dtype=np.int64)
        self.born = np.zeros(capacity, dtype=np.int64)
        self._tree = SumTree(capacity)
        self._free = list(range(capacity - 1, -1, -1))

    def __len__(self) -> int:
        return self.capacity - len(self._free)

    def insert(self, episode: int, starts: Sequence[int], branches: Sequence[int] | None, clock: int) -> list[int]:
        """Take in windows of an episode; their slots.

        Args:
            episode: its number.
            starts: first trained step of each window.
            branches: that the windows end in; None for windows of the episode itself.
            clock: the time now.
        """
        if not starts:
            return []
        # A new window gets the largest priority, so that each is likely to be replayed once.
        highest = float(self._tree.values.max()) or 1.0
        slots = [self._free.pop() for _ in starts]
        self.episode[slots] = episode
        self.start[slots] = starts
        self.branch[slots] = NO_BRANCH if branches is None else branches
        self.born[slots] = clock
        self._tree.set(np.array(slots, dtype=np.int64), np.full(len(slots), highest))
        return slots

    def remove(self, slots: list[int]) -> None:
        """Free slots."""
        if slots:
            indices = np.array(slots, dtype=np.int64)
            self._tree.set(indices, np.zeros(len(indices)))
            self.episode[indices] = -1
            self._free.extend(slots)

    def sample(
        self, count: int, generator: np.random.Generator, importance_exponent: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Draw slots with replacement; and their importance weights, ``[count]`` each."""
        slots = self._tree.sample(count, generator)
        probabilities = self._tree[slots] / self._tree.total
        return slots, importance_weights(probabilities, len(self), importance_exponent)

    def update(self, slots: NDArray[np.int64], priorities: NDArray[np.floating[Any]]) -> None:
        """Give drawn windows their new priorities, ``[K]``, not negative; those removed since are passed over."""
        held = self.episode[slots] >= 0
        values = np.maximum(priorities[held].astype(np.float64), LOWEST_PRIORITY) ** self.priority_exponent
        self._tree.set(slots[held], values)

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on drawing the same windows."""
        return {
            "episode": self.episode.copy(),
            "start": self.start.copy(),
            "branch": self.branch.copy(),
            "born": self.born.copy(),
            "tree": self._tree.values,
            "free": np.array(self._free, dtype=np.int64),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`get_state` of a pool of the same capacity."""
        for name in ("episode", "start", "branch", "born"):
            setattr(self, name, state[name].copy())
        self._tree.set(np.arange(self.capacity), state["tree"])
        self._free = state["free"].tolist()
