"""Prioritised replay of sequences with stored recurrent states (R2D2, Kapturowski et al. 2019, section 2.3)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.r2d2.episodes import (
    Arrays,
    FinishedEpisode,
    Fragment,
    StoredEpisode,
    finished_from_state,
    finished_to_state,
)
from agents.r2d2.sum_tree import SumTree
from agents.r2d2.targets import importance_weights
from recognizers.errors import ConfigurationError

LOWEST_PRIORITY = 1e-6
"""Keeps a sequence without any error drawable."""


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences of equal, padded shape. ``S = burn_in + train_length + 1``, ``T = train_length``.

    The time axis has two parts, each filled from its left: ``[:, :burn_in]`` holds the steps that only warm the
    recurrent state up, ``[:, burn_in:]`` the trained steps and the observation after the last of them. So the first
    trained step always stands at index ``burn_in``, whatever the length of the warm-up.

    Attributes:
        observations: each ``[B, S, ...]``.
        previous_actions: action before each observation plus one; 0 at an episode's start and in padding, ``[B, S]``.
        previous_rewards: reward before each observation, ``[B, S]``.
        actions: at the trained steps, ``[B, T]``.
        rewards: of the trained steps, ``[B, T]``.
        burn_in_lengths: real steps of the first part, ``[B]``, from 0.
        train_lengths: real steps of the second part, ``[B]``, from 1.
        terminated: the last trained step led to a terminal state, ``[B]``.
        states: recurrent state before the first observation of the row, each ``[B, H]``.
        weights: importance weights, ``[B]``.
        slots: where to return the priorities to, ``[B]``.
    """

    observations: Arrays
    previous_actions: NDArray[np.int64]
    previous_rewards: NDArray[np.float32]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float32]
    burn_in_lengths: NDArray[np.int64]
    train_lengths: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    states: Arrays
    weights: NDArray[np.float32]
    slots: NDArray[np.int64]


class PrioritizedSequenceReplayBuffer:
    """Stores every episode once and replays overlapping windows of it.

    A window is the pair (episode, first trained step ``s``): it trains on ``[s, s + train_length)`` and warms up on
    ``[max(0, s - burn_in), s)`` from the recurrent state the actor had there. Windows start every ``stride`` steps.
    Episodes leave, oldest first, when the steps exceed the capacity.

    Args:
        capacity: environment steps to hold.
        burn_in: longest warm-up in steps.
        train_length: trained steps of a sequence.
        stride: steps between the starts of sequences.
        priority_exponent: alpha; 0 draws uniformly.
        importance_exponent: beta; 0 leaves the bias of prioritised drawing uncorrected.
        seed: seeds the drawing.
    """

    def __init__(
        self,
        capacity: int,
        *,
        burn_in: int,
        train_length: int,
        stride: int,
        priority_exponent: float = 0.9,
        importance_exponent: float = 0.6,
        seed: int | None = None,
    ) -> None:
        self.capacity = capacity
        self.burn_in = burn_in
        self.train_length = train_length
        self.stride = stride
        self.priority_exponent = priority_exponent
        self.importance_exponent = importance_exponent
        self._generator = np.random.default_rng(seed)
        # An episode has at most one window per step, so there are never more windows than steps.
        self._tree = SumTree(capacity)
        self._free = list(range(capacity - 1, -1, -1))
        self._slot_episode = np.full(capacity, -1, dtype=np.int64)
        self._slot_start = np.zeros(capacity, dtype=np.int64)
        self._episodes: dict[int, StoredEpisode] = {}  # by number, oldest first
        self._growing: dict[str, int] = {}  # numbers of the episodes that are not done, by id
        self._next_number = 0
        self._steps = 0
        self._finished: list[FinishedEpisode] = []

    @property
    def num_steps(self) -> int:
        """Environment steps held."""
        return self._steps

    @property
    def num_sequences(self) -> int:
        """Sequences that can be drawn."""
        return self.capacity - len(self._free)

    @property
    def num_episodes(self) -> int:
        """Episodes held, complete or growing."""
        return len(self._episodes)

    def add(self, fragments: Iterable[Fragment]) -> None:
        """Store fragments. One whose beginning has been evicted meanwhile, or was never seen, is left out.

        Raises:
            ConfigurationError: a single episode exceeds the capacity.
        """
        for fragment in fragments:
            number = self._growing.get(fragment.episode_id)
            if len(fragment.actions) and (fragment.start == 0 or number is not None):
                self._add(fragment, number)

    def _add(self, fragment: Fragment, number: int | None) -> None:
        self._make_room(len(fragment.actions), number)
        if number is None:
            number = self._next_number
            self._next_number += 1
            self._growing[fragment.episode_id] = number
            self._episodes[number] = StoredEpisode(fragment)
        else:
            self._episodes[number].append(fragment)
        self._steps += len(fragment.actions)

        episode = self._episodes[number]
        self._insert(number, episode, episode.claim_starts(self.train_length, self.stride))
        if episode.done:
            del self._growing[episode.episode_id]
            self._finished.append(episode.finish())

    def _make_room(self, steps: int, growing: int | None) -> None:
        while self._steps + steps > self.capacity:
            oldest = next(iter(self._episodes), None)
            if oldest is None or oldest == growing:
                raise ConfigurationError(
                    f"an episode is longer than the replay capacity of {self.capacity} steps: raise the capacity"
                )
            episode = self._episodes.pop(oldest)
            self._growing.pop(episode.episode_id, None)
            self._steps -= len(episode)
            slots = np.array(episode.slots, dtype=np.int64)
            if len(slots):
                self._tree.set(slots, np.zeros(len(slots)))
                self._slot_episode[slots] = -1
                self._free.extend(episode.slots)

    def _insert(self, number: int, episode: StoredEpisode, starts: list[int]) -> None:
        if not starts:
            return
        # A new sequence gets the largest priority, so that each is likely to be replayed once.
        highest = float(self._tree.values.max()) or 1.0
        slots = np.array([self._free.pop() for _ in starts], dtype=np.int64)
        self._slot_episode[slots] = number
        self._slot_start[slots] = starts
        self._tree.set(slots, np.full(len(slots), highest))
        episode.slots.extend(slots.tolist())

    def sample(self, batch_size: int) -> SequenceBatch:
        """Draw sequences in proportion to ``priority^alpha``, with replacement."""
        slots = self._tree.sample(batch_size, self._generator)
        probabilities = self._tree[slots] / self._tree.total
        rows = [(self._episodes[self._slot_episode[slot]], int(self._slot_start[slot])) for slot in slots]
        shape = (batch_size, self.burn_in + self.train_length + 1)
        example = rows[0][0]
        batch = SequenceBatch(
            observations={
                key: np.zeros(shape + value.shape[1:], value.dtype) for key, value in example.observations.items()
            },
            previous_actions=np.zeros(shape, np.int64),
            previous_rewards=np.zeros(shape, np.float32),
            actions=np.zeros((batch_size, self.train_length), np.int64),
            rewards=np.zeros((batch_size, self.train_length), np.float32),
            burn_in_lengths=np.zeros(batch_size, np.int64),
            train_lengths=np.zeros(batch_size, np.int64),
            terminated=np.zeros(batch_size, np.bool_),
            states={key: np.zeros((batch_size, value.shape[1]), value.dtype) for key, value in example.states.items()},
            weights=importance_weights(probabilities, self.num_sequences, self.importance_exponent),
            slots=slots,
        )
        for row, (episode, start) in enumerate(rows):
            self._fill(batch, row, episode, start)
        return batch

    def _fill(self, batch: SequenceBatch, row: int, episode: StoredEpisode, start: int) -> None:
        first = max(0, start - self.burn_in)
        end = min(start + self.train_length, len(episode))
        batch.burn_in_lengths[row] = start - first
        batch.train_lengths[row] = end - start
        batch.terminated[row] = episode.terminated and end == len(episode)
        batch.actions[row, : end - start] = episode.actions[start:end]
        batch.rewards[row, : end - start] = episode.rewards[start:end]
        # (offset in the row, first observation, observation after the last) of the two parts
        for offset, low, high in ((0, first, start), (self.burn_in, start, end + 1)):
            for key, values in batch.observations.items():
                values[row, offset : offset + high - low] = episode.observations[key][low:high]
            second = max(low, 1)  # nothing comes before an episode's first observation
            if second < high:
                here = slice(offset + second - low, offset + high - low)
                batch.previous_actions[row, here] = episode.actions[second - 1 : high - 1] + 1
                batch.previous_rewards[row, here] = episode.rewards[second - 1 : high - 1]
        if first > 0:
            for key, values in batch.states.items():
                values[row] = episode.states[key][first - 1]

    def update_priorities(self, slots: NDArray[np.int64], priorities: NDArray[np.floating[Any]]) -> None:
        """Give drawn sequences their new priorities.

        Args:
            slots: of the drawn batch, ``[B]``; those evicted since are passed over.
            priorities: ``[B]``, not negative.
        """
        held = self._slot_episode[slots] >= 0
        values = np.maximum(priorities[held].astype(np.float64), LOWEST_PRIORITY) ** self.priority_exponent
        self._tree.set(slots[held], values)

    def drain_finished_episodes(self) -> list[FinishedEpisode]:
        """Records of the episodes completed since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on drawing the same sequences, as arrays and plain values."""
        return {
            "capacity": self.capacity,
            "episodes": {number: episode.get_state() for number, episode in self._episodes.items()},
            "growing": dict(self._growing),
            "next_number": self._next_number,
            "free": np.array(self._free, dtype=np.int64),
            "slot_episode": self._slot_episode.copy(),
            "slot_start": self._slot_start.copy(),
            "tree": self._tree.values,
            "finished": [finished_to_state(episode) for episode in self._finished],
            "generator": self._generator.bit_generator.state,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`get_state` of a buffer of the same capacity.

        Raises:
            ConfigurationError: the state belongs to a buffer of another capacity.
        """
        if state["capacity"] != self.capacity:
            raise ConfigurationError(
                f"the saved replay buffer holds {state['capacity']} steps, this one {self.capacity}: "
                "resume with the capacity the run was started with"
            )
        self._episodes = {number: StoredEpisode.from_state(saved) for number, saved in state["episodes"].items()}
        self._growing = dict(state["growing"])
        self._next_number = state["next_number"]
        self._steps = sum(len(episode) for episode in self._episodes.values())
        self._free = state["free"].tolist()
        self._slot_episode = state["slot_episode"].copy()
        self._slot_start = state["slot_start"].copy()
        self._tree = SumTree(self.capacity)
        self._tree.set(np.arange(self.capacity), state["tree"])
        self._finished = [finished_from_state(saved) for saved in state["finished"]]
        self._generator.bit_generator.state = state["generator"]
