"""Prioritised replay of sequences with stored recurrent states (R2D2, Kapturowski et al. 2019, section 2.3)."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.r2d2.episodes import Arrays, Branches, FinishedEpisode, Fragment, StoredEpisode
from agents.r2d2.windows import NO_BRANCH, WindowPool
from recognizers.errors import ConfigurationError


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
        ages: environment steps that have come in since the row could first be drawn, ``[B]``.
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
    ages: NDArray[np.int64]


class PrioritizedSequenceReplayBuffer:
    """Stores every episode once and replays overlapping windows of it.

    A window is the pair (episode, first trained step ``s``): it trains on ``[s, s + train_length)`` and warms up on
    ``[max(0, s - burn_in), s)`` from the recurrent state the actor had there. Windows start every ``stride`` steps.

    A branch (a step that was probed and not taken) is a window of its own, with the episode's steps before it as
    warm-up. Only the branch is trained: a return over several steps would charge the steps before it with an action
    that was turned down. A fixed share of each batch are branches, as there may be many times more of them than of
    sequences.

    Episodes leave, oldest first, when steps and branches exceed the capacity.

    Args:
        capacity: transitions to hold: environment steps, and branches.
        burn_in: longest warm-up in steps.
        train_length: trained steps of a sequence.
        stride: steps between the starts of sequences.
        priority_exponent: alpha; 0 draws uniformly.
        importance_exponent: beta; 0 leaves the bias of prioritised drawing uncorrected.
        branch_share: share of a batch's rows that are branches, as soon as there are any.
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
        branch_share: float = 0.25,
        seed: int | None = None,
    ) -> None:
        self.capacity = capacity
        self.burn_in = burn_in
        self.train_length = train_length
        self.stride = stride
        self.importance_exponent = importance_exponent
        self.branch_share = branch_share
        self._generator = np.random.default_rng(seed)
        # An episode has at most one window per step, so there are never more windows than transitions.
        self._sequences = WindowPool(capacity, priority_exponent)
        self._branches = WindowPool(capacity, priority_exponent)
        self._episodes: dict[int, StoredEpisode] = {}  # by number, oldest first
        self._growing: dict[str, int] = {}  # numbers of the episodes that are not done, by id
        self._next_number = 0
        self._transitions = 0
        self._clock = 0  # environment steps that ever came in
        self._finished: list[FinishedEpisode] = []

    @property
    def num_slots(self) -> int:
        """Bound of the slots in batches."""
        return 2 * self.capacity

    @property
    def num_transitions(self) -> int:
        """Environment steps and branches held."""
        return self._transitions

    @property
    def num_sequences(self) -> int:
        """Sequences that can be drawn."""
        return len(self._sequences)

    @property
    def num_branches(self) -> int:
        """Branches that can be drawn."""
        return len(self._branches)

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
        transitions = len(fragment.actions) + len(fragment.branches)
        self._make_room(transitions, number)
        if number is None:
            number = self._next_number
            self._next_number += 1
            self._growing[fragment.episode_id] = number
            self._episodes[number] = StoredEpisode(fragment)
        else:
            self._episodes[number].append(fragment)
        self._transitions += transitions
        self._clock += len(fragment.actions)

        episode = self._episodes[number]
        starts = episode.claim_starts(self.train_length, self.stride)
        episode.slots += self._sequences.insert(number, starts, None, self._clock)
        fresh = range(len(episode.branches) - len(fragment.branches), len(episode.branches))
        episode.branch_slots += self._branches.insert(number, fragment.branches.steps.tolist(), fresh, self._clock)
        if episode.done:
            del self._growing[episode.episode_id]
            self._finished.append(episode.finish())

    def _make_room(self, transitions: int, growing: int | None) -> None:
        while self._transitions + transitions > self.capacity:
            oldest = next(iter(self._episodes), None)
            if oldest is None or oldest == growing:
                raise ConfigurationError(
                    f"an episode, with what was probed along it, is longer than the replay capacity of {self.capacity} "
                    "steps: raise the capacity"
                )
            episode = self._episodes.pop(oldest)
            self._growing.pop(episode.episode_id, None)
            self._transitions -= episode.num_transitions
            self._sequences.remove(episode.slots)
            self._branches.remove(episode.branch_slots)

    def sample(self, batch_size: int) -> SequenceBatch:
        """Draw windows in proportion to ``priority^alpha``, with replacement; sequences first, then branches."""
        branches = round(batch_size * self.branch_share) if len(self._branches) else 0
        slots, weights = self._sequences.sample(batch_size - branches, self._generator, self.importance_exponent)
        pools = [(self._sequences, slots)]
        if branches:
            drawn, own_weights = self._branches.sample(branches, self._generator, self.importance_exponent)
            pools.append((self._branches, drawn))
            slots, weights = np.concatenate([slots, self.capacity + drawn]), np.concatenate([weights, own_weights])
        rows = [
            (self._episodes[pool.episode[slot]], int(pool.start[slot]), int(pool.branch[slot]))
            for pool, drawn in pools
            for slot in drawn
        ]
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
            weights=weights,
            slots=slots,
            ages=self._clock - np.concatenate([pool.born[drawn] for pool, drawn in pools]),
        )
        for row, (episode, start, branch) in enumerate(rows):
            if branch == NO_BRANCH:
                self._fill(batch, row, episode, start, min(start + self.train_length, len(episode)))
            else:
                # As a sequence of the one step that stands there, whose outcome is then replaced.
                self._fill(batch, row, episode, start, start + 1)
                self._turn_off(batch, row, episode.branches, branch)
        return batch

    def _fill(self, batch: SequenceBatch, row: int, episode: StoredEpisode, start: int, end: int) -> None:
        first = max(0, start - self.burn_in)
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

    def _turn_off(self, batch: SequenceBatch, row: int, branches: Branches, branch: int) -> None:
        """Replace the only trained step of a row by a branch."""
        after = self.burn_in + 1
        batch.terminated[row] = branches.terminated[branch]
        batch.actions[row, 0] = branches.actions[branch]
        batch.rewards[row, 0] = branches.rewards[branch]
        batch.previous_actions[row, after] = branches.actions[branch] + 1
        batch.previous_rewards[row, after] = branches.rewards[branch]
        for key, values in batch.observations.items():
            values[row, after] = branches.observations[key][branch]

    def update_priorities(self, slots: NDArray[np.int64], priorities: NDArray[np.floating[Any]]) -> None:
        """Give drawn windows their new priorities.

        Args:
            slots: of the drawn batch, ``[B]``; those evicted since are passed over.
            priorities: ``[B]``, not negative.
        """
        branches = slots >= self.capacity
        self._sequences.update(slots[~branches], priorities[~branches])
        self._branches.update(slots[branches] - self.capacity, priorities[branches])

    def drain_finished_episodes(self) -> list[FinishedEpisode]:
        """Records of the episodes completed since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on drawing the same windows, as arrays and plain values."""
        return {
            "capacity": self.capacity,
            "episodes": {number: episode.get_state() for number, episode in self._episodes.items()},
            "growing": dict(self._growing),
            "next_number": self._next_number,
            "clock": self._clock,
            "sequences": self._sequences.get_state(),
            "branches": self._branches.get_state(),
            "finished": [asdict(episode) for episode in self._finished],
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
        self._clock = state["clock"]
        self._transitions = sum(episode.num_transitions for episode in self._episodes.values())
        self._sequences.set_state(state["sequences"])
        self._branches.set_state(state["branches"])
        self._finished = [FinishedEpisode(**saved) for saved in state["finished"]]
        self._generator.bit_generator.state = state["generator"]
