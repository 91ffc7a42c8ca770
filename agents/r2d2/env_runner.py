"""The runner: RLlib's own, with an exploration rate per environment."""

from typing import Any

import numpy as np
import torch
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from agents.r2d2.episodes import Fragment, fragment_from_rllib
from agents.r2d2.exploration import actor_epsilons
from agents.r2d2.guide import GuidedLookahead


class R2D2EnvRunner(SingleAgentEnvRunner):
    """Samples with its own rungs of the exploration ladder; one actor is one environment of one runner."""

    @override(SingleAgentEnvRunner)
    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        if kwargs.get("worker_index"):
            # A remote process owns its CPUs only; torch would take all of the machine's.
            torch.set_num_threads(max(1, int(config.num_cpus_per_env_runner)))
        super().__init__(config=config, **kwargs)
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

    def sample_fragments(self) -> tuple[list[Fragment], Any]:
        """Sample once; the fragments as plain arrays, and the metrics, in a single remote call.

        The fragments travel by value: a reference to them would be lost with the runner.
        """
        guide = next(piece for piece in self._module_to_env.connectors if isinstance(piece, GuidedLookahead))
        guide.env = self.env  # RLlib makes it anew after a failure
        episodes = self.sample()
        probed = guide.drain()
        fragments = [fragment_from_rllib(episode, probed.get(episode.id_, ())) for episode in episodes]
        return fragments, self.get_metrics()
