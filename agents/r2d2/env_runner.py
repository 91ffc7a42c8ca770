"""The runner: RLlib's own, with an exploration rate per environment, and checkpoints in the middle of episodes."""

from collections import Counter
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor

from agents.r2d2.episodes import Fragment, fragment_from_rllib, seed_of
from agents.r2d2.exploration import actor_epsilons
from agents.r2d2.guide import GuidedLookahead
from agents.r2d2.resumption import Underway, followed, play_again

PHASES = "step_milliseconds"
"""Result of runners: milliseconds of an environment step by phase, with those of probes, over the last samples."""
PHASE_WINDOW = 20
SAMPLING = "sampling"
"""Key of a local runner's state: where its sampling stands."""


class R2D2EnvRunner(SingleAgentEnvRunner):
    """Samples with its own rungs of the exploration ladder; one actor is one environment of one runner."""

    @override(SingleAgentEnvRunner)
    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        if kwargs.get("worker_index"):
            # A remote process owns its CPUs only; torch would take all of the machine's.
            torch.set_num_threads(max(1, int(config.num_cpus_per_env_runner)))
        super().__init__(config=config, **kwargs)
        self._seconds: dict[str, float] = {}
        self._underway: dict[str, Underway] = {}
        self._reseed(0)

    def _reseed(self, env_steps: int) -> None:
        # RLlib seeds environment j of runner i with seed + i + j, the same for different (i, j), and anew after every
        # restart. A hash of (seed, runner, steps so far) repeats neither across runners nor over time.
        if self.config.seed is not None and not self.config.in_evaluation:
            sequence = np.random.SeedSequence([self.config.seed, self.worker_index, env_steps])
            self._seed = int(sequence.generate_state(1)[0]) >> 1
            self.module.generator.manual_seed(self._seed)

    @override(SingleAgentEnvRunner)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, and, where this process samples, the episodes under way, which RLlib would lose."""
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        samples = self.config.num_env_runners == 0 and self.env is not None and not self._needs_initial_reset
        return {**state, SAMPLING: self._sampling_state()} if samples else state

    def _sampling_state(self) -> dict[str, Any]:
        return {
            # Whole: what RLlib makes of an episode's own state fails where it has just been cut.
            "episodes": deepcopy(self._ongoing_episodes),
            "underway": dict(self._underway),
            "random": [env.unwrapped.np_random.bit_generator.state for env in self.env.unwrapped.envs],
            "exploration": self.module.generator.get_state(),
            "to_module": convert_to_numpy(self._cached_to_module),
            "shared": deepcopy(self._shared_data),
        }

    def _continue_sampling(self, state: dict[str, Any]) -> None:
        """Go on in the middle of episodes; with new ones if an environment does not get to where it was."""
        envs: list[gym.Env[Any, Any]] = self.env.unwrapped.envs
        episodes: list[SingleAgentEpisode] = deepcopy(state["episodes"])
        if len(episodes) != len(envs):
            return
        for env, episode, random in zip(envs, episodes, state["random"], strict=True):
            if episode.is_reset:
                begun = state["underway"].get(episode.id_) or Underway(seed_of(episode))
                if not play_again(env, begun, episode.get_observations(-1)):
                    return
            env.unwrapped.np_random.bit_generator.state = random
        self._ongoing_episodes = episodes
        self._underway = dict(state["underway"])
        self._cached_to_module = convert_to_torch_tensor(state["to_module"], device=self._device)
        self._shared_data = deepcopy(state["shared"])
        # An episode that is not even reset follows one that has ended: its environment is reset by the next step.
        self.env.unwrapped._autoreset_envs = np.array([not episode.is_reset for episode in episodes])
        self.module.generator.set_state(state["exploration"])
        self._needs_initial_reset = False

    @override(SingleAgentEnvRunner)
    def set_state(self, state: dict[str, Any]) -> None:
        """Take over weights and counters; one that joins late does not repeat the first episodes of the run."""
        super().set_state(state)
        steps = state.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
        samples_later = self.env is not None and self._needs_initial_reset
        if samples_later and steps > 0:
            self._reseed(int(steps))
        if samples_later and SAMPLING in state:
            self._continue_sampling(state[SAMPLING])

    @override(SingleAgentEnvRunner)
    def make_module(self) -> None:
        """Build the module and set what it explores by."""
        super().make_module()
        self.module.generator = torch.Generator(self._device)
        self.module.generator.seed()
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
        self._underway = followed(self._underway, fragments)
        self._log_phases(sum(len(fragment.actions) for fragment in fragments))
        return fragments, self.get_metrics()
