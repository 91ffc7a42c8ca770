"""The random policy."""

from typing import Any

import numpy as np

from agents.policy import register_policy
from envs.pruning import Observation, PruningEnv


@register_policy("random")
class RandomPolicy:
    """Takes a valid action at random, uniformly."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)

    def reset(self, env: PruningEnv) -> None:
        """Go on drawing: every episode differs."""

    def act(self, observation: Observation, info: dict[str, Any]) -> int:
        """Draw among the valid actions."""
        return int(self._generator.choice(np.flatnonzero(info["action_mask"])))
