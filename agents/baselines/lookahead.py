"""Greedy one-step lookahead: measure candidates for real, take the best."""

from typing import Any

import numpy as np

from agents.policy import register_policy
from envs.actions import Action, DiscreteActions
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
        if not isinstance(env.actions, DiscreteActions):
            raise ConfigurationError(
                f"lookahead probes every action, and with actions.kind={env.task.actions.kind} there are "
                f"2^{env.recognizer.n_units}: choose unit, block or layer"
            )
        self._env = env

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        """Probe, and take the best."""
        env, valid = self._env, np.flatnonzero(info["action_mask"])
        if self._candidates is not None and self._candidates < len(valid):
            valid = self._generator.choice(valid, size=self._candidates, replace=False)
        best = max(
            env.probe(valid.tolist()),
            key=lambda probe: env.objective.efficiency(env.measurement, probe.measurement, env.baseline_accuracy),
        )
        return best.action
