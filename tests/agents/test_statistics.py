"""Statistics against brute force."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import statistics
from agents.statistics import (
    improvement_estimate,
    interquartile_estimate,
    interquartile_mean,
    interval,
    probability_of_improvement,
)

Scores = list[np.ndarray]
arrays = st.lists(st.integers(-3, 3), min_size=1, max_size=5).map(lambda values: np.array(values, dtype=float))
tasks = st.lists(arrays, min_size=1, max_size=3)


def slow_interquartile_mean(scores: Sequence[np.ndarray]) -> float:
    values = sorted(float(value) for task in scores for value in task)
    cut = len(values) // 4
    middle = values[cut : len(values) - cut]
    return sum(middle) / len(middle)


def slow_probability(scores: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    of_tasks = []
    for mine, theirs in zip(scores, others, strict=True):
        won = [1.0 if one > other else 0.5 if one == other else 0.0 for one in mine for other in theirs]
        of_tasks.append(sum(won) / len(won))
    return sum(of_tasks) / len(of_tasks)


def all_resamples(scores: Scores) -> list[Scores]:
    """Every equally likely outcome of drawing anew within each task."""
    of_task = [[np.array(drawn) for drawn in itertools.product(task, repeat=len(task))] for task in scores]
    return [list(outcome) for outcome in itertools.product(*of_task)]


@given(tasks)
def test_the_interquartile_mean_is_that_of_the_middle_half(scores: Scores) -> None:
    assert interquartile_mean(scores) == pytest.approx(slow_interquartile_mean(scores))


@given(st.lists(st.tuples(arrays, arrays), min_size=1, max_size=3))
def test_the_probability_of_improvement_counts_pairs(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    scores, others = [one for one, _ in pairs], [other for _, other in pairs]
    probability = probability_of_improvement(scores, others)
    assert probability == pytest.approx(slow_probability(scores, others))
    assert probability + probability_of_improvement(others, scores) == pytest.approx(1)


SCORES = [np.array([0.1, 0.5, 0.4]), np.array([0.9, 0.7])]
OTHERS = [np.array([0.2, 0.45, 0.3]), np.array([0.8, 0.75])]


def contains(low: float, high: float, all_values: list[float]) -> bool:
    """Whether an interval is that between the 2.5 and 97.5 percentiles of all outcomes, up to chance in the draws."""
    values = np.array(all_values)
    return bool(
        (values < low - 1e-9).mean() <= 0.025 + 0.01
        and (values <= low + 1e-9).mean() >= 0.025 - 0.01
        and (values > high + 1e-9).mean() <= 0.025 + 0.01
        and (values >= high - 1e-9).mean() >= 0.025 - 0.01
    )


def test_the_interval_of_the_interquartile_mean_is_that_of_all_resamples() -> None:
    estimate = interquartile_estimate(SCORES)
    assert estimate.value == pytest.approx(slow_interquartile_mean(SCORES))
    assert contains(estimate.low, estimate.high, [slow_interquartile_mean(drawn) for drawn in all_resamples(SCORES)])


def test_the_interval_of_the_probability_is_that_of_all_resamples() -> None:
    estimate = improvement_estimate(SCORES, OTHERS)
    pairs = itertools.product(all_resamples(SCORES), all_resamples(OTHERS))
    assert contains(estimate.low, estimate.high, [slow_probability(one, other) for one, other in pairs])


def test_intervals_depend_on_the_seed_alone() -> None:
    assert interquartile_estimate(SCORES, seed=1) == interquartile_estimate(SCORES, seed=1)
    assert statistics.RESAMPLES >= 2000


def test_of_single_runs_there_is_no_interval() -> None:
    single, other = [np.array([0.3]), np.array([0.5])], [np.array([0.1]), np.array([0.6])]
    mean, better = interquartile_estimate(single), improvement_estimate(single, other)
    assert mean.value == pytest.approx(0.4) and not mean.bounded
    assert better.value == 0.5 and not better.bounded
    assert interquartile_estimate([*single, np.array([0.2, 0.4])]).bounded


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        mean, half = interval(generator.normal(3.0, 2.0, size=5))
        hits += abs(mean - 3.0) <= half
    assert 0.93 < hits / 2000 < 0.97
    assert np.isnan(interval([1.0])[1])
