"""Evolutionary search over removal orders."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.baselines.orders import RemovalOrder, imagine, order_of_rule
from agents.baselines.search import EpisodeSearch
from agents.baselines.surrogate import AccuracyModel
from agents.policy import register_policy
from envs.actions import Action
from envs.episodes import Episode
from envs.objectives import Measurement
from envs.pruning import Observation, PruningEnv
from recognizers.errors import ConfigurationError

TAIL = 1.5
"""Exponent of the power law of mutations."""


@dataclass(frozen=True)
class Individual:
    """An order that was played.

    Attributes:
        genes: ``[G]`` int64.
        played: how many of them the episode has used.
        fitness: its return.
    """

    genes: np.ndarray
    played: int
    fitness: float


@register_policy("search:evolution")
class EvolutionSearch(EpisodeSearch):
    """Evolves removal orders, begun with those of hand-made rules; fitness is the return.

    Regularised evolution (Real et al. 2019, algorithm 1): the best of a random sample of the population is a parent,
    its child replaces the oldest individual. Children are selected before they are played (Jin 2011, section 3.1):
    of several, the one whose return is the highest by a model of accuracy that is learned from all steps so far.

    Args:
        seed: as for :class:`EpisodeSearch`.
        evaluations: as for :class:`EpisodeSearch`.
        rules: ALLOCATION:CRITERION, whose orders begin the population.
        population: its size.
        sample: how many of the population compete to be a parent.
        children: how many are made for one that is played.
    """

    name = "search:evolution"

    def __init__(
        self,
        seed: int = 0,
        evaluations: int = 1000,
        rules: Sequence[str] = ("uniform:l1", "global:l1"),
        population: int = 16,
        sample: int = 4,
        children: int = 64,
    ) -> None:
        super().__init__(seed, evaluations)
        if not rules or min(population, sample, children) < 1:
            raise ConfigurationError(
                f"{self.name}: give at least one rule, and population, sample, children of 1 or more"
            )
        self._rules, self._size, self._sample, self._children = tuple(rules), population, sample, children
        self._generator = np.random.default_rng(seed)

    def _begin(self, env: PruningEnv) -> None:
        self._env = env
        self._unplayed = [order_of_rule(env, rule, self._seed) for rule in self._rules]
        self._population: deque[Individual] = deque(maxlen=max(self._size, len(self._rules)))
        self._model = AccuracyModel(env.recognizer.n_units)

    def _chooser(self) -> Callable[[Observation, dict[str, Any]], Action]:
        self._genes = self._unplayed.pop(0) if self._unplayed else self._child()
        self._order = RemovalOrder(self._env, self._genes)
        return lambda observation, _: self._order.next(observation["mask"])

    def _take(self, episode: Episode) -> None:
        self._population.append(Individual(self._genes, self._order.played, episode.episode_return))
        # States that have lost much tell most: there the episodes are decided.
        states = list(zip(imagine(self._env, self._genes), episode.accuracies, strict=False))
        self._model.add(
            np.array([mask for (mask, _), _ in states]),
            np.array([self._env.baseline_accuracy - accuracy for _, accuracy in states]),
            np.array([state.reduction(self._env.objective.measure) for (_, state), _ in states]),
        )

    def _child(self) -> np.ndarray:
        """The most promising of the children of as many parents."""
        children = [mutated(self._parent(), self._generator) for _ in range(self._children)]
        return max(children, key=self._promise)

    def _parent(self) -> Individual:
        drawn = self._generator.integers(len(self._population), size=self._sample)
        return max((self._population[index] for index in drawn), key=lambda individual: individual.fitness)

    def _promise(self, genes: np.ndarray) -> float:
        """The return that the model expects of an order."""
        objective, baseline = self._env.objective, self._env.baseline_accuracy
        before, total = Measurement.complete(baseline), 0.0
        for mask, state in imagine(self._env, genes):
            after = replace(state, accuracy=baseline - self._model.loss(mask))
            total += objective.reward(before, after, baseline)
            if objective.terminated(after, baseline):
                break
            before = after
        return total


def mutated(parent: Individual, generator: np.random.Generator) -> np.ndarray:
    """A parent's order with genes moved across the border between what was removed and what stayed.

    Within what was removed the order matters little, beyond the border not at all. How many genes move follows a power
    law (Doerr et al. 2017, fast genetic algorithms): mostly one or two each way, at times many.
    """
    removed, kept = parent.genes[: parent.played], parent.genes[parent.played :]
    counts = np.arange(1, max(len(removed) // 2, 1) + 1)
    count = generator.choice(counts, p=counts**-TAIL / (counts**-TAIL).sum())
    leaving = generator.random(len(removed)) < count / len(removed)
    # The episode ended with the last gene.
    leaving[-1] |= generator.random() < 0.5
    entering = generator.random(len(kept)) < count / max(len(kept), 1)
    staying = np.concatenate([removed[~leaving], generator.permutation(kept[entering])])
    rest = kept[~entering]
    places = generator.integers(len(rest) + 1, size=int(leaving.sum()))
    return np.concatenate([staying, np.insert(rest, places, removed[leaving])])
