"""Episodes as plain arrays: fragments from a runner, their assembly, and the record kept of a finished episode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from agents.r2d2.heads import ACTION_MASK

Arrays = dict[str, NDArray[Any]]

SINGLE_OBSERVATION = "observation"
"""Key under which an observation that is no ``Dict`` is filed."""


def as_mapping(observation: Any) -> Mapping[str, Any]:
    """Observations are handled as mappings throughout; a bare array becomes the only entry of one."""
    return observation if isinstance(observation, Mapping) else {SINGLE_OBSERVATION: observation}


class Probed(Protocol):
    """What an environment's ``probe`` says of an action, as :class:`envs.pruning.Probe` does."""

    @property
    def action(self) -> Any:
        """The action, an index."""

    @property
    def reward(self) -> float:
        """Its reward."""

    @property
    def terminated(self) -> bool:
        """Whether the episode would end."""

    @property
    def efficiency(self) -> float:
        """How good the step looks by itself."""

    @property
    def observation(self) -> Any:
        """What would be observed after it."""

    @property
    def action_mask(self) -> Any:
        """Which actions would be valid after it, ``[A]``."""


@dataclass(frozen=True)
class ProbedStep:
    """A step before which actions were probed.

    Attributes:
        step: its number in the episode.
        taken: the action that was taken in the end.
        probes: what was probed.
    """

    step: int
    taken: int
    probes: Sequence[Probed]


@dataclass(frozen=True)
class Branches:
    """Steps that were probed for real and not taken: each shares the episode up to its step, and ends there.

    Attributes:
        steps: number of the step in the episode that each stands beside, ``[K]``.
        actions: ``[K]``.
        rewards: ``[K]``.
        terminated: the step would have led to a terminal state, ``[K]``.
        observations: after the step, each ``[K, ...]``.
    """

    steps: NDArray[np.int64]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    observations: Arrays

    def __len__(self) -> int:
        return len(self.steps)

    @classmethod
    def none(cls, observations: Arrays) -> "Branches":
        """No branch, of an episode with such observations, each ``[T, ...]``."""
        whole = np.zeros(0, dtype=np.int64)
        nothing = {key: value[:0] for key, value in observations.items()}
        return cls(whole, whole, np.zeros(0), np.zeros(0, dtype=np.bool_), nothing)

    def joined(self, other: "Branches") -> "Branches":
        """These branches, then the others."""
        if not len(other):
            return self
        return Branches(
            np.concatenate([self.steps, other.steps]),
            np.concatenate([self.actions, other.actions]),
            np.concatenate([self.rewards, other.rewards]),
            np.concatenate([self.terminated, other.terminated]),
            {key: np.concatenate([value, other.observations[key]]) for key, value in self.observations.items()},
        )


@dataclass(frozen=True)
class Fragment:
    """Consecutive steps of one episode, as sampled in one go.

    Attributes:
        episode_id: the same for all fragments of an episode.
        start: number of steps of the episode before this fragment.
        observations: each ``[T + 1, ...]``: before every step, and after the last.
        actions: ``[T]``.
        rewards: ``[T]``, as the environment gave them.
        states: recurrent state after every step, each ``[T, H]``.
        terminated: the last step led to a terminal state.
        truncated: the episode was stopped after the last step for another reason.
        episode_seed: the seed the environment reported at reset, if it did.
        branches: what was probed beside these steps and not taken.
        probes: how many actions were probed beside these steps, the taken ones included.
    """

    episode_id: str
    start: int
    observations: Arrays
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    states: Arrays
    terminated: bool
    truncated: bool
    episode_seed: int | None
    branches: Branches
    probes: int


def fragment_from_rllib(episode: SingleAgentEpisode, probed: Sequence[ProbedStep] = ()) -> Fragment:
    """Take the arrays out of an RLlib episode (which has been converted to numpy, as runners do).

    Args:
        episode: the episode, or a part of it.
        probed: what was probed at its steps.
    """
    observations = {key: np.asarray(value) for key, value in as_mapping(episode.get_observations()).items()}
    return Fragment(
        episode_id=episode.id_,
        start=episode.t_started,
        observations=observations,
        actions=np.asarray(episode.get_actions(), dtype=np.int64),
        rewards=np.asarray(episode.get_rewards(), dtype=np.float64),
        states={key: np.asarray(value) for key, value in episode.get_extra_model_outputs(Columns.STATE_OUT).items()},
        terminated=bool(episode.is_terminated),
        truncated=bool(episode.is_truncated),
        episode_seed=seed_of(episode) if episode.t_started == 0 else None,
        branches=branches_of(probed, observations),
        probes=sum(len(step.probes) for step in probed),
    )


def seed_of(episode: SingleAgentEpisode) -> int | None:
    """The seed that the environment reported at the reset with which an episode begins, if it did."""
    seed = episode.get_infos(0).get("episode_seed")
    return None if seed is None else int(seed)


def branches_of(probed: Sequence[ProbedStep], observations: Arrays) -> Branches:
    """The branches of an episode with such ``observations`` (each ``[T, ...]``) from what was probed at its steps."""
    left = [(step.step, probe) for step in probed for probe in step.probes if int(probe.action) != step.taken]
    if not left:
        return Branches.none(observations)
    after = [{ACTION_MASK: probe.action_mask, **as_mapping(probe.observation)} for _, probe in left]
    return Branches(
        steps=np.array([step for step, _ in left], dtype=np.int64),
        actions=np.array([int(probe.action) for _, probe in left], dtype=np.int64),
        rewards=np.array([probe.reward for _, probe in left], dtype=np.float64),
        terminated=np.array([probe.terminated for _, probe in left], dtype=np.bool_),
        observations={
            key: np.stack([entry[key] for entry in after]).astype(value.dtype) for key, value in observations.items()
        },
    )


@dataclass(frozen=True)
class FinishedEpisode:
    """What is kept of a completed episode: enough to replay it.

    Attributes:
        actions: ``[T]``.
        rewards: ``[T]``, as the environment gave them.
        episode_seed: the seed the environment reported at reset, if it did.
        terminated: ended in a terminal state.
        accuracy: ``accuracy`` of every observation, ``T + 1`` of them, if the environment has it.
    """

    actions: list[int]
    rewards: list[float]
    episode_seed: int | None
    terminated: bool
    accuracy: list[float] | None

    @property
    def episode_return(self) -> float:
        """Sum of the rewards."""
        return float(sum(self.rewards))


class StoredEpisode:
    """An episode in the replay buffer, grown fragment by fragment.

    Args:
        fragment: its first fragment.
    """

    def __init__(self, fragment: Fragment) -> None:
        self.episode_id = fragment.episode_id
        self.episode_seed = fragment.episode_seed
        self.observations = fragment.observations
        self.actions = fragment.actions
        self.rewards = fragment.rewards
        self.states = fragment.states
        self.terminated = fragment.terminated
        self.truncated = fragment.truncated
        self.branches = fragment.branches
        self.next_start = 0
        self.slots: list[int] = []
        self.branch_slots: list[int] = []

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def done(self) -> bool:
        """Whether no more fragments will follow."""
        return self.terminated or self.truncated

    @property
    def num_transitions(self) -> int:
        """Steps, and branches beside them."""
        return len(self) + len(self.branches)

    def append(self, fragment: Fragment) -> None:
        """Add the fragment that follows."""
        # The first observation of a fragment is the last one of its predecessor.
        self.observations = {
            key: np.concatenate([value, fragment.observations[key][1:]]) for key, value in self.observations.items()
        }
        self.actions = np.concatenate([self.actions, fragment.actions])
        self.rewards = np.concatenate([self.rewards, fragment.rewards])
        self.states = {key: np.concatenate([value, fragment.states[key]]) for key, value in self.states.items()}
        self.terminated, self.truncated = fragment.terminated, fragment.truncated
        self.branches = self.branches.joined(fragment.branches)

    def claim_starts(self, train_length: int, stride: int) -> list[int]:
        """First trained steps of the sequences that have become complete since the last call.

        A sequence is complete when all its steps exist, or the episode has ended. One more starts every ``stride``
        steps until a sequence reaches the end; a short episode is thus one sequence, from its reset on.
        """
        starts = []
        while self._is_complete(self.next_start, train_length, stride):
            starts.append(self.next_start)
            self.next_start += stride
        return starts

    def _is_complete(self, start: int, train_length: int, stride: int) -> bool:
        if not self.done:
            return start + train_length <= len(self)
        reached_end = start > 0 and start - stride + train_length >= len(self)
        return not reached_end

    def finish(self) -> FinishedEpisode:
        """The record of this episode."""
        accuracy = self.observations.get("accuracy")
        return FinishedEpisode(
            actions=self.actions.tolist(),
            rewards=self.rewards.tolist(),
            episode_seed=self.episode_seed,
            terminated=self.terminated,
            accuracy=None if accuracy is None else accuracy.reshape(len(accuracy), -1)[:, 0].tolist(),
        )

    def get_state(self) -> dict[str, Any]:
        """All fields, as arrays and plain values."""
        return {
            **vars(self),
            "branches": vars(self.branches),
            "slots": list(self.slots),
            "branch_slots": list(self.branch_slots),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "StoredEpisode":
        """Rebuild an episode from :meth:`get_state`."""
        episode = cls.__new__(cls)
        vars(episode).update(
            state,
            branches=Branches(**state["branches"]),
            slots=list(state["slots"]),
            branch_slots=list(state["branch_slots"]),
        )
        return episode
