"""Searches that spend a given number of evaluations, then play the best that they found."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from agents.baselines.random import RandomPolicy
from agents.policy import register_policy
from envs.actions import Action, Stop
from envs.episodes import Episode, play
from envs.pruning import Observation, PruningEnv
from recognizers.errors import ConfigurationError


class EpisodeSearch(ABC):
    """Plays episodes until the evaluations are spent, then the best of them again.

    Args:
        seed: of the episodes, and of all that the search draws.
        evaluations: environment steps and probes to spend, exactly; the last episode is cut off there. The best
            episode, played again at the end, comes on top.

    Attributes:
        name: under which the search is registered.
        episodes: all episodes of the search; their masks are candidates for the final one.
    """

    name: str

    def __init__(self, seed: int = 0, evaluations: int = 1000) -> None:
        if evaluations < 1:
            raise ConfigurationError(f"{self.name}: evaluations must be at least 1, got {evaluations}")
        self._seed, self._budget = seed, evaluations
        self._random = RandomPolicy(seed)
        self._plan: list[Action] = []
        self.episodes: list[Episode] = []

    def reset(self, env: PruningEnv) -> None:
        """Search."""
        self._end = env.evaluations + self._budget
        self._random.reset(env)
        self.episodes = []
        self._begin(env)
        while self._left(env):
            choose, seed = self._within_budget(env, self._chooser()), self._seed + len(self.episodes)
            episode = play(env, choose, seed=seed, policy=self.name, phase="training")
            self.episodes.append(episode)
            self._take(episode)
        self._plan = [env.actions.recall(action) for action in best_of(self.episodes).actions]

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        """Play the best episode again; where a random recovery lets it last longer, go on at random."""
        return self._plan.pop(0) if self._plan else self._random.act(observation, info)

    def _within_budget(
        self, env: PruningEnv, choose: Callable[[Observation, dict[str, Any]], Action]
    ) -> Callable[[Observation, dict[str, Any]], Action | Stop]:
        """The same, but stop where no evaluations are left."""
        return lambda observation, info: choose(observation, info) if self._left(env) else Stop.STOP

    def _left(self, env: PruningEnv) -> int:
        """Evaluations that may still be spent."""
        return self._end - env.evaluations

    @abstractmethod
    def _begin(self, env: PruningEnv) -> None:
        """Prepare a search."""

    @abstractmethod
    def _chooser(self) -> Callable[[Observation, dict[str, Any]], Action]:
        """What chooses the actions of the next episode."""

    @abstractmethod
    def _take(self, episode: Episode) -> None:
        """Learn from the episode that was played."""


@register_policy("search:random")
class RandomSearch(EpisodeSearch):
    """Best of random episodes."""

    name = "search:random"

    def _begin(self, env: PruningEnv) -> None:
        """There is nothing to prepare."""

    def _chooser(self) -> Callable[[Observation, dict[str, Any]], Action]:
        return self._random.act

    def _take(self, episode: Episode) -> None:
        """There is nothing to learn."""


def best_of(episodes: Sequence[Episode]) -> Episode:
    """The episode with the highest return; one that was cut off only where none has ended."""
    finished = [episode for episode in episodes if episode.terminated] or episodes
    return max(finished, key=lambda episode: episode.episode_return)
