"""Searches that spend a given number of environment steps, then play the best that they found."""

from typing import Any

from agents.baselines.random import RandomPolicy
from agents.policy import register_policy
from envs.episodes import Episode, play
from envs.pruning import Observation, PruningEnv
from recognizers.errors import ConfigurationError


@register_policy("search:random")
class RandomSearch:
    """Best of as many random episodes as a number of environment steps allows.

    Args:
        seed: of the episodes.
        environment_steps: to spend, exactly; the last episode is cut off there.

    Attributes:
        episodes: all episodes of the search; their masks are candidates for the final one.
    """

    def __init__(self, seed: int = 0, environment_steps: int = 1000) -> None:
        if environment_steps < 1:
            raise ConfigurationError(f"search:random: environment_steps must be at least 1, got {environment_steps}")
        self._seed, self._budget = seed, environment_steps
        self._random = RandomPolicy(seed)
        self._plan: list[int] = []
        self.episodes: list[Episode] = []

    def reset(self, env: PruningEnv) -> None:
        """Search."""
        end = env.environment_steps + self._budget
        self.episodes = []
        while (left := end - env.environment_steps) > 0:
            seed = self._seed + len(self.episodes)
            episode = play(env, self._random.act, seed=seed, policy="search:random", phase="training", max_steps=left)
            self.episodes.append(episode)
        finished = [episode for episode in self.episodes if episode.terminated] or self.episodes
        best = max(finished, key=lambda episode: episode.episode_return)
        self._plan = [int(action) for action in best.actions]

    def act(self, observation: Observation, info: dict[str, Any]) -> int:
        """Play the best episode again; where a random recovery lets it last longer, go on at random."""
        if self._plan and info["action_mask"][self._plan[0]]:
            return self._plan.pop(0)
        return int(self._random.act(observation, info))
