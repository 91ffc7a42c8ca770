"""RLlib's own DQN as a policy, to compare with: no recurrence, no stored states, uniform replay, no action masks.

``zeroout benchmark`` takes it as ``tests/benchmarks/stock_dqn.py:StockDQN``. It is a search: it trains on the
environment that it is given until its evaluations are spent, and then plays its greedy episode.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.dqn.dqn import DQNConfig
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env

from agents.cluster import start_ray
from envs.actions import Action
from envs.episodes import Episode, Recording
from envs.pruning import Observation, PruningEnv

ENV = "zeroout/stock-dqn"
UPDATES_PER_STEP = 0.125
TRANSITIONS = 256
"""Of an update."""
REWARD_SCALE = 5.0
"""As the controller has it."""
_OPEN: dict[str, "Unmasked"] = {}
"""Environments in training. RLlib pickles what makes environments, so it can only name them."""


class Unmasked(gym.Env[NDArray[np.float32], int]):
    """A pruning environment for agents that know of no masks: flat observations, and every action does something.

    An action that is not valid stands for the next one that is. After ``last_step`` environment steps it stands still.

    Args:
        env: the environment.
        last_step: on its own count.

    Attributes:
        episodes: that have ended.
    """

    def __init__(self, env: PruningEnv, last_step: int) -> None:
        self._env, self._last_step = env, last_step
        self.episodes: list[Episode] = []
        self.observation_space = gym.spaces.Box(0.0, 1.0, (2 + env.recognizer.n_units,), np.float32)
        self.action_space = env.action_space
        self._seen = np.zeros(2 + env.recognizer.n_units, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        own = len(self.episodes) if seed is None else seed
        self._recording = Recording(self._env, seed=own, policy="stock DQN", phase="training")
        self._seen = flat(self._recording.observation)
        return self._seen, {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take the action, or the next valid one."""
        if self._env.environment_steps >= self._last_step:
            return self._seen, 0.0, False, True, {}
        taken = next_valid(int(action), self._env.valid_actions())
        reward = self._recording.step(taken)
        self._seen = flat(self._recording.observation)
        if self._recording.terminated:
            self.episodes.append(self._recording.episode())
        return self._seen, reward * REWARD_SCALE, self._recording.terminated, False, {}


def flat(observation: Observation) -> NDArray[np.float32]:
    """Accuracy, reduction and mask, ``[2 + U]``."""
    parts = [observation[key] for key in ("accuracy", "reduction", "mask")]  # type: ignore[literal-required]
    return np.concatenate(parts, dtype=np.float32)


def next_valid(action: int, valid: Sequence[int] | NDArray[np.int64]) -> int:
    """The first of the ascending ``valid`` actions from ``action`` on, and round the end."""
    place = int(np.searchsorted(valid, action))
    return int(valid[place % len(valid)])


def stock_config(env: str, seed: int) -> DQNConfig:
    """RLlib's DQN with the controller's sizes and ratios: double Q, dueling head, uniform replay, single steps."""
    config: DQNConfig = (
        DQNConfig()
        .environment(env)
        .env_runners(num_env_runners=0, rollout_fragment_length=8)
        .training(
            lr=5e-4,
            gamma=0.997,
            n_step=1,
            double_q=True,
            dueling=True,
            epsilon=[(0, 1.0), (1000, 0.05)],
            train_batch_size_per_learner=TRANSITIONS,
            training_intensity=TRANSITIONS * UPDATES_PER_STEP,
            target_network_update_freq=1000,
            num_steps_sampled_before_learning_starts=500,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 100_000},
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[128, 128]))
        .reporting(min_sample_timesteps_per_iteration=200)
        .debugging(seed=seed)
    )
    return config


def _open(config: dict[str, Any]) -> "Unmasked":
    return _OPEN[config["name"]]


class StockDQN:
    """Trains RLlib's DQN, then acts greedily.

    Args:
        seed: of the training.
        evaluations: environment steps to spend, exactly.

    Attributes:
        episodes: of the training; their masks are candidates for the final one.
    """

    def __init__(self, seed: int = 0, evaluations: int = 1000) -> None:
        self._seed, self._budget = seed, evaluations
        self._module: Any = None
        self.episodes: list[Episode] = []

    def reset(self, env: PruningEnv) -> None:
        """Train."""
        start_ray()
        last_step = env.environment_steps + self._budget
        name = f"{self._seed} {last_step}"
        _OPEN[name] = Unmasked(env, last_step)
        register_env(ENV, _open)
        config = stock_config(ENV, self._seed).environment(env_config={"name": name})
        algorithm: Algorithm = config.build_algo()
        try:
            while env.environment_steps < last_step:
                algorithm.train()
            self._module, self.episodes = algorithm.env_runner.module, _OPEN[name].episodes
        finally:
            algorithm.stop()
            del _OPEN[name]

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        """The valid action of the highest value."""
        batch = {Columns.OBS: torch.from_numpy(flat(observation)).unsqueeze(0)}
        with torch.no_grad():
            q = self._module.compute_q_values(batch)[QF_PREDS][0].numpy()  # [A]
        return int(np.argmax(np.where(info["action_mask"] != 0, q, -np.inf)))
