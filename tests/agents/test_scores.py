"""The best score so far against evaluations spent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.benchmark import Row
from agents.policy import make_policy
from agents.report.palette import assign, css
from agents.report.pictures.scores import mean_of_steps, section
from agents.results import Result
from agents.running import Spent, run_policy
from agents.scores import BestSoFar
from agents.statistics import interval
from envs.episodes import Episode, play
from envs.objectives import Budget, Measurement, Objective, Tolerance
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig

GOALS = [Tolerance(drop=0.1), Budget(parameters=0.5)]
IDS = ["tolerance", "budget"]


def environment(task: TaskConfig, goal: Objective) -> PruningEnv:
    return PruningEnv(task.model_copy(update={"objective": goal}))


def recounted(objective: Objective, baseline: float, episodes: list[Episode], before: int = 0) -> list:
    """The curve by looking at every prefix of the evaluations anew."""
    states = [Measurement(baseline, 0.0, 0.0)]
    for episode in episodes:
        states += map(Measurement, episode.accuracies, episode.parameter_reductions, episode.macs_reductions)
    scores = [objective.score(state, baseline) for state in states]
    best = [max(scores[: count + 1]) for count in range(len(scores))]
    return [
        (before + count, score)
        for count, score in enumerate(best)
        if score > -np.inf and (count == 0 or score > best[count - 1])
    ]


@pytest.mark.parametrize("goal", GOALS, ids=IDS)
def test_a_search_records_what_its_evaluations_bought(goal: Objective, task: TaskConfig) -> None:
    env = environment(task, goal)
    done = run_policy(env, make_policy("search:random", seed=2, evaluations=80), "search", seed=0)
    own, *others = done.episodes
    assert list(done.result.scores or ()) == recounted(goal, env.baseline_accuracy, [*others, own])
    assert env.on_evaluation is None
    assert Result.model_validate_json(done.result.model_dump_json()) == done.result


@pytest.mark.parametrize("goal", GOALS, ids=IDS)
def test_probes_count(goal: Objective, task: TaskConfig) -> None:
    """The states that lookahead measures, listed by a second one that plays beside it."""
    env, beside = environment(task, goal), environment(task, goal)
    done = run_policy(env, make_policy("lookahead"), "lookahead", seed=0)
    best = BestSoFar(goal, beside.baseline_accuracy)
    beside.reset(seed=0)
    count = 0
    for action in done.episodes[0].actions:
        for probe in beside.probe(beside.valid_actions().tolist()):
            count += 1
            best.see(count, probe.measurement)
        beside.step(beside.actions.recall(action))
        count += 1
        best.see(count, beside.measurement)
    assert count == done.result.evaluations
    assert list(done.result.scores or ()) == best.rises


def test_two_runs_on_one_environment_have_curves_of_their_own(task: TaskConfig) -> None:
    env = environment(task, GOALS[0])
    first, second = (run_policy(env, make_policy("uniform:l1"), "uniform:l1", seed=0).result for _ in range(2))
    assert first.scores == second.scores


def test_episodes_played_elsewhere_come_first(task: TaskConfig) -> None:
    env, policy = environment(task, GOALS[0]), make_policy("random", seed=1)
    policy.reset(env)
    also = [play(env, policy.act, seed=seed, policy="random") for seed in range(4)]
    steps = sum(len(episode.actions) for episode in also)
    uniform = make_policy("uniform:l1")
    best = BestSoFar(env.objective, env.baseline_accuracy)
    best.take(also, 0, steps)
    done = run_policy(env, uniform, "both", seed=0, also=also, spent=Spent(steps, steps, rises=tuple(best.rises)))
    expected = recounted(env.objective, env.baseline_accuracy, [*also, done.episodes[0]])
    assert list(done.result.scores or ()) == expected
    # After 7 others, three evaluations per step: probes that left no record. In two parts it is the same.
    best, parts = (BestSoFar(env.objective, env.baseline_accuracy) for _ in range(2))
    best.take(also, 7, 7 + 3 * steps)
    first = sum(len(episode.actions) for episode in also[:2])
    parts.take(also[:2], 7, 7 + 3 * first)
    again = BestSoFar(env.objective, env.baseline_accuracy, parts.rises)
    again.take(also[2:], 7 + 3 * first, 7 + 3 * steps)
    assert best.rises == again.rises
    assert best.rises == [(7 + 3 * count if count else 0, score) for count, score in expected if count <= steps]
    assert again.score == best.rises[-1][1]


def test_results_of_old_files_have_no_curve(task: TaskConfig) -> None:
    env = environment(task, GOALS[0])
    fields = run_policy(env, make_policy("uniform:l1"), "uniform:l1", seed=0).result.model_dump()
    del fields["scores"]
    assert Result.model_validate(fields).scores is None


@st.composite
def step_curves(draw: st.DrawFn) -> tuple[list[list[tuple[int, float]]], list[int]]:
    curves, ends = [], []
    for _ in range(draw(st.integers(1, 4))):
        places = sorted(draw(st.sets(st.integers(0, 30), min_size=1, max_size=6)))
        heights = np.cumsum(draw(st.lists(st.floats(0.01, 1), min_size=len(places), max_size=len(places))))
        curves.append(list(zip(places, heights.tolist(), strict=True)))
        ends.append(draw(st.integers(max(places[-1], 1), 40)))
    return curves, ends


@settings(max_examples=150, deadline=None)
@given(step_curves())
def test_the_mean_of_step_curves_is_that_at_every_place(drawn: tuple) -> None:
    curves, ends = drawn
    grid, mean, half = mean_of_steps(curves, ends)
    last = max([1, *(curve[0][0] for curve in curves)])
    begun = list(range(last, min(ends) + 1)) or [last]  # what has ended stays as it is
    assert (grid[0], grid[-1]) == (begun[0], begun[-1])
    for x in begun:
        values = [[height for place, height in curve if place <= x][-1] for curve in curves]
        at = np.searchsorted(grid, x, side="right") - 1  # a step: nothing changes between two places
        np.testing.assert_allclose((mean[at], half[at]), interval(values))


@pytest.mark.parametrize("goal", GOALS, ids=IDS)
def test_the_picture_shows_the_policies_that_recorded_a_curve(goal: Objective, task: TaskConfig) -> None:
    env = environment(task, goal)
    rows = []
    for label in ("random", "uniform:l1", "old"):
        for seed in range(2):
            policy = make_policy("random" if label == "old" else label, seed=seed)
            result = run_policy(env, policy, label, seed=seed).result
            if label == "old":
                result = result.model_copy(update={"scores": None})
            rows.append(Row(task="digits", label=label, seed=seed, result=result))
    styles = assign(["random", "uniform:l1", "old"], None)
    shown = section("digits", rows, styles, 0)
    assert shown is not None
    assert [key.label for key in shown.legend] == ["random", "uniform:l1"]
    assert css(styles["random"].colour) in shown.panels[0] and css(styles["old"].colour) not in shown.panels[0]
    assert section("another", rows, styles, 0) is None
    assert section("digits", rows[-2:], styles, 0) is None
