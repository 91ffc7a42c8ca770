"""Searches: what they spend, what they play, what they learn."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.baselines.evolution import Individual, mutated
from agents.baselines.orders import RemovalOrder, imagine, order_of_rule
from agents.baselines.search import EpisodeSearch, best_of
from agents.baselines.surrogate import RIDGE, AccuracyModel
from agents.policy import Policy, make_policy
from agents.running import run_policy
from envs.actions import Kind
from envs.episodes import play
from envs.objectives import Budget, Objective, Tolerance
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig
from recognizers.errors import ConfigurationError

SEARCHES = ["search:random", "search:evolution", "search:lookahead"]
KINDS: list[Kind] = ["unit", "block", "layer", "mask"]
GOALS = [Tolerance(drop=0.1), Budget(parameters=0.4), Budget(macs=0.5)]


def environment(task: TaskConfig, kind: Kind = "block", goal: Objective = GOALS[0]) -> PruningEnv:
    actions = task.actions.model_copy(update={"kind": kind})
    return PruningEnv(task.model_copy(update={"actions": actions, "objective": goal}))


def searched(env: PruningEnv, name: str, **own: Any) -> EpisodeSearch:
    if name == "search:evolution":
        own = {"children": 4} | own
    policy: Policy = make_policy(name, **own)
    policy.reset(env)
    assert isinstance(policy, EpisodeSearch)
    return policy


@pytest.mark.parametrize("name", SEARCHES)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.integers(1, 60), seed=st.integers(0, 5))
def test_exactly_the_steps_are_spent(name: str, task: TaskConfig, steps: int, seed: int) -> None:
    env = environment(task)
    search = searched(env, name, seed=seed, evaluations=steps)
    assert env.evaluations == steps
    assert sum(len(episode.actions) for episode in search.episodes) == env.environment_steps
    assert (env.environment_steps == steps) or name == "search:lookahead"
    assert all(episode.terminated for episode in search.episodes[:-1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in SEARCHES for kind in KINDS if (name, kind) != ("search:lookahead", "mask")],
)
@pytest.mark.parametrize("goal", GOALS, ids=["tolerance", "parameters", "macs"])
def test_the_best_is_played_again_under_every_kind_and_objective(
    name: str, kind: Kind, goal: Objective, task: TaskConfig
) -> None:
    """An action that is not valid would raise."""
    env = environment(task, kind, goal)
    search = searched(env, name, seed=1, evaluations=60)
    own = play(env, search.act, seed=0, policy=name)
    finished = [episode.episode_return for episode in search.episodes if episode.terminated]
    assert own.terminated
    if finished:
        assert own.episode_return == pytest.approx(max(finished))


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "block") for name in SEARCHES), ("search:random", "mask"), ("search:evolution", "mask")]
)
def test_equal_seeds_give_equal_searches(name: str, kind: Kind, task: TaskConfig) -> None:
    first, second, other = (
        searched(environment(task, kind), name, seed=seed, evaluations=50).episodes for seed in (3, 3, 4)
    )
    assert first == second
    assert [episode.actions for episode in first] != [episode.actions for episode in other]


@pytest.mark.parametrize("goal", GOALS[:2], ids=["tolerance", "parameters"])
@pytest.mark.parametrize("kind", ["unit", "block", "layer"])
def test_evolution_begins_with_its_rules_and_is_no_worse(kind: Kind, goal: Objective, task: TaskConfig) -> None:
    env = environment(task, kind, goal)
    returns = []
    for rule in ("uniform:l1", "global:l1"):
        policy = make_policy(rule)
        policy.reset(env)
        returns.append(play(env, policy.act, seed=0, policy=rule).episode_return)
    search = searched(env, "search:evolution", evaluations=120)
    assert [episode.episode_return for episode in search.episodes[:2]] == pytest.approx(returns)
    assert best_of(search.episodes).episode_return >= max(returns)


def test_a_search_by_lookahead_begins_with_plain_lookahead(task: TaskConfig) -> None:
    env = environment(task)
    policy = make_policy("lookahead")
    policy.reset(env)
    plain = play(env, policy.act, seed=0, policy="lookahead")
    spent = env.evaluations
    search = searched(environment(task), "search:lookahead", evaluations=3 * spent)
    assert search.episodes[0].actions == plain.actions
    assert len(search.episodes) >= 4, "the others probe less, so there are more of them"
    assert len({episode.actions for episode in search.episodes}) >= 4
    assert best_of(search.episodes).episode_return >= plain.episode_return
    with pytest.raises(ConfigurationError, match="choose unit, block or layer"):
        searched(environment(task, "mask"), "search:lookahead")


def test_evolution_improves_on_random_search_and_on_its_rules(task: TaskConfig) -> None:
    goal, found = Budget(parameters=0.3), {}
    for name, own in {"search:random": {}, "search:evolution": {"children": 16}}.items():
        searches = [
            searched(environment(task, "unit", goal), name, seed=seed, evaluations=200, **own) for seed in range(2)
        ]
        found[name] = np.mean([best_of(search.episodes).episode_return for search in searches])
    rules = max(episode.episode_return for episode in searches[0].episodes[:2])
    assert found["search:evolution"] > found["search:random"] + 0.02
    assert found["search:evolution"] > rules + 0.02


def test_candidates_of_a_search_reach_the_result(task: TaskConfig) -> None:
    done = run_policy(environment(task), make_policy("search:random", evaluations=60), "search:random", seed=0)
    assert done.result.environment_steps >= 60
    assert len(done.episodes) > 2
    assert done.result.parameter_reduction > 0


def test_settings_are_checked(task: TaskConfig) -> None:
    for name in SEARCHES:
        with pytest.raises(ConfigurationError, match=f"{name}: evaluations must be at least 1"):
            make_policy(name, evaluations=0)
    with pytest.raises(ConfigurationError, match="at least one rule"):
        make_policy("search:evolution", rules=[])
    with pytest.raises(ConfigurationError, match="'random' gives no removal order"):
        make_policy("search:evolution", rules=["random"]).reset(environment(task))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["uniform:l1", "pca:l1"])
def test_an_order_takes_everything_away(kind: Kind, rule: str, task: TaskConfig) -> None:
    """All that is imagined happens, for a rule that stops early, too."""
    env = environment(task, kind)
    genes = order_of_rule(env, rule, seed=0)
    assert env.evaluations == 0
    imagined = list(imagine(env, np.random.default_rng(0).permutation(genes)))
    masks = np.array([mask for mask, _ in imagined])
    assert (np.diff(masks.sum(1)) < 0).all()
    assert not env.actions.valid(masks[-1]).any()
    order = RemovalOrder(env, np.random.default_rng(0).permutation(genes))
    env.reset(seed=0)
    for mask, state in imagined:
        *_, terminated, _, info = env.step(order.next(env.recognizer.mask))
        np.testing.assert_array_equal(env.recognizer.mask, mask)
        assert state.parameter_reduction == info["parameter_reduction"]
        if terminated:
            break


def test_a_mask_meets_a_budget_at_once(task: TaskConfig) -> None:
    """The target is met by what comes first in the order, and would not be with one unit less."""
    env = environment(task, "mask", Budget(parameters=0.4))
    genes = np.random.default_rng(0).permutation(env.recognizer.n_units)
    ((mask, state),) = list(imagine(env, genes))[:1]
    assert state.parameter_reduction >= 0.6
    removed = [unit for unit in genes if not mask[unit]]
    mask[removed[-1]] = 1
    assert env.recognizer.costs.reductions(mask)[0] < 0.6


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_mutation_keeps_all_genes(size: int, share: float, seed: int) -> None:
    genes = np.random.default_rng(seed).integers(0, 7, size)
    parent = Individual(genes, max(1, round(share * size)), 0.0)
    child = mutated(parent, np.random.default_rng(seed))
    assert sorted(child) == sorted(genes)


def test_the_model_is_a_weighted_ridge_regression() -> None:
    """Against least squares on the rows, with the prior as further rows."""
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 2, (30, 8)).astype(np.float64)
    losses, weights = generator.random(30), generator.random(30)
    model = AccuracyModel(8)
    model.add(masks, losses, weights)
    removed, root = 1 - masks, np.sqrt(weights)
    ridge = RIDGE * (removed**2 * weights[:, None]).sum(0).mean()
    rows = np.concatenate([removed * root[:, None], np.sqrt(ridge) * np.eye(8)])
    expected, *_ = np.linalg.lstsq(rows, np.concatenate([losses * root, np.zeros(8)]), rcond=None)
    for mask in masks:
        assert model.loss(mask) == pytest.approx(float((1 - mask) @ expected))


def test_the_model_takes_what_it_has_not_seen_to_be_free() -> None:
    model = AccuracyModel(3)
    assert model.loss(np.zeros(3)) == 0.0
    model.add(np.array([[0.0, 1.0, 1.0]]), np.array([0.5]), np.array([1.0]))
    assert model.loss(np.array([1, 0, 0])) == 0.0 < model.loss(np.array([0, 1, 1])) <= 0.5
