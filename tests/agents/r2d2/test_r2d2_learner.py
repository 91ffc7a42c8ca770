"""The learner's loss and the runner, without an algorithm around them."""

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_LOSS_KEY
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.minibatch_utils import ShardBatchIterator

from agents.r2d2.algorithm import to_learner_batch
from agents.r2d2.env_runner import R2D2EnvRunner
from agents.r2d2.exploration import ladder
from agents.r2d2.learner import PRIORITIES, SLOTS
from agents.r2d2.replay import PrioritizedSequenceReplayBuffer, SequenceBatch
from agents.r2d2.targets import rescale, unrescale


@pytest.fixture
def sampled(pruning_config, cluster):
    """A runner, a learner and a buffer filled by the runner."""
    config = pruning_config.training(reward_scale=3.0)
    config.validate()
    runner = R2D2EnvRunner(config=config, worker_index=0)
    learner = config.build_learner(env=runner.env, spaces=runner.get_spaces())
    buffer = PrioritizedSequenceReplayBuffer(200, burn_in=2, train_length=3, stride=2, seed=0)
    for _ in range(3):
        buffer.add(runner.sample_fragments()[0])
    yield config, runner, learner, buffer
    runner.stop()


def test_loss_and_priorities_equal_plain_loops(sampled):
    config, _, learner, buffer = sampled
    batch = buffer.sample(8)
    network = learner.module[DEFAULT_MODULE_ID].network  # the target network is still equal to it
    losses, priorities = [], []
    for row in range(8):
        warm, steps = batch.burn_in_lengths[row], batch.train_lengths[row]
        rows = [*range(warm), *range(2, 2 + steps + 1)]
        observation = {k: torch.from_numpy(v[row : row + 1, rows]) for k, v in batch.observations.items()}
        actions = torch.from_numpy(batch.previous_actions[row : row + 1, rows])
        rewards = torch.from_numpy(batch.previous_rewards[row : row + 1, rows])
        state = tuple(torch.from_numpy(batch.states[k][row : row + 1]) for k in ("h", "c"))
        with torch.no_grad():
            q = network(observation, actions, rewards, state)[0][0, warm:]  # [steps + 1, A]
        valid = observation["action_mask"][0, warm:]
        errors = []
        for t in range(steps):
            end = min(t + config.n_step, steps)
            total = sum(config.gamma ** (i - t) * 3.0 * batch.rewards[row, i] for i in range(t, end))
            if not (batch.terminated[row] and end == steps):
                best = max((q[end, a] for a in range(5) if valid[end, a]), key=float)
                total = total + config.gamma ** (end - t) * unrescale(best)
            target = rescale(torch.as_tensor(total, dtype=torch.float32))
            errors.append(float(target - q[t, batch.actions[row, t]]))
        losses += [batch.weights[row] * (0.5 * e * e if abs(e) < 1 else abs(e) - 0.5) for e in errors]
        sizes = np.abs(errors)
        priorities.append(0.9 * sizes.max() + 0.1 * sizes.mean())
    results = learner.update(batch=to_learner_batch(batch), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1})
    results = results[DEFAULT_MODULE_ID]
    assert float(results[QF_LOSS_KEY].peek()) == pytest.approx(np.mean(losses), rel=1e-4)
    assert np.concatenate(results[PRIORITIES].peek()) == pytest.approx(np.array(priorities), rel=1e-4)
    assert np.concatenate(results[SLOTS].peek()).tolist() == batch.slots.tolist()


def test_gradients_of_learners_with_unequal_parts_average_to_that_of_the_whole_batch(sampled):
    """Each gets some rows; those behind have fewer steps, as branches and ends of episodes have."""
    _, _, learner, buffer = sampled
    batch = buffer.sample(8)
    order = np.argsort(-batch.train_lengths)
    columns = {name: getattr(batch, name) for name in vars(batch)}
    batch = SequenceBatch(
        **{
            name: {key: value[order] for key, value in column.items()} if isinstance(column, dict) else column[order]
            for name, column in columns.items()
        }
    )
    assert batch.train_lengths[:4].sum() > batch.train_lengths[4:].sum()

    def gradients(part):
        tensors = learner._convert_batch_type(part).policy_batches
        losses = learner.compute_losses(fwd_out=learner.module.forward_train(tensors), batch=tensors)
        return [value.clone() for value in learner.compute_gradients(losses).values() if value is not None]

    whole = to_learner_batch(batch)
    parts = [gradients(part) for part in ShardBatchIterator(whole, 2)]
    for expected, *shares in zip(gradients(whole), *parts, strict=True):
        torch.testing.assert_close(torch.stack(shares).mean(0), expected)


def test_no_gradient_reaches_the_target_and_it_is_copied_on_time(sampled):
    _, _, learner, buffer = sampled
    module = learner.module[DEFAULT_MODULE_ID]

    def distance():
        pairs = zip(module.network.parameters(), module._target_network.parameters(), strict=True)
        return sum(float((one - other).detach().abs().sum()) for one, other in pairs)

    assert distance() == 0.0
    learner.update(batch=to_learner_batch(buffer.sample(8)), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 29})
    assert distance() > 0.0
    learner.update(batch=to_learner_batch(buffer.sample(8)), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 30})
    assert distance() == 0.0
    state = learner.get_state()
    assert state["last_target_update_ts"] == {DEFAULT_MODULE_ID: 30}
    learner.last_update_ts_by_mid.clear()
    learner.set_state(state)
    learner.update(batch=to_learner_batch(buffer.sample(8)), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 59})
    assert distance() > 0.0  # a restored learner waits for its 30 steps


def test_stored_states_are_those_of_the_network(sampled):
    """Replaying an episode from its reset reproduces the recurrent states the actor had."""
    _, runner, _, buffer = sampled
    network = runner.module.network
    episode = next(iter(buffer._episodes.values()))
    steps = len(episode)
    observation = {k: torch.from_numpy(v[None, :steps]) for k, v in episode.observations.items()}
    actions = torch.from_numpy(np.concatenate([[0], episode.actions[:-1] + 1]))[None]
    rewards = torch.from_numpy(np.concatenate([[0], episode.rewards[:-1]]))[None]
    hidden, _ = network.unroll(network.encode(observation, actions, rewards), network.initial_state(1))
    torch.testing.assert_close(hidden[0].detach(), torch.from_numpy(episode.states["h"]))


def test_no_two_runners_and_no_restart_repeat_a_seed(pruning_config, cluster):
    pruning_config.env_runners(num_env_runners=2)

    def seeds(index, state=None):
        runner = R2D2EnvRunner(config=pruning_config, worker_index=index)
        if state is not None:
            runner.set_state(state)
        fragments, _ = runner.sample_fragments()
        runner.stop()
        return {fragment.episode_seed for fragment in fragments}

    assert seeds(1) == seeds(1)
    assert not seeds(1) & seeds(2)
    assert not seeds(1) & seeds(1, {NUM_ENV_STEPS_SAMPLED_LIFETIME: 40})


def test_runners_have_their_rungs_and_keep_them_through_weight_updates(pruning_config, cluster):
    pruning_config.env_runners(num_env_runners=2)
    rungs = ladder(4)
    for index in (1, 2):
        runner = R2D2EnvRunner(config=pruning_config, worker_index=index)
        own = pytest.approx(rungs[2 * index - 2 : 2 * index])
        assert runner.module.actor_epsilon.tolist() == own
        runner.set_state(runner.get_state())
        assert runner.module.actor_epsilon.tolist() == own
        assert not hasattr(runner.module, "_target_network")
        runner.stop()


@pytest.fixture
def build(pruning_config, cluster):
    """A learner of the toy pruning environment, and batches for it."""
    runners = []

    def make(**training):
        config = pruning_config.training(**training)
        config.validate()
        runner = R2D2EnvRunner(config=config, worker_index=0)
        runners.append(runner)
        buffer = PrioritizedSequenceReplayBuffer(200, burn_in=2, train_length=3, stride=2, seed=0)
        buffer.add(runner.sample_fragments()[0])
        learner = config.build_learner(env=runner.env, spaces=runner.get_spaces())

        def update(steps):
            learner.update(batch=to_learner_batch(buffer.sample(8)), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps})

        return learner, update

    yield make
    for runner in runners:
        runner.stop()


def values_of(learner):
    parameters = learner.module[DEFAULT_MODULE_ID].network.named_parameters()
    return {name: parameter.detach().clone() for name, parameter in parameters}


def test_the_recurrent_part_has_a_learning_rate_of_its_own(build):
    """Adam's first steps are as long as the rate, whatever the gradient."""
    learner, update = build(lr=1e-3, recurrent_lr=1e-5)
    before = values_of(learner)
    update(1)
    longest = {"lstm": 0.0, "rest": 0.0}
    for name, value in values_of(learner).items():
        part = "lstm" if name.startswith("lstm.") else "rest"
        longest[part] = max(longest[part], float((value - before[name]).abs().max()))
    assert longest["lstm"] == pytest.approx(1e-5, rel=0.05)
    assert longest["rest"] == pytest.approx(1e-3, rel=0.05)
    state = learner.get_state()
    learner.set_state(state)
    assert sum(len(group["params"]) for o in learner._named_optimizers.values() for group in o.param_groups) == len(
        before
    )


@pytest.mark.parametrize(
    ("part", "forgets"),
    [("head", ("head.value", "head.project")), ("all_but_encoder", ("head.value", "head.project", "lstm"))],
)
def test_periodic_resets_forget_their_part_and_nothing_else(build, part, forgets):
    learner, update = build(reset_interval=100, reset_part=part, lr=1e-6, target_network_update_freq=10_000)
    start = values_of(learner)
    update(99)
    for name, value in values_of(learner).items():
        torch.testing.assert_close(value, start[name], atol=1e-5, rtol=0)
    update(101)
    after = values_of(learner)
    for name, value in after.items():
        changed = float((value - start[name]).abs().max()) > 1e-2
        assert changed is name.startswith(forgets), name
    module = learner.module[DEFAULT_MODULE_ID]
    for name, value in module._target_network.named_parameters():
        torch.testing.assert_close(value, after[name])
    optimizer = next(iter(learner._named_optimizers.values()))
    named = dict(module.network.named_parameters())
    assert {name for name, parameter in named.items() if parameter not in optimizer.state} == {
        name for name in named if name.startswith(forgets)
    }
    if "lstm" in forgets:
        bias = after["lstm.bias_ih_l0"] + after["lstm.bias_hh_l0"]
        assert bias[16:32].tolist() == [1.0] * 16
    state = learner.get_state()
    update(150)  # not due again
    settled = values_of(learner)
    assert all(float((settled[name] - after[name]).abs().max()) < 1e-4 for name in after)
    learner._last_reset = 0
    learner.set_state(state)
    assert learner._last_reset == 101


def test_equal_seeds_forget_alike(build):
    one, other = (build()[0].module[DEFAULT_MODULE_ID].network for _ in range(2))
    random = torch.get_rng_state()
    for mine, its in zip(one.reinitialize("all_but_encoder", 5), other.reinitialize("all_but_encoder", 5), strict=True):
        torch.testing.assert_close(mine, its)
    assert torch.equal(torch.get_rng_state(), random)
