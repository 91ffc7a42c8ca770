"""Removal orders: what an episode does, written down so that a search can change it, whatever the kind of actions.

An order is a list of genes. Where actions are indices, a gene is an action: played in turn, without those that are not
valid when their turn comes. Where an action is a mask, a gene is a unit: removed in turn, without those that are the
last of their layer when their turn comes.
"""

import math
from collections.abc import Iterator

import numpy as np

from agents.baselines.allocations import Allocation
from agents.policy import make_policy
from envs.actions import Action, DiscreteActions, Stop
from envs.objectives import Measurement
from envs.pruning import PruningEnv
from recognizers.errors import ConfigurationError


class RemovalOrder:
    """An order being played.

    Args:
        env: to play it on.
        genes: ``[G]`` int64.

    Attributes:
        played: how many genes the actions so far have used up.
    """

    def __init__(self, env: PruningEnv, genes: np.ndarray) -> None:
        self._env, self._genes = env, genes
        self.played = 0

    def next(self, mask: np.ndarray) -> Action:
        """The next action under ``mask``, ``[U]``; there must be a valid one.

        A mask removes all units at once that the objective asks for; where it asks for no number (a tolerance), as
        many as an average block of kind ``block`` has.
        """
        if isinstance(self._env.actions, DiscreteActions):
            valid = self._env.actions.valid(mask)
            while not valid[self._genes[self.played]]:
                self.played += 1
            self.played += 1
            return int(self._genes[self.played - 1])
        removable = np.flatnonzero(self._removable(mask))
        units = self._genes[self.played + removable]
        count = len(self._env.objective.trim(units, mask, self._env.recognizer.costs))
        if count == len(units):
            count = min(count, self._stride())
        self.played += int(removable[count - 1]) + 1
        bits: np.ndarray = mask.copy()
        bits[units[:count]] = 0
        return bits

    def _removable(self, mask: np.ndarray) -> np.ndarray:
        """Which of the remaining genes can be removed one after the other, ``[remaining]`` bool."""
        layer_of_unit = self._env.recognizer.table.layer_of_unit
        left = np.bincount(layer_of_unit[mask != 0], minlength=int(layer_of_unit[-1]) + 1)
        removable: np.ndarray = mask[self._genes[self.played :]] != 0
        for index in np.flatnonzero(removable):
            layer = layer_of_unit[self._genes[self.played + index]]
            removable[index] = left[layer] > 1
            left[layer] -= removable[index]
        return removable

    def _stride(self) -> int:
        blocks = self._env.task.actions.per_layer * len(self._env.recognizer.table.layers)
        return math.ceil(self._env.recognizer.n_units / blocks)


def order_of_rule(env: PruningEnv, rule: str, seed: int) -> np.ndarray:
    """The order, ``[G]`` int64, in which a rule takes everything away; no step is taken.

    Where the rule stops, the rest follows as it comes.

    Args:
        env: the environment.
        rule: ``ALLOCATION:CRITERION``.
        seed: of what the criterion draws.

    Raises:
        ConfigurationError: the rule is no allocation.
    """
    policy = make_policy(rule, seed=seed)
    if not isinstance(policy, Allocation):
        raise ConfigurationError(f"{rule!r} gives no removal order: choose a rule ALLOCATION:CRITERION")
    if isinstance(env.actions, DiscreteActions):
        return _order(env, policy)
    # The units of masks are the actions that remove one unit each.
    actions = env.task.actions.model_copy(update={"kind": "unit"})
    single = PruningEnv(env.task.model_copy(update={"actions": actions}), recognizer=env.recognizer)
    order = _order(single, policy)
    env.evaluations += single.evaluations  # of a rule that measures layers
    return order


def _order(env: PruningEnv, policy: Allocation) -> np.ndarray:
    policy.reset(env)
    mask = np.ones(env.recognizer.n_units, dtype=np.int8)
    order: list[int] = []
    stopped = False
    while (valid := env.actions.valid(mask)).any():
        action = Stop.STOP if stopped else policy.act({"mask": mask}, {"action_mask": valid})
        if isinstance(action, Stop):
            stopped, action = True, int(valid.argmax())
        mask = mask.copy()
        mask[env.actions.units(action, mask)] = 0
        order.append(int(action))
    # What is the last of its layer here need not be in another order.
    return np.array([*order, *np.setdiff1d(np.arange(len(valid)), order)], dtype=np.int64)


def imagine(env: PruningEnv, genes: np.ndarray) -> Iterator[tuple[np.ndarray, Measurement]]:
    """The masks, ``[U]`` int8, that an order leads through, with their reductions and the baseline's accuracy."""
    order, mask = RemovalOrder(env, genes), np.ones(env.recognizer.n_units, dtype=np.int8)
    while env.actions.valid(mask).any():
        units = env.units_of(order.next(mask), mask)
        mask = mask.copy()
        mask[units] = 0
        yield mask, Measurement(env.baseline_accuracy, *env.recognizer.costs.reductions(mask))
