"""Recorded episodes: saving, replay, and validation by replay."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from envs.actions import Action, Stop
from envs.errors import EpisodeError, InvalidActionError
from envs.objectives import Measurement
from envs.pruning import Observation, PruningEnv
from recognizers.errors import FileError, first_fault
from recognizers.files import append_text, read_text, write_text


class Episode(BaseModel):
    """All that is needed to play an episode again and to check what it gave.

    Attributes:
        task: name of the task.
        base_sha256: of the recognizer's base weights.
        policy: name of the policy.
        seed: ``reset(seed=...)`` of the episode.
        actions: taken, in order: indices, or bits in hexadecimal digits.
        rewards: of each action.
        accuracies: on the reward split after each action.
        parameter_reductions: after each action.
        macs_reductions: after each action.
        latency_reductions: after each action; None without a latency table.
        latency_sha256: of the latency table.
        terminated: whether the last action ended the episode.
        phase: where the episode comes from: a policy's own run, training (with exploration), or an evaluation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    schema_version: Literal[1] = 1
    task: str
    base_sha256: str
    policy: str
    seed: int
    actions: tuple[int | str, ...]
    rewards: tuple[float, ...]
    accuracies: tuple[float, ...]
    parameter_reductions: tuple[float, ...]
    macs_reductions: tuple[float, ...]
    latency_reductions: tuple[float, ...] | None = None
    latency_sha256: str | None = None
    terminated: bool
    phase: Literal["run", "training", "evaluation"] = "run"

    @model_validator(mode="after")
    def _equal_lengths(self) -> "Episode":
        columns = [self.actions, self.rewards, self.accuracies, self.parameter_reductions, self.macs_reductions]
        if self.latency_reductions is not None:
            columns.append(self.latency_reductions)
        if len(set(map(len, columns))) != 1:
            raise ValueError("actions, rewards, accuracies and reductions must have equal lengths")
        if (self.latency_reductions is None) != (self.latency_sha256 is None):
            raise ValueError("latency_reductions and latency_sha256 go together")
        return self

    @property
    def episode_return(self) -> float:
        """Sum of the rewards."""
        return float(sum(self.rewards))

    @property
    def states(self) -> list[Measurement]:
        """What was measured after each action."""
        columns = [self.accuracies, self.parameter_reductions, self.macs_reductions]
        if self.latency_reductions is not None:
            columns.append(self.latency_reductions)
        return [Measurement(*figures) for figures in zip(*columns, strict=True)]


def measured(env: PruningEnv, states: Sequence[Measurement]) -> dict[str, Any]:
    """The fields of an episode that say what was measured after each action."""
    latencies = tuple(state.latency_reduction for state in states)
    return {
        "accuracies": tuple(state.accuracy for state in states),
        "parameter_reductions": tuple(state.parameter_reduction for state in states),
        "macs_reductions": tuple(state.macs_reduction for state in states),
        "latency_reductions": None if env.recognizer.latency_sha256 is None else latencies,
        "latency_sha256": env.recognizer.latency_sha256,
    }


class Recording:
    """An episode in the making: steps the environment, and keeps what the record needs.

    Args:
        env: the environment, unwrapped; it is reset.
        seed: of the episode.
        policy: name for the record.
        phase: for the record.

    Attributes:
        observation: after the last step.
        info: after the last step.
        terminated: whether the episode has ended.
    """

    def __init__(
        self, env: PruningEnv, *, seed: int, policy: str, phase: Literal["run", "training", "evaluation"] = "run"
    ) -> None:
        self._env, self._head = env, {"seed": seed, "policy": policy, "phase": phase}
        self.observation, self.info = env.reset(seed=seed)
        self.terminated = not self.info["action_mask"].any()
        self._actions: list[int | str] = []
        self._rewards: list[float] = []
        self._states: list[Measurement] = []

    def step(self, action: Action) -> float:
        """Take an action; returns its reward.

        Raises:
            InvalidActionError: it does not exist or is not valid now; nothing was done.
        """
        self.observation, reward, self.terminated, _, self.info = self._env.step(action)
        self._actions.append(self._env.actions.record(action))
        self._rewards.append(reward)
        self._states.append(self._env.measurement)
        return reward

    def episode(self) -> Episode:
        """The record so far."""
        return Episode(
            task=self._env.task.name,
            base_sha256=self._env.recognizer.base_sha256,
            actions=tuple(self._actions),
            rewards=tuple(self._rewards),
            **measured(self._env, self._states),
            terminated=self.terminated,
            **self._head,
        )


def play(
    env: PruningEnv,
    choose: Callable[[Observation, dict[str, Any]], Action | Stop],
    *,
    seed: int,
    policy: str,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    phase: Literal["run", "training", "evaluation"] = "run",
) -> Episode:
    """Play one episode.

    Args:
        env: the environment, unwrapped.
        choose: from observation and info to an action, or a stop, which ends the episode where it is.
        seed: of the episode.
        policy: name for the record.
        on_step: called with every step's info.
        phase: for the record.
    """
    recording = Recording(env, seed=seed, policy=policy, phase=phase)
    while not recording.terminated:
        action = choose(recording.observation, recording.info)
        if isinstance(action, Stop):
            break
        recording.step(action)
        if on_step is not None:
            on_step(recording.info)
    return recording.episode()


def replay(env: PruningEnv, episode: Episode, *, steps: int | None = None) -> Episode:
    """Play the (first ``steps``) actions of an episode again; the environment is left in the state they lead to.

    Raises:
        EpisodeError: the episode was recorded on another task, with other base weights, or with another latency table.
        InvalidActionError: an action is not valid where it was recorded.
    """
    if episode.task != env.task.name:
        raise EpisodeError(f"the episode was recorded on task {episode.task!r}, not on {env.task.name!r}")
    if episode.base_sha256 != env.recognizer.base_sha256:
        raise EpisodeError(
            f"the episode was recorded with other base weights ({episode.base_sha256[:12]}...; "
            f"loaded: {env.recognizer.base_sha256[:12]}...)"
        )
    if episode.latency_sha256 != env.recognizer.latency_sha256:
        recorded, loaded = (
            "none" if sha256 is None else f"{sha256[:12]}..."
            for sha256 in (episode.latency_sha256, env.recognizer.latency_sha256)
        )
        raise EpisodeError(f"the episode was recorded with another latency table ({recorded}; loaded: {loaded})")
    actions = episode.actions[:steps]
    env.reset(seed=episode.seed)
    rewards, states, terminated = [], [], False
    for action in actions:
        _, reward, terminated, _, _ = env.step(_recall(env, action))
        rewards.append(reward)
        states.append(env.measurement)
    return episode.model_copy(
        update={
            "actions": actions,
            "rewards": tuple(rewards),
            **measured(env, states),
            "terminated": terminated,
        }
    )


def _recall(env: PruningEnv, record: int | str) -> Action:
    try:
        return env.actions.recall(record)
    except ValueError as error:
        raise InvalidActionError(f"with actions.kind={env.task.actions.kind}: {error}") from error


def validate(env: PruningEnv, episode: Episode, *, tolerance: float = 1e-6) -> None:
    """Replay an episode and refuse it where it gives anything else than recorded.

    Args:
        env: the environment of the episode's task.
        episode: the record.
        tolerance: largest accepted difference of rewards, accuracies and reductions (fractions). Another processor
            may round an image over the edge.

    Raises:
        EpisodeError: with the first step that differs, and how.
    """
    try:
        played = replay(env, episode)
    except InvalidActionError as error:
        raise EpisodeError(f"an action was not valid where it was recorded: {error}") from error
    latency = [] if episode.latency_reductions is None else ["latency_reductions"]
    for field in ("rewards", "accuracies", "parameter_reductions", "macs_reductions", *latency):
        recorded, actual = np.array(getattr(episode, field)), np.array(getattr(played, field))
        wrong = np.flatnonzero(~(np.abs(recorded - actual) <= tolerance))
        if wrong.size:
            step = int(wrong[0])
            raise EpisodeError(
                f"step {step} (action {episode.actions[step]}): recorded {field} {recorded[step]:.6f}, "
                f"replayed {actual[step]:.6f}"
            )
    if episode.terminated != played.terminated:
        raise EpisodeError(f"recorded terminated={episode.terminated}, replayed terminated={played.terminated}")


def write_episodes(path: str | os.PathLike[str], episodes: Iterable[Episode]) -> None:
    """Write episodes atomically, one JSON line each."""
    write_text(path, "".join(episode.model_dump_json() + "\n" for episode in episodes))


def append_episodes(path: str | os.PathLike[str], episodes: Iterable[Episode]) -> None:
    """Append episodes, one JSON line each. A kill can cut the last line; :func:`read_episodes` names it then."""
    append_text(path, "".join(episode.model_dump_json() + "\n" for episode in episodes))


def repair_episodes(path: str | os.PathLike[str]) -> None:
    """Cut off a last line that a kill left half-written, so that appending can go on."""
    try:
        content = Path(path).read_bytes()  # the cut may go through a character
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}") from error
    if content and not content.endswith(b"\n"):
        write_text(path, content[: content.rfind(b"\n") + 1].decode())


def _lines(text: str) -> list[str]:
    # Not splitlines: it also splits at characters that JSON leaves as they are, such as U+2028.
    return text.removesuffix("\n").split("\n") if text else []


def read_episodes(path: str | os.PathLike[str]) -> Iterator[Episode]:
    """Read the episodes of a JSON-lines file.

    Raises:
        FileError: the file is missing or unreadable.
        EpisodeError: a line is corrupt, truncated or not an episode.
    """
    for number, line in enumerate(_lines(read_text(path)), start=1):
        try:
            yield Episode.model_validate(json.loads(line))
        except json.JSONDecodeError as error:
            raise EpisodeError(f"{path}, line {number}: not JSON (truncated or corrupt)") from error
        except ValidationError as error:
            raise EpisodeError(f"{path}, line {number}: {first_fault(error)}") from error
