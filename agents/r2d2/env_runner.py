"""The runner: RLlib's own, with an exploration rate per environment."""

from collections import Counter
from typing import Any

import numpy as np
import torch
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from agents.r2d2.episodes import Fragment, fragment_from_rllib
from agents.r2d2.exploration import actor_epsilons
from agents.r2d2.guide import GuidedLookahead

PHASES = "step_milliseconds"
"""Result of runners: milliseconds of an environment step by phase, with those of probes, over the last samples."""
PHASE_WINDOW = 20


class R2D2EnvRunner(SingleAgentEnvRunner):
    """Samples with its own rungs of the exploration ladder; one actor is one environment of one runner."""

    @override(SingleAgentEnvRunner)
    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        if kwargs.get("worker_index"):
            # A remote process owns its CPUs only; torch would take all of the machine's.
            torch.set_num_threads(max(1, int(config.num_cpus_per_env_runner)))
        super().__init__(config=config, **kwargs)
        self._seconds: dict[str, float] = {}
        self._reseed(0)

    def _reseed(self, env_steps: int) -> None:
        # RLlib seeds environment j of runner i with seed + i + j, the same for different (i, j), and anew after every
        # restart. A hash of (seed, runner, steps so far) repeats neither across runners nor over time.
        if self.config.seed is not None and not self.config.in_evaluation:
            sequence = np.random.SeedSequence([self.config.seed, self.worker_index, env_steps])
            self._seed = int(sequence.generate_state(1)[0]) >> 1
            torch.manual_seed(self._seed)

    @override(SingleAgentEnvRunner)
    def set_state(self, state: dict[str, Any]) -> None:
        """Take over weights and counters; one that joins late does not repeat the first episodes of the run."""
        super().set_state(state)
        steps = state.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
        samples_later = self.env is not None and self._needs_initial_reset
        if samples_later and steps > 0:
            self._reseed(int(steps))

    @override(SingleAgentEnvRunner)
    def make_module(self) -> None:
        """Build the module and set its exploration rates."""
        super().make_module()
        # They follow from the index alone, so that a restarted runner takes its own rungs up again.
        self.module.actor_epsilon = torch.tensor(
            actor_epsilons(
                self.worker_index,
                self.config.num_env_runners,
                self.config.num_envs_per_env_runner,
                base=self.config.exploration_base,
                exponent=self.config.exploration_exponent,
            )
        )

    def _log_phases(self, steps: int) -> None:
        """Log what a step took in each of its phases, where the environments keep such an account."""
        accounts = [getattr(env.unwrapped, "seconds", None) for env in self.env.unwrapped.envs]
        total: Counter[str] = Counter()
        for account in accounts:
            total.update(vars(account) if account is not None else {})
        for phase, seconds in total.items():
            spent = seconds - self._seconds.get(phase, 0.0)
            self.metrics.log_value((PHASES, phase), 1000.0 * spent / max(steps, 1), window=PHASE_WINDOW)
        self._seconds = dict(total)

    def sample_fragments(self) -> tuple[list[Fragment], Any]:
        """Sample once; the fragments as plain arrays, and the metrics, in a single remote call.

        The fragments travel by value: a reference to them would be lost with the runner.
        """
        guide = next(piece for piece in self._module_to_env.connectors if isinstance(piece, GuidedLookahead))
        guide.env = self.env  # RLlib makes it anew after a failure
        episodes = self.sample()
        probed = guide.drain()
        fragments = [fragment_from_rllib(episode, probed.get(episode.id_, ())) for episode in episodes]
        self._log_phases(sum(len(fragment.actions) for fragment in fragments))
        return fragments, self.get_metrics()
