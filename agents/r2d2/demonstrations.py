"""Replay of demonstrations beside own experience (R2D3: Paine et al. 2019, *Making Efficient Use of Demonstrations to
Solve Hard Exploration Problems*)."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.r2d2.replay import PrioritizedSequenceReplayBuffer, SequenceBatch


def share_of_demonstrations(share: float, anneal_steps: int, env_steps: int) -> float:
    """Share of each batch: constant, or falling linearly to 0 over ``anneal_steps`` environment steps (0: constant)."""
    return share if anneal_steps <= 0 else share * max(0.0, 1.0 - env_steps / anneal_steps)


class MixedReplay:
    """Draws from two buffers as if they were one.

    R2D3 draws each row from one of them by chance; here the rows are divided by the share, which has less variance.

    Args:
        own: what the runners sampled.
        demonstrations: episodes of other policies.
    """

    def __init__(self, own: PrioritizedSequenceReplayBuffer, demonstrations: PrioritizedSequenceReplayBuffer) -> None:
        self.own = own
        self.demonstrations = demonstrations

    def sample(self, batch_size: int, share: float) -> SequenceBatch:
        """A batch, of which ``share`` are demonstrations, which come last; at least one row is of the own buffer."""
        shown = min(round(batch_size * share), batch_size - 1)
        batch = self.own.sample(batch_size - shown)
        if not shown:
            return batch
        others = self.demonstrations.sample(shown)
        others.slots[:] += self._offset
        return concatenated([batch, others])

    def update_priorities(self, slots: NDArray[np.int64], priorities: NDArray[np.floating[Any]]) -> None:
        """Give drawn windows of either buffer their new priorities, ``[B]``."""
        shown = slots >= self._offset
        self.own.update_priorities(slots[~shown], priorities[~shown])
        self.demonstrations.update_priorities(slots[shown] - self._offset, priorities[shown])

    @property
    def _offset(self) -> int:
        return self.own.num_slots


def concatenated(batches: Sequence[SequenceBatch]) -> SequenceBatch:
    """Batches of equal shapes, one after the other."""
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(SequenceBatch)):
        parts = [getattr(batch, name) for batch in batches]
        if isinstance(parts[0], dict):
            columns[name] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        else:
            columns[name] = np.concatenate(parts)
    return SequenceBatch(**columns)
