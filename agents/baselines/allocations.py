"""Hand-made rules ALLOCATION:CRITERION: the allocation says how many units each layer loses, the criterion which."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from agents.policy import argmin_valid, register_allocation
from envs.actions import Action, DiscreteActions, Stop
from envs.objectives import Budget
from envs.pruning import Observation, PruningEnv
from recognizers.criteria import Criterion, comparable_scores
from recognizers.errors import ConfigurationError


class Allocation(ABC):
    """Scores units by the criterion once per episode, on the base weights.

    Among discrete actions it takes one after the other, scored by their units' mean. Where an action is a mask, it
    plans the whole mask for the objective's target, and one step does it.

    Args:
        criterion: scores units.
        seed: of what the criterion draws.
    """

    def __init__(self, criterion: Criterion, seed: int = 0) -> None:
        self._criterion = criterion
        self._generator = np.random.default_rng(seed)

    def reset(self, env: PruningEnv) -> None:
        """Score the units."""
        self._env = env
        env.recognizer.reset()
        self._scores = comparable_scores(self._criterion, env.recognizer, self._generator)  # [U]
        self._plan = None if isinstance(env.actions, DiscreteActions) else self._mask(env)

    def act(self, observation: Observation, info: dict[str, Any]) -> Action | Stop:
        """The planned mask, or the next action."""
        return self._next(observation["mask"], info["action_mask"]) if self._plan is None else self._plan

    @abstractmethod
    def counts(self, env: PruningEnv, target: Budget) -> np.ndarray:
        """How many units each layer loses, ``[layers]`` int64, so that the target is just met."""

    @abstractmethod
    def _next(self, mask: np.ndarray, valid: np.ndarray) -> int | Stop:
        """The next of discrete actions."""

    def _mask(self, env: PruningEnv) -> np.ndarray:
        if not isinstance(env.objective, Budget):
            raise ConfigurationError(
                f"with actions.kind={env.task.actions.kind} this policy plans for a budget: set --target-macs, or "
                "objective.kind=budget; under a tolerance choose --actions block"
            )
        return removal_mask(self._order(env), self.counts(env, env.objective))

    def _order(self, env: PruningEnv) -> list[np.ndarray]:
        """The units of each layer, least important first."""
        return [
            layer.units[np.argsort(self._scores[layer.start : layer.stop], kind="stable")]
            for layer in env.recognizer.table.layers
        ]

    def _missing(self, goal: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """How many units each layer is still to lose, ``[layers]``, where it is to lose ``goal`` in all."""
        return goal - [int((mask[layer.start : layer.stop] == 0).sum()) for layer in self._env.recognizer.table.layers]

    def _toward(self, goal: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> int:
        """The least important group of the layer that is farthest from losing ``goal`` units, by its size."""
        sizes = [len(layer) for layer in self._env.recognizer.table.layers]
        missing = (self._missing(goal, mask) / sizes)[self._env.action_table.layer_of_action]  # [A]
        farthest = valid * (missing >= missing[valid != 0].max() - 1e-9)
        return argmin_valid(self._action_scores(mask, farthest), farthest)

    def _action_scores(self, mask: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Mean score of the units that each valid action removes, ``[A]``; 0 for the others."""
        actions = self._env.actions
        return np.array(
            [
                float(self._scores[actions.units(action, mask)].mean()) if valid[action] else 0.0
                for action in range(len(valid))
            ]
        )


@register_allocation("uniform")
class UniformAllocation(Allocation):
    """All layers keep equal shares of their units; within a layer the least important go first."""

    def counts(self, env: PruningEnv, target: Budget) -> np.ndarray:
        """Equal shares, rounded down, and one unit more in the first layers until the target is met."""
        sizes = np.array([len(layer) for layer in env.recognizer.table.layers])

        def share(part: float) -> np.ndarray:
            counts: np.ndarray = np.minimum((sizes * part + 1e-9).astype(np.int64), sizes - 1)
            return counts

        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if meets(env, target, share(middle)) else (middle, high)
        counts = share(low)
        for layer in np.flatnonzero(share(high) > counts):
            if meets(env, target, counts):
                break
            counts[layer] += 1
        return counts

    def _next(self, mask: np.ndarray, valid: np.ndarray) -> int:
        """The least important group of the layer with the largest kept share."""
        layers = self._env.recognizer.table.layers
        share = np.array([mask[layer.start : layer.stop].mean() for layer in layers])[
            self._env.action_table.layer_of_action
        ]  # [A]
        fullest = valid * (share >= share[valid != 0].max() - 1e-9)
        return argmin_valid(self._action_scores(mask, fullest), fullest)


@register_allocation("global")
class GlobalAllocation(Allocation):
    """The least important groups go first, wherever they are; most scores are divided by their layer's mean."""

    def counts(self, env: PruningEnv, target: Budget) -> np.ndarray:
        """As many as have the lowest scores of all; every layer keeps a unit."""
        table = env.recognizer.table
        removable = np.concatenate([units[:-1] for units in self._order(env)])
        ranked = table.layer_of_unit[removable[np.argsort(self._scores[removable], kind="stable")]]

        def lowest(number: int) -> np.ndarray:
            return np.bincount(ranked[:number], minlength=len(table.layers))

        low, high = 0, len(ranked)  # meets(low) is false, meets(high) is true
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if meets(env, target, lowest(middle)) else (middle, high)
        return lowest(high)

    def _next(self, mask: np.ndarray, valid: np.ndarray) -> int:
        """The least important group of all."""
        return argmin_valid(self._action_scores(mask, valid), valid)


def removal_mask(order: list[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """The mask ``[U]`` int8 without the first ``counts`` units of each layer's order."""
    mask = np.ones(sum(len(units) for units in order), dtype=np.int8)
    for units, count in zip(order, counts, strict=True):
        mask[units[:count]] = 0
    return mask


def meets(env: PruningEnv, target: Budget, counts: np.ndarray) -> bool:
    """Whether the target is reached once each layer has lost that many units; costs do not depend on which."""
    order = [layer.units for layer in env.recognizer.table.layers]
    return env.recognizer.costs.reductions(removal_mask(order, counts)).of(target.measure) >= target.target - 1e-12
