"""Standings of a benchmark: which policy is ahead over all tasks, how surely, and at what cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from agents.benchmark import BenchmarkConfig, Key, Row
from agents.benchmark.rows import results, score
from agents.report.palette import Style, assign
from agents.report.run import is_controller
from agents.results import Result
from agents.statistics import Estimate, improvement_estimate, interquartile_estimate


@dataclass(frozen=True)
class Standing:
    """A policy's place.

    Attributes:
        label: of the policy.
        style: in pictures.
        runs: that have a result.
        planned: runs altogether.
        failed: runs that failed.
        rank: 1 is the best; None where it cannot be compared: runs are missing, or it has another goal.
        estimate: interquartile mean of its scores; None where it has no rank.
        over_first: probability that a run of it beats one of the first policy; None for the first one itself.
        over_best: the same against the policy that is ranked first.
        environment_steps: per run, mean.
        evaluations: per run, mean.
        seconds: per run, mean, of the policy.
    """

    label: str
    style: Style
    runs: int
    planned: int
    failed: int
    rank: int | None
    estimate: Estimate | None
    over_first: Estimate | None
    over_best: Estimate | None
    environment_steps: float
    evaluations: float
    seconds: float


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """The style of every policy, or of every line that joins several, by its label."""
    labels = list(dict.fromkeys(labels))
    return assign(labels, next((label for label in labels if is_controller(label)), None))


def standings(config: BenchmarkConfig, rows: Sequence[Row]) -> list[Standing]:
    """All policies, ranked ones first.

    Ranked are those that have a result of every task and every seed, under the objectives of the first policy.
    """
    found = results(rows)
    scores = {entry.name: _scores(config, entry.name, found) for entry in config.policies}
    ranked = {label: of_tasks for label, of_tasks in scores.items() if of_tasks is not None}
    estimates = {label: interquartile_estimate(of_tasks) for label, of_tasks in ranked.items()}
    order = sorted(ranked, key=lambda label: estimates[label].value, reverse=True)
    first, best = config.policies[0].name, order[0] if order else None

    def over(label: str, other: str | None) -> Estimate | None:
        if label == other or other not in ranked or label not in ranked:
            return None
        return improvement_estimate(ranked[label], ranked[other])

    appearance = styles(entry.name for entry in config.policies)
    standing = []
    for label in [*order, *(label for label in scores if label not in ranked)]:
        mine = [result for key, result in found.items() if key.label == label]
        planned = [key for key in config.runs() if key.label == label]
        standing.append(
            Standing(
                label=label,
                style=appearance[label],
                runs=len(mine),
                planned=len(planned),
                failed=sum(row.failure is not None and row.label == label for row in rows),
                rank=order.index(label) + 1 if label in ranked else None,
                estimate=estimates.get(label),
                over_first=over(label, first),
                over_best=over(label, best),
                environment_steps=_mean([result.environment_steps for result in mine]),
                evaluations=_mean([result.evaluations for result in mine]),
                seconds=_mean([result.seconds["policy"] for result in mine]),
            )
        )
    return standing


def _scores(config: BenchmarkConfig, label: str, found: dict[Key, Result]) -> list[np.ndarray] | None:
    """Scores per task, ``[seeds]``; None where they cannot be compared with those of the first policy."""
    of_tasks = []
    for task in config.tasks:
        mine = [found.get(Key(task.name, label, seed)) for seed in config.seeds]
        first = [found.get(Key(task.name, config.policies[0].name, seed)) for seed in config.seeds]
        goals = [result.objective for result in first if result is not None]
        present = [result for result in mine if result is not None]
        if len(present) < len(mine) or any(result.objective != goals[0] for result in present if goals):
            return None
        of_tasks.append(np.array([score(result) for result in present]))
    return of_tasks


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
