"""The random policy."""

from typing import Any

import numpy as np

from agents.baselines.orders import RemovalOrder
from agents.policy import register_policy
from envs.actions import Action, DiscreteActions
from envs.pruning import Observation, PruningEnv


@register_policy("random")
class RandomPolicy:
    """Takes a valid action at random, uniformly; where actions are masks, one that removes random units."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)

    def reset(self, env: PruningEnv) -> None:
        """Go on drawing: every episode differs."""
        self._env = env

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        """Draw among the valid actions."""
        if isinstance(self._env.actions, DiscreteActions):
            return int(self._generator.choice(np.flatnonzero(info["action_mask"])))
        genes = self._generator.permutation(np.flatnonzero(info["action_mask"]))
        return RemovalOrder(self._env, genes).next(observation["mask"])
