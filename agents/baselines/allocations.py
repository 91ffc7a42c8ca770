"""Hand-made rules ALLOCATION:CRITERION: the allocation says how many units each layer loses, the criterion which."""

from typing import Any

import numpy as np

from agents.policy import argmin_valid, register_allocation
from envs.pruning import Observation, PruningEnv
from recognizers.criteria import Criterion, layer_normalised


class _Allocation:
    """Scores units by the criterion once per episode, on the base weights, and actions by their units' mean."""

    def __init__(self, criterion: Criterion, seed: int = 0) -> None:
        self._criterion = criterion
        self._generator = np.random.default_rng(seed)

    def reset(self, env: PruningEnv) -> None:
        self._env = env
        env.recognizer.reset()
        scores = self._criterion(env.recognizer, self._generator)
        self._scores = layer_normalised(scores, env.recognizer)  # [U]

    def _action_scores(self, mask: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Mean score of the units that each valid action removes, ``[A]``; 0 for the others."""
        actions = self._env.actions
        return np.array(
            [
                self._scores[actions.units(action, mask)].mean() if valid[action] else 0.0
                for action in range(len(actions))
            ]
        )


@register_allocation("uniform")
class UniformAllocation(_Allocation):
    """All layers keep equal shares of their units; within a layer the least important go first."""

    def act(self, observation: Observation, info: dict[str, Any]) -> int:
        """The least important group of the layer with the largest kept share."""
        mask, valid = observation["mask"], info["action_mask"]
        layers = self._env.recognizer.table.layers
        share = np.array([mask[layer.start : layer.stop].mean() for layer in layers])[
            self._env.action_table.layer_of_action
        ]  # [A]
        fullest = valid * (share >= share[valid != 0].max() - 1e-9)
        return argmin_valid(self._action_scores(mask, fullest), fullest)


@register_allocation("global")
class GlobalAllocation(_Allocation):
    """The least important groups go first, wherever they are; scores are divided by their layer's mean."""

    def act(self, observation: Observation, info: dict[str, Any]) -> int:
        """The least important group of all."""
        mask, valid = observation["mask"], info["action_mask"]
        return argmin_valid(self._action_scores(mask, valid), valid)
