"""Baseline policies against what they must do by definition."""

import itertools

import numpy as np
import pytest

from agents.baselines.allocations import GlobalAllocation
from agents.policy import make_policy, policies, register_policy
from envs.episodes import play
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig
from recognizers.criteria import criterion, layer_normalised
from recognizers.errors import ConfigurationError, UnknownNameError

PLAIN = ["random", "uniform:l1", "global:l1", "uniform:random", "global:random", "lookahead"]


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("kind", ["unit", "block", "layer"])
def test_policies_finish_an_episode(name: str, kind: str, task: TaskConfig) -> None:
    actions = task.actions.model_copy(update={"kind": kind})
    env = PruningEnv(task.model_copy(update={"actions": actions}))
    policy = make_policy(name, seed=1)
    policy.reset(env)
    episode = play(env, policy.act, seed=0, policy=name)
    assert episode.terminated and len(episode.actions) > 0


def test_uniform_keeps_layers_level(env: PruningEnv) -> None:
    """After each step the kept shares of two layers differ by at most one block of each."""
    policy = make_policy("uniform:l1")
    policy.reset(env)
    layers = env.recognizer.table.layers
    block = max(len(units) / len(layer) for layer in layers for units in [np.array_split(layer.units, 4)[0]])

    def check(_: object) -> None:
        shares = [env.recognizer.kept_units[layer.name] / len(layer) for layer in layers]
        assert max(shares) - min(shares) <= block + 1e-9

    play(env, policy.act, seed=0, policy="uniform:l1", on_step=check)


def test_global_removes_in_order_of_the_normalised_score(task: TaskConfig) -> None:
    env = PruningEnv(task.model_copy(update={"actions": task.actions.model_copy(update={"kind": "unit"})}))
    scores = layer_normalised(criterion("l1")(env.recognizer, np.random.default_rng(0)), env.recognizer)
    policy = make_policy("global:l1")
    policy.reset(env)
    episode = play(env, policy.act, seed=0, policy="global:l1")
    removed = scores[list(episode.actions)]
    assert (np.diff(removed) >= 0).all()


def test_l1_is_the_sum_of_absolute_weights(env: PruningEnv) -> None:
    scores = criterion("l1")(env.recognizer, np.random.default_rng(0))
    weight = env.recognizer.base_state["features.conv1.weight"]
    expected = [float(filter_.abs().sum()) for filter_ in weight]
    np.testing.assert_allclose(scores[: len(expected)], expected, rtol=1e-5)


def test_lookahead_takes_the_most_efficient_action(env: PruningEnv) -> None:
    policy = make_policy("lookahead")
    policy.reset(env)
    observation, info = env.reset(seed=0)
    before = env.evaluations
    action = policy.act(observation, info)
    probes = env.probe(env.valid_actions().tolist())
    efficiency = [env.objective.efficiency(env.measurement, p.measurement, env.baseline_accuracy) for p in probes]
    assert action == probes[int(np.argmax(efficiency))].action
    assert env.evaluations - before == 2 * len(probes)
    assert env.environment_steps == 0


def test_lookahead_probes_as_many_as_it_is_told(env: PruningEnv) -> None:
    policy = make_policy("lookahead", candidates=3)
    policy.reset(env)
    episode = play(env, policy.act, seed=0, policy="lookahead")
    assert env.evaluations <= 4 * len(episode.actions)


def test_lookahead_says_why_it_cannot_probe_masks(task: TaskConfig) -> None:
    actions = task.actions.model_copy(update={"kind": "mask"})
    with pytest.raises(ConfigurationError, match="probes every action"):
        make_policy("lookahead").reset(PruningEnv(task.model_copy(update={"actions": actions})))


def test_equal_seeds_give_equal_episodes(task: TaskConfig) -> None:
    episodes = []
    for _ in range(2):
        env, policy = PruningEnv(task), make_policy("random", seed=5)
        policy.reset(env)
        episodes.append(play(env, policy.act, seed=0, policy="random"))
    assert episodes[0] == episodes[1]


def test_unknown_policy_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'uniform:l1'"):
        make_policy("unifrm:l1")
    with pytest.raises(UnknownNameError, match="unknown criterion 'l7'"):
        make_policy("uniform:l7")
    with pytest.raises(ConfigurationError, match="lookahead"):
        make_policy("lookahead", sharpness=3)
    with pytest.raises(ConfigurationError, match="at least 1"):
        make_policy("lookahead", candidates=0)


def test_names_are_registered_once() -> None:
    assert {"random", "lookahead", "uniform:l1", "global:l1", "search:random"} <= set(policies())
    with pytest.raises(ConfigurationError, match="registered already"):
        register_policy("random")(GlobalAllocation)


def test_every_pair_of_allocation_and_criterion_exists() -> None:
    for allocation, name in itertools.product(["uniform", "global"], ["l1", "random"]):
        assert f"{allocation}:{name}" in policies()
