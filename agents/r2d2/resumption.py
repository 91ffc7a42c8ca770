"""Episodes that are under way when a checkpoint is written: played again from their seeds and actions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from agents.r2d2.episodes import Fragment, as_mapping


@dataclass(frozen=True)
class Underway:
    """What an episode has been so far.

    Attributes:
        seed: that the environment reported at reset, if it did.
        actions: taken since.
    """

    seed: int | None
    actions: tuple[int, ...] = ()


def followed(underway: Mapping[str, Underway], fragments: Iterable[Fragment]) -> dict[str, Underway]:
    """The episodes under way, by id, after a runner has sampled ``fragments``."""
    known = dict(underway)
    for fragment in fragments:
        if fragment.terminated or fragment.truncated:
            known.pop(fragment.episode_id, None)
        else:
            begun = known.get(fragment.episode_id, Underway(fragment.episode_seed))
            actions = (*begun.actions, *fragment.actions.tolist())
            known[fragment.episode_id] = replace(begun, actions=actions)
    return known


def play_again(env: gym.Env[Any, Any], underway: Underway, last: Any) -> bool:
    """Bring an environment to where an episode has been.

    Args:
        env: whose ``reset(seed)`` and actions determine an episode.
        underway: the episode.
        last: the observation that it should end with.

    Returns:
        Whether it does. An environment that reports no seed, or does not follow it, cannot be brought there.
    """
    if underway.seed is None:
        return False
    observation, _ = env.reset(seed=underway.seed)
    for action in underway.actions:
        observation = env.step(action)[0]
    seen, expected = as_mapping(observation), as_mapping(last)
    return all(np.array_equal(np.asarray(seen[key]), np.asarray(value)) for key, value in expected.items())
