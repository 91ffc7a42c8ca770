"""Greedy one-step lookahead: measure candidates for real, take the best. Once, or again and again."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from agents.baselines.search import EpisodeSearch
from agents.policy import register_policy
from envs.actions import Action, DiscreteActions
from envs.episodes import Episode
from envs.pruning import Observation, PruningEnv
from recognizers.errors import ConfigurationError


@register_policy("lookahead")
class Lookahead:
    """Probes valid actions at every step and takes the one with the best efficiency under the objective.

    Args:
        seed: of the sampled candidates.
        candidates: how many valid actions to probe per step, drawn at random; all of them by default.
    """

    def __init__(self, seed: int = 0, candidates: int | None = None) -> None:
        if candidates is not None and candidates < 1:
            raise ConfigurationError(f"lookahead: candidates must be at least 1, got {candidates}")
        self._generator = np.random.default_rng(seed)
        self._candidates = candidates

    def reset(self, env: PruningEnv) -> None:
        """Take the environment to probe.

        Raises:
            ConfigurationError: its actions are masks, of which there are too many to probe each.
        """
        probeable(env)
        self._env = env

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        """Probe, and take the best."""
        valid = np.flatnonzero(info["action_mask"])
        if self._candidates is not None and self._candidates < len(valid):
            valid = self._generator.choice(valid, size=self._candidates, replace=False)
        return most_efficient(self._env, valid)


@register_policy("search:lookahead")
class LookaheadSearch(EpisodeSearch):
    """Plays episodes of lookahead, each with other candidates, and keeps the best: a randomised greedy search.

    The first episode probes all valid actions, as :class:`Lookahead` does. Every further one probes a number of them
    that it draws at its begin, as likely 2 to 4 as 4 to 8 and so on: few leave much to chance and cost little.
    (GRASP, Feo and Resende 1995, with sampled candidates.)

    Args:
        seed: as for :class:`EpisodeSearch`.
        evaluations: as for :class:`EpisodeSearch`.
    """

    name = "search:lookahead"

    def __init__(self, seed: int = 0, evaluations: int = 1000) -> None:
        super().__init__(seed, evaluations)
        self._generator = np.random.default_rng(seed)

    def _begin(self, env: PruningEnv) -> None:
        self._env, self._actions = env, len(probeable(env))

    def _chooser(self) -> Callable[[Observation, dict[str, Any]], Action]:
        drawn = 2 ** self._generator.uniform(1, max(math.log2(self._actions), 1))
        candidates = math.floor(drawn) if self.episodes else self._actions

        def choose(_: Observation, info: dict[str, Any]) -> Action:
            valid = np.flatnonzero(info["action_mask"])
            # The step itself is an evaluation, too.
            size = max(min(candidates, len(valid), self._left(self._env) - 1), 1)
            chosen = self._generator.choice(valid, size=size, replace=False)
            return most_efficient(self._env, chosen) if size > 1 else int(chosen[0])

        return choose

    def _take(self, episode: Episode) -> None:
        """There is nothing to learn."""


def probeable(env: PruningEnv) -> DiscreteActions:
    """The actions of an environment, where they are few enough to probe each.

    Raises:
        ConfigurationError: they are masks.
    """
    if not isinstance(env.actions, DiscreteActions):
        raise ConfigurationError(
            f"lookahead probes every action, and with actions.kind={env.task.actions.kind} there are "
            f"2^{env.recognizer.n_units}: choose unit, block or layer"
        )
    return env.actions


def most_efficient(env: PruningEnv, actions: np.ndarray) -> Action:
    """Probe valid actions, ``[k]``; the best by the objective's efficiency, the first of equals."""
    return max(env.probe(actions.tolist()), key=lambda probe: probe.efficiency).action
