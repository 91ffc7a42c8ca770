"""What evaluations bought: the best objective score so far against the evaluations spent."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from envs.episodes import Episode
from envs.objectives import Measurement, Objective
from envs.pruning import PruningEnv


class BestSoFar:
    """Sees every state that is measured, and keeps when the best score on the reward split rose.

    Where the complete network meets the objective, it is the first, at no evaluations.

    Args:
        objective: gives the scores; states that do not meet it count for nothing.
        baseline_accuracy: of the complete network.

    Attributes:
        rises: evaluations spent and best score, both rising.
    """

    def __init__(self, objective: Objective, baseline_accuracy: float) -> None:
        self._objective, self._baseline = objective, baseline_accuracy
        self.rises: list[tuple[int, float]] = []
        self.see(0, Measurement.complete(baseline_accuracy))

    def see(self, evaluations: int, state: Measurement) -> None:
        """A state that was measured by the last of so many evaluations."""
        score = self._objective.score(state, self._baseline)
        if score > (self.rises[-1][1] if self.rises else -np.inf):
            if self.rises and self.rises[-1][0] == evaluations:
                self.rises.pop()
            self.rises.append((evaluations, score))

    def take(self, episodes: Sequence[Episode], evaluations: int) -> None:
        """Episodes that were played elsewhere, in the order of their ends.

        Args:
            episodes: the record.
            evaluations: what they cost in all: spread evenly over their steps, as probes and episodes that were not
                finished left no record.
        """
        total = sum(len(episode.actions) for episode in episodes)
        steps = 0
        for episode in episodes:
            for state in episode.states:
                steps += 1
                self.see(math.ceil(evaluations * steps / total), state)

    @contextmanager
    def watching(self, env: PruningEnv, before: int) -> Iterator[None]:
        """See what an environment measures within the context, after ``before`` evaluations elsewhere."""
        start = env.evaluations - before
        env.on_evaluation = lambda evaluations, state: self.see(evaluations - start, state)
        try:
            yield
        finally:
            env.on_evaluation = None
