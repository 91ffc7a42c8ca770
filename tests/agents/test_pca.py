"""The allocation by principal components."""

from typing import Any

import numpy as np
import pytest

from agents.baselines.allocations import meets
from agents.policy import make_policy, suited
from agents.running import run_policy
from envs.actions import ActionsConfig
from envs.episodes import play, validate
from envs.objectives import Budget, Tolerance
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig
from recognizers.criteria import criterion
from recognizers.errors import ConfigurationError, UnknownNameError
from recognizers.principal_components import layer_contributions
from recognizers.sampling import training_sample


def _env(task: TaskConfig, kind: str = "mask", **budget: float) -> PruningEnv:
    update: dict[str, Any] = {
        "actions": ActionsConfig(kind=kind, per_layer=4),  # type: ignore[arg-type]
        "objective": Budget(**budget) if budget else Tolerance(drop=0.99),
    }
    return PruningEnv(task.model_copy(update=update))


def _shares(env: PruningEnv, seed: int, images: int = 256) -> list[np.ndarray]:
    """What the policy of that seed goes by, in the complete network."""
    inputs, _ = training_sample(env.recognizer, images, np.random.default_rng(seed))
    return layer_contributions(env.recognizer.baseline.network, env.recognizer.table, [inputs])


def _kept(shares: list[np.ndarray], share: float) -> list[int]:
    return [next(count for count in range(1, len(one) + 1) if one[count - 1] >= share - 1e-12) for one in shares]


@pytest.mark.parametrize("contribution", [0.99, 0.9, 0.5])
def test_the_rule_alone_says_how_many_go(task: TaskConfig, contribution: float) -> None:
    """And L1 which; the episode stops there, though the environment would go on."""
    env = _env(task)
    policy = make_policy("pca:l1", seed=3, contribution=contribution)
    policy.reset(env)
    episode = play(env, policy.act, seed=0, policy="pca:l1")
    kept = _kept(_shares(env, 3), contribution)
    assert list(env.recognizer.kept_units.values()) == kept
    assert len(episode.actions) == 1 and not episode.terminated
    scores, mask = criterion("l1")(env.recognizer, np.random.default_rng(0)), env.recognizer.mask
    for layer, count in zip(env.recognizer.table.layers, kept, strict=True):
        own = scores[layer.units]
        assert (mask[layer.units] == (own >= np.sort(own)[-count])).all()
    validate(env, episode)


def test_its_result_is_the_mask_of_the_rule(task: TaskConfig) -> None:
    env = _env(suited(task, make_policy("pca:l1")))
    done = run_policy(env, make_policy("pca:l1", contribution=0.9), "pca:l1", seed=0)
    assert list(done.result.kept_units.values()) == _kept(_shares(env, 0), 0.9)
    assert done.result.environment_steps == 1


@pytest.mark.parametrize("kind", ["mask", "unit"])
def test_where_all_units_are_needed_none_goes(task: TaskConfig, kind: str) -> None:
    env = _env(task, kind)
    done = run_policy(env, make_policy("pca:l1", contribution=1.0), "pca:l1", seed=0)
    assert done.result.kept_units == done.result.units
    assert done.result.environment_steps == 0


@pytest.mark.parametrize("kind", ["unit", "block", "layer"])
def test_other_actions_go_as_far_as_they_fit(task: TaskConfig, kind: str) -> None:
    env = _env(task, kind)
    policy = make_policy("pca:l1", contribution=0.7)
    policy.reset(env)
    play(env, policy.act, seed=0, policy="pca:l1")
    kept, goal = np.array(list(env.recognizer.kept_units.values())), np.array(_kept(_shares(env, 0), 0.7))
    largest = {"unit": 1, "block": 2, "layer": 2}[kind]  # 6, 8 and 8 units in four blocks
    assert (kept >= goal).all() and (kept - goal < largest).all()
    assert kept.sum() < 22


@pytest.mark.parametrize("target", [{"macs": 0.7}, {"macs": 0.3}, {"parameters": 0.5}, {"macs": 0.0601}])
def test_a_budget_takes_the_highest_share_that_meets_it(task: TaskConfig, target: dict[str, float]) -> None:
    env = _env(task, **target)
    policy = make_policy("pca:l1", seed=1)
    policy.reset(env)
    shares = _shares(env, 1)
    expected = max(
        (share for share in [0.0, *np.concatenate(shares)]),
        key=lambda share: (meets(env, Budget(**target), np.array([6, 8, 8]) - _kept(shares, share)), share),
    )
    counts = policy.counts(env, Budget(**target))  # type: ignore[attr-defined]
    assert counts.tolist() == (np.array([6, 8, 8]) - _kept(shares, expected)).tolist()
    episode = play(env, policy.act, seed=0, policy="pca:l1")
    assert len(episode.actions) == 1 and episode.terminated


def test_a_budget_is_met_by_blocks(task: TaskConfig) -> None:
    env = _env(task, "block", macs=0.5)
    policy = make_policy("pca:l1")
    policy.reset(env)
    assert play(env, policy.act, seed=0, policy="pca:l1").terminated


def test_noise_says_something_else(task: TaskConfig) -> None:
    env = _env(task)
    goals = []
    for inputs, seed in (("data", 0), ("noise", 0), ("noise", 0), ("noise", 1)):
        policy = make_policy("pca:l1", seed=seed, inputs=inputs)
        policy.reset(env)
        goals.append(np.concatenate(policy._shares))  # type: ignore[attr-defined]
    data, noise, again, other = goals
    assert np.array_equal(noise, again)
    assert not np.array_equal(noise, data) and not np.array_equal(noise, other)


def test_what_it_refuses(task: TaskConfig) -> None:
    for settings in ({"contribution": 0.0}, {"contribution": 1.01}, {"images": 0}):
        with pytest.raises(ConfigurationError, match=r"pca: images must be at least 1 and contribution in 0\.\.1"):
            make_policy("pca:l1", **settings)
    with pytest.raises(UnknownNameError, match="unknown inputs of pca 'nois': did you mean 'noise'"):
        make_policy("pca:l1", inputs="nois")
    with pytest.raises(ConfigurationError, match="the contribution follows from the target: leave it out"):
        make_policy("pca:l1", contribution=0.9).reset(_env(task, macs=0.5))
