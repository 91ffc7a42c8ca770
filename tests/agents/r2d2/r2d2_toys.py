"""Small environments with the observation layout of the pruning environment, or with something to remember."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np

from agents.r2d2.config import R2D2Config
from agents.r2d2.policy import R2D2Controller

CORRIDOR = 8


class TMaze(gym.Env[dict[str, Any], int]):
    """A cue at the start tells which way to turn at the end of the corridor. Action 3 is never valid."""

    def __init__(self, length: int = CORRIDOR) -> None:
        self.length = length
        self.observation_space = gym.spaces.Dict(
            {
                "signal": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
                "action_mask": gym.spaces.MultiBinary(4),
            }
        )
        self.action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.cue = 1 if np.random.default_rng(self.episode_seed).random() < 0.5 else -1
        self.time = 0
        return self._observe(), {"episode_seed": self.episode_seed}

    def _observe(self) -> dict[str, Any]:
        at_end = self.time == self.length
        signal = np.array([self.cue if self.time == 0 else 0, 1 if at_end else 0], np.float32)
        # Forward in the corridor; left or right at its end.
        mask = np.array([0, 1, 1, 0] if at_end else [1, 0, 0, 0], np.int8)
        return {"signal": signal, "action_mask": mask}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if not self._observe()["action_mask"][action]:
            raise ValueError(f"invalid action {action} at {self.time}")
        if self.time == self.length:
            return self._observe(), float(action == (1 if self.cue > 0 else 2)), True, False, {}
        self.time += 1
        return self._observe(), 0.0, False, False, {}


def maze_config(env: str, length: int = CORRIDOR) -> R2D2Config:
    """R2D2 for a registered maze of this length; an episode is one sequence from its reset on."""
    return (
        R2D2Config()
        .environment(env)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4, rollout_fragment_length=20)
        .network(head="flat", lstm_size=64, encoder_size=64)
        .training(
            train_len=length + 8,
            burn_in_len=4,
            replay_stride=(length + 8) // 2,
            n_step=3,
            updates_per_step=0.3,
            priority_exponent=0.6,
            lr=1e-3,
            target_network_update_freq=200,
            num_steps_sampled_before_learning_starts=300,
            replay_capacity=20_000,
        )
        .ladder(base=0.25, exponent=1.5)
        .reporting(min_sample_timesteps_per_iteration=500)
    )


def mean_return(
    controller: R2D2Controller, env: gym.Env[dict[str, Any], int], episodes: int, *, forget: bool = False
) -> float:
    """Mean return of greedy episodes; with ``forget`` the recurrent state is zeroed before each step."""
    total = 0.0
    for seed in range(episodes):
        controller.reset(env)
        observation, info = env.reset(seed=seed)
        done = False
        while not done:
            if forget:
                controller.reset(env)
            action = controller.act(observation, info)
            observation, reward, done, _, info = env.step(action)  # which refuses invalid actions
            info["reward"] = reward
            total += float(reward)
    return total / episodes


class ToyPruning(gym.Env[dict[str, Any], int]):
    """Two layers of units in blocks; every removed block pays its index over A, four removals end the episode."""

    BLOCKS = (3, 2)
    UNITS_PER_BLOCK = 2

    def __init__(self, steps: int = 4) -> None:
        self.steps = steps
        actions = sum(self.BLOCKS)
        units = actions * self.UNITS_PER_BLOCK
        self.observation_space = gym.spaces.Dict(
            {
                "accuracy": gym.spaces.Box(0.0, 1.0, (1,), np.float32),
                "reduction": gym.spaces.Box(0.0, 1.0, (1,), np.float32),
                "mask": gym.spaces.MultiBinary(units),
                "action_mask": gym.spaces.MultiBinary(actions),
            }
        )
        self.action_space = gym.spaces.Discrete(actions)

    @property
    def action_table(self) -> SimpleNamespace:
        layers = np.repeat(np.arange(len(self.BLOCKS)), self.BLOCKS)
        return SimpleNamespace(
            layer_of_action=layers,
            action_of_unit=np.repeat(np.arange(len(layers)), self.UNITS_PER_BLOCK),
            features=np.stack([layers, np.arange(len(layers)) / len(layers)], axis=1).astype(np.float32),
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.kept = np.ones(int(self.action_space.n), np.int8)  # type: ignore[attr-defined]
        seed = int(self.np_random.integers(2**31))
        return self._observe(), {"episode_seed": seed, "action_mask": self.kept.copy()}

    def _observe(self) -> dict[str, Any]:
        share = np.array([self.kept.mean()], np.float32)
        return {
            "accuracy": share,
            "reduction": 1 - share,
            "mask": self.kept.repeat(self.UNITS_PER_BLOCK),
            "action_mask": self.kept.copy(),
        }

    def probe(self, actions: Sequence[int]) -> list[SimpleNamespace]:
        """What each action would give."""
        kept, probes = self.kept.copy(), []
        for action in actions:
            observation, reward, terminated, _, info = self.step(action)
            probes.append(
                SimpleNamespace(
                    action=action,
                    reward=reward,
                    terminated=terminated,
                    efficiency=-reward,
                    observation=observation,
                    action_mask=info["action_mask"],
                )
            )
            self.kept = kept.copy()
        return probes

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if not self.kept[action]:
            raise ValueError(f"invalid action {action}")
        self.kept[action] = 0
        reward = action / len(self.kept)
        done = len(self.kept) - int(self.kept.sum()) >= self.steps
        return self._observe(), reward, done, False, {"reward": reward, "action_mask": self.kept.copy()}
