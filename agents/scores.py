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
        rises: of an earlier one, to go on with.

    Attributes:
        rises: evaluations spent and best score, both rising.
    """

    def __init__(self, objective: Objective, baseline_accuracy: float, rises: Sequence[tuple[int, float]] = ()) -> None:
        self._objective, self._baseline = objective, baseline_accuracy
        self.rises = list(rises)
        if not self.rises:
            self.see(0, Measurement.complete(baseline_accuracy))

    @property
    def score(self) -> float | None:
        """The best score so far; None where no state met the objective."""
        return self.rises[-1][1] if self.rises else None

    def see(self, evaluations: int, state: Measurement) -> None:
        """A state that was measured by the last of so many evaluations."""
        score = self._objective.score(state, self._baseline)
        if score > (self.rises[-1][1] if self.rises else -np.inf):
            if self.rises and self.rises[-1][0] == evaluations:
                self.rises.pop()
            self.rises.append((evaluations, score))

    def take(self, episodes: Sequence[Episode], before: int, after: int) -> None:
        """Episodes that ended elsewhere, in that order, while evaluations were spent.

        What was spent is spread evenly over their steps: probes and episodes that have not ended left no record.

        Args:
            episodes: the record.
            before: evaluations spent before.
            after: evaluations spent since, those before included.
        """
        total = sum(len(episode.actions) for episode in episodes)
        steps = 0
        for episode in episodes:
            for state in episode.states:
                steps += 1
                self.see(before + math.ceil((after - before) * steps / total), state)

    @contextmanager
    def watching(self, env: PruningEnv, before: int) -> Iterator[None]:
        """See what an environment measures within the context, after ``before`` evaluations elsewhere."""
        start = env.evaluations - before
        env.on_evaluation = lambda evaluations, state: self.see(evaluations - start, state)
        try:
            yield
        finally:
            env.on_evaluation = None
