"""Guided lookahead: proposals are measured, the best is taken, and what was measured enters replay."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from r2d2_toys import TMaze, ToyPruning

from agents.r2d2.algorithm import NUM_ENV_STEPS_LIFETIME, NUM_EVALUATIONS_LIFETIME
from agents.r2d2.env_runner import R2D2EnvRunner
from agents.r2d2.lookahead import probe, values_of
from agents.r2d2.policy import R2D2Controller
from agents.r2d2.targets import unrescale
from recognizers.errors import ConfigurationError


def sampled(config, times=3):
    """A runner's module, and its fragments, those of an episode joined in order."""
    runner = R2D2EnvRunner(config=config, worker_index=0)
    runner.module.actor_epsilon = torch.zeros(2)
    fragments = [fragment for _ in range(times) for fragment in runner.sample_fragments()[0]]
    module = runner.module
    runner.stop()
    return module, fragments


def walk(fragments):
    """(environment before the step, fragment, index of the step) of all steps, played again."""
    envs = {}
    for fragment in fragments:
        if fragment.start == 0:
            envs[fragment.episode_id] = ToyPruning()
            envs[fragment.episode_id].reset()
        for index, action in enumerate(fragment.actions.tolist()):
            yield envs[fragment.episode_id], fragment, index
            envs[fragment.episode_id].step(action)


def test_runners_take_the_best_measured_proposal_and_keep_the_others(pruning_config, cluster):
    pruning_config.guidance(k=3, k_start=3, rank="efficiency").ladder(anneal_steps=0)
    _, fragments = sampled(pruning_config)
    seen = 0
    for env, fragment, index in walk(fragments):
        valid, branches = env.kept.sum(), fragment.branches
        beside = np.flatnonzero(branches.steps == fragment.start + index)
        assert len(beside) == min(3, valid) - 1
        for branch in beside:
            (outcome,) = env.probe([int(branches.actions[branch])])
            assert (outcome.reward, outcome.terminated) == (branches.rewards[branch], branches.terminated[branch])
            for key, value in outcome.observation.items():
                np.testing.assert_array_equal(branches.observations[key][branch], value, strict=True)
            # Efficiency is minus the reward here.
            assert branches.rewards[branch] > fragment.rewards[index]
            seen += 1
    assert seen > 40
    probes = sum(fragment.probes for fragment in fragments)
    assert probes == seen + sum(len(fragment.actions) for fragment in fragments)


def test_one_proposal_is_plain_r2d2(pruning_config, cluster):
    _, fragments = sampled(pruning_config, times=1)
    assert all(len(fragment.branches) == fragment.probes == 0 for fragment in fragments)


def test_values_are_rewards_and_what_the_network_expects_to_follow(pruning_config, cluster):
    pruning_config.training(reward_scale=3.0, gamma=0.9, value_rescaling=True)
    module, _ = sampled(pruning_config, times=1)
    env = ToyPruning()
    env.reset()
    env.step(1)
    env.step(3)
    env.step(0)
    probes = [*env.probe([2, 4]), SimpleNamespace(**{**vars(env.probe([4])[0]), "terminated": False})]
    assert probes[0].terminated
    state = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))
    expected = []
    for outcome in probes:
        observation = {key: torch.as_tensor(value)[None, None] for key, value in outcome.observation.items()}
        with torch.no_grad():
            q, _ = module.network(
                observation, torch.tensor([[outcome.action + 1]]), torch.tensor([[outcome.reward]]), tuple(state)
            )
        best = max(float(unrescale(q[0, 0, action])) for action in np.flatnonzero(outcome.action_mask))
        expected.append(3.0 * outcome.reward + (0.0 if outcome.terminated else 0.9 * best))
    values = values_of(module, probes, tuple(state[:, 0].numpy()))
    assert values == pytest.approx(expected, rel=1e-5)


def test_all_evaluations_are_counted_and_the_controller_measures_as_trained(pruning_config, cluster, tmp_path):
    pruning_config.guidance(k=2, k_start=4, anneal_steps=1000, branch_share=0.5)
    algorithm = pruning_config.build_algo()
    try:
        result = algorithm.train()
        buffer = algorithm.local_replay_buffer
        steps = result[NUM_ENV_STEPS_LIFETIME]
        # Of five actions four are proposed at first, of two left both: what was not taken is a branch.
        assert buffer.num_branches == result[NUM_EVALUATIONS_LIFETIME] - 2 * steps > steps
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
    finally:
        algorithm.stop()

    for k, probes in ((None, 2), (3, 3), (1, 0)):
        controller, env = R2D2Controller(tmp_path / "checkpoint", k=k, rank="efficiency"), Counting()
        controller.reset(env)
        observation, info = env.reset(seed=0)
        bare = {key: value for key, value in observation.items() if key != "action_mask"}
        q = controller.q_values(bare, info)
        proposed = np.argsort(-q)[: max(probes, 1)]
        assert controller.act(bare, info) == (min(proposed) if probes else proposed[0])
        assert env.probed == probes
    with pytest.raises(ConfigurationError, match="at least 1"):
        R2D2Controller(tmp_path / "checkpoint", k=0)
    with pytest.raises(ConfigurationError, match="ranks by"):
        R2D2Controller(tmp_path / "checkpoint", rank="beauty")


class Counting(ToyPruning):
    """Counts probes."""

    def __init__(self):
        super().__init__()
        self.probed = 0

    def probe(self, actions):
        self.probed += len(actions)
        return super().probe(actions)


def test_an_environment_that_cannot_be_probed_is_refused():
    with pytest.raises(ConfigurationError, match="k=1"):
        probe(TMaze(), [1, 2])
