"""Statistics of a few runs per task: intervals, the interquartile mean, the probability of improvement.

After Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice". Scores are given as
one array per task, ``[runs of the task]``; tasks may have unequal numbers of runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 5000
"""Bootstrap samples behind an interval."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, whose bounds are nan where there is none."""

    value: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return not np.isnan(self.low)


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of independent runs, and half the width of Student's t interval around it (nan for a single run)."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return float(sample.mean()), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean()), float(half)


def interquartile_mean(scores: Sequence[np.ndarray]) -> float:
    """Mean of the middle half of all runs of all tasks: a quarter is left out at either end (rounded down)."""
    return float(stats.trim_mean(np.concatenate(scores), 0.25))


def interquartile_estimate(scores: Sequence[np.ndarray], *, seed: int = 0) -> Estimate:
    """The interquartile mean with its interval by stratified bootstrap: runs are drawn anew within each task.

    The interval is that between percentiles of the resampled means. Single runs per task say nothing of chance: of them
    there is none.
    """
    value = interquartile_mean(scores)
    if _single(scores):
        return Estimate(value, np.nan, np.nan)
    generator = np.random.default_rng(seed)
    drawn = np.concatenate([task[_draws(generator, len(task))] for task in scores], axis=1)  # [RESAMPLES, runs]
    means = stats.trim_mean(drawn, 0.25, axis=1)  # [RESAMPLES]
    return _estimate(value, means)


def probability_of_improvement(scores: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """How likely a run scores higher than one of another policy on the same task, mean over the tasks.

    Of each task it is the Mann-Whitney statistic over the number of pairs; a tie counts one half.
    """
    return float(np.mean([_wins(mine, theirs).mean() for mine, theirs in zip(scores, others, strict=True)]))


def improvement_estimate(scores: Sequence[np.ndarray], others: Sequence[np.ndarray], *, seed: int = 0) -> Estimate:
    """The probability of improvement with its interval by stratified bootstrap; both policies' runs are drawn anew.

    Of single runs per task there is no interval.
    """
    value = probability_of_improvement(scores, others)
    if _single([*scores, *others]):
        return Estimate(value, np.nan, np.nan)
    generator = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for mine, theirs in zip(scores, others, strict=True):
        rows, columns = _draws(generator, len(mine)), _draws(generator, len(theirs))
        total += _wins(mine, theirs)[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
    return _estimate(value, total / len(scores))


def _single(scores: Sequence[np.ndarray]) -> bool:
    """Whether no task has a second run."""
    return all(len(task) < 2 for task in scores)


def _wins(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """1 where a run of mine beats one of theirs, 0.5 where they tie, ``[mine, theirs]``."""
    wins: np.ndarray = (np.sign(mine[:, None] - theirs[None, :]) + 1) / 2
    return wins


def _draws(generator: np.random.Generator, runs: int) -> np.ndarray:
    """Indices of resampled runs, ``[RESAMPLES, runs]``."""
    return generator.integers(runs, size=(RESAMPLES, runs))


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
