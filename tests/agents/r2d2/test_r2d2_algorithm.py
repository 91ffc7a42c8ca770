"""The whole algorithm: learning, checkpoints, resumption, remote runners, and the controller made from it."""

import os
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from r2d2_toys import TMaze, ToyPruning, mean_return
from ray.rllib.core import DEFAULT_MODULE_ID

from agents.r2d2.algorithm import NUM_ENV_STEPS_LIFETIME, NUM_UPDATES_LIFETIME, R2D2, RUNNERS_ALIVE
from agents.r2d2.config import R2D2Config
from agents.r2d2.policy import R2D2Controller
from agents.r2d2.settings import action_table_of
from recognizers.errors import ConfigurationError, FileError


def learner_weights(algorithm):
    return algorithm.learner_group.get_weights()[DEFAULT_MODULE_ID]


def test_maze_is_learned_by_memory(maze_config, cluster, tmp_path):
    """Chance is 0.5; the cue has to be kept for eight steps, so a controller that forgets stays there."""
    algorithm = maze_config.build_algo()
    try:
        while algorithm.train()[NUM_ENV_STEPS_LIFETIME] < 2500:
            pass
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
        recorded = algorithm.finished_episodes()
    finally:
        algorithm.stop()
    controller = R2D2Controller(tmp_path / "checkpoint")
    assert mean_return(controller, TMaze(), 40) >= 0.9
    assert 0.2 <= mean_return(controller, TMaze(), 40, forget=True) <= 0.8
    # The environment refuses invalid actions, so all of these were valid; and they can be replayed.
    assert all(episode.terminated and len(episode.actions) == 9 for episode in recorded)
    assert all(episode.accuracy is None for episode in recorded)
    assert len({episode.episode_seed for episode in recorded}) > 40


def test_updates_keep_their_ratio_to_steps(pruning_config, cluster):
    algorithm = pruning_config.training(updates_per_step=0.25).build_algo()
    try:
        result = algorithm.train()
        steps, updates = result[NUM_ENV_STEPS_LIFETIME], result[NUM_UPDATES_LIFETIME]
        assert steps == 40
        assert updates == 0.25 * 40  # the first 20 steps, with which the warm-up ends, count
        assert result["learners"][DEFAULT_MODULE_ID]["gradients_default_optimizer_global_norm"] >= 0.0
        episodes = algorithm.finished_episodes()
        assert all(len(episode.actions) == 4 for episode in episodes)
        assert all(episode.accuracy[0] == 1.0 and len(episode.accuracy) == 5 for episode in episodes)
        assert algorithm.finished_episodes() == []
    finally:
        algorithm.stop()


def test_resumed_training_continues_as_if_never_stopped(pruning_config, cluster, tmp_path):
    algorithm = pruning_config.build_algo()
    algorithm.train()
    path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    twin = R2D2.from_checkpoint(path)
    try:
        for name in ("_env_steps", "_updates", "_updates_due"):
            assert getattr(twin, name) == getattr(algorithm, name)
        assert len(twin.finished_episodes()) == len(algorithm.finished_episodes()) > 0
        steps = [a.env_runner.num_env_steps_sampled_lifetime for a in (algorithm, twin)]
        assert steps[0] == steps[1] == algorithm._env_steps  # what the annealing counts
        for trained in (algorithm, twin):
            for _ in range(3):
                trained._update()
        for one, other in zip(*(learner_weights(a).values() for a in (algorithm, twin)), strict=True):
            np.testing.assert_array_equal(one, other)
        assert twin.train()[NUM_ENV_STEPS_LIFETIME] == algorithm._env_steps + 40
    finally:
        twin.stop()
        algorithm.stop()


def test_nothing_is_left_in_the_home_directory(pruning_config, cluster, tmp_path):
    home = Path.home() / "ray_results"
    before = sorted(home.iterdir()) if home.exists() else []
    algorithm = pruning_config.build_algo()
    temporary = Path(algorithm.logdir)
    algorithm.stop()
    assert not temporary.exists()
    algorithm = pruning_config.run(directory=str(tmp_path / "own")).build_algo()
    algorithm.stop()
    assert (tmp_path / "own").is_dir()
    assert (sorted(home.iterdir()) if home.exists() else []) == before


@pytest.fixture(scope="module")
def checkpoint(cluster, tmp_path_factory):
    """A barely trained controller of the toy pruning environment, and its algorithm's module."""
    config = (
        R2D2Config()
        .environment("r2d2-toy-pruning")
        .env_runners(rollout_fragment_length=10)
        .network(lstm_size=16, encoder_size=16, action_table=action_table_of(ToyPruning()))
        .training(train_len=3, burn_in_len=2, replay_stride=2, n_step=2, num_steps_sampled_before_learning_starts=10)
        .reporting(min_sample_timesteps_per_iteration=40)
    )
    algorithm = config.build_algo()
    algorithm.train()
    path = tmp_path_factory.mktemp("controller") / "checkpoint"
    algorithm.save_to_path(str(path))
    module = algorithm.env_runner.module
    algorithm.stop()
    return path, module


def test_controller_equals_the_trained_network(checkpoint):
    path, module = checkpoint
    controller, env = R2D2Controller(path), ToyPruning()
    controller.reset(env)
    observation, info = env.reset(seed=0)
    state, previous, reward, done = module.network.initial_state(1), 0, 0.0, False
    while not done:
        inputs = {key: torch.as_tensor(value)[None, None] for key, value in observation.items()}
        with torch.no_grad():
            q, state = module.network(inputs, torch.tensor([[previous]]), torch.tensor([[reward]]), state)
        seen = controller.q_values(observation, info)
        valid = observation["action_mask"].astype(bool)
        np.testing.assert_allclose(seen[valid], q[0, 0].numpy()[valid], rtol=1e-5)
        assert np.isnan(seen[~valid]).all()
        bare = {key: value for key, value in observation.items() if key != "action_mask"}
        action = controller.act(bare, info)  # the mask is taken from the info
        assert action == np.nanargmax(seen)
        observation, reward, done, _, info = env.step(action)
        previous = action + 1


def test_controller_also_loads_from_the_module_directory(checkpoint):
    path, _ = checkpoint
    inner = R2D2Controller(path / "learner_group" / "learner" / "rl_module" / "default_policy")
    assert mean_return(inner, ToyPruning(), 2) == mean_return(R2D2Controller(path), ToyPruning(), 2)


def test_controller_refuses_what_does_not_fit(checkpoint):
    controller = R2D2Controller(checkpoint[0])
    with pytest.raises(ConfigurationError, match="5 actions"):
        controller.reset(TMaze())
    env = ToyPruning()
    env.observation_space = gym.spaces.Dict({**env.observation_space, "mask": gym.spaces.MultiBinary(12)})
    with pytest.raises(ConfigurationError, match=r"'mask' of shape \(10,\)"):
        controller.reset(env)
    with pytest.raises(ConfigurationError, match="needs"):
        controller.act({"accuracy": np.ones(1)}, {})


def test_controller_without_embeddings_acts_on_another_network(cluster, pruning_config, tmp_path):
    algorithm = pruning_config.network(action_embedding=False).build_algo()
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()
    controller = R2D2Controller(tmp_path / "checkpoint")

    class Larger(ToyPruning):
        BLOCKS = (4, 1, 3)

    for env in (Larger(steps=6), ToyPruning(), Larger(steps=6)):
        assert mean_return(controller, env, 2) > 0
        observation, info = env.reset(seed=0)
        controller.reset(env)
        assert controller.q_values(observation, info).shape == (env.action_space.n,)
    with pytest.raises(ConfigurationError, match="description of the actions"):
        controller.reset(TMaze())


def test_controller_names_a_bad_checkpoint(checkpoint, tmp_path):
    with pytest.raises(FileError, match="no R2D2 checkpoint"):
        R2D2Controller(tmp_path)
    source = checkpoint[0] / "learner_group" / "learner" / "rl_module" / "default_policy"
    for name in ("module_state.pkl", "class_and_ctor_args.pkl"):
        broken = tmp_path / name
        broken.mkdir()
        for file in source.iterdir():
            content = file.read_bytes()
            (broken / file.name).write_bytes(content[: len(content) // 2] if file.name == name else content)
        with pytest.raises(FileError, match="corrupt"):
            R2D2Controller(broken)


def test_remote_runner_samples_and_the_learner_keeps_its_ratio(pruning_config, cluster):
    config = pruning_config.env_runners(num_env_runners=1, num_cpus_per_env_runner=1)
    algorithm = config.training(updates_per_step=0.25).build_algo()
    try:
        result = algorithm.train()
        steps, updates = result[NUM_ENV_STEPS_LIFETIME], result[NUM_UPDATES_LIFETIME]
        assert steps >= 40
        assert steps * 0.25 - 1 < updates <= steps * 0.25
        # Weights and step counter (on which annealing depends) reach the runner.
        algorithm.train()
        ((counted, version),) = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: (runner.num_env_steps_sampled_lifetime, runner._weights_seq_no), local_env_runner=False
        )
        assert counted >= 40
        assert version >= updates
        assert algorithm.finished_episodes()
    finally:
        algorithm.stop()


def test_any_environment_with_plain_observations_works(cluster):
    """No dictionary, no action mask, and episodes that are truncated."""
    config = R2D2Config().environment("CartPole-v1").env_runners(rollout_fragment_length=50)
    config.network(head="flat", lstm_size=8).reporting(min_sample_timesteps_per_iteration=100)
    config.training(train_len=10, burn_in_len=5, replay_stride=5, num_steps_sampled_before_learning_starts=50)
    algorithm = config.build_algo()
    try:
        assert algorithm.train()[NUM_UPDATES_LIFETIME] == 12
        assert algorithm.finished_episodes()[0].episode_seed is None
    finally:
        algorithm.stop()


def test_unsuitable_spaces_are_refused(cluster):
    for name, message in (("FrozenLake-v1", "Box and MultiBinary"), ("Pendulum-v1", "Discrete action space")):
        with pytest.raises(ConfigurationError, match=message):
            R2D2Config().environment(name).network(head="flat").build_algo()


def test_a_killed_runner_comes_back_and_leaves_no_partial_sequence(pruning_config, cluster):
    config = pruning_config.env_runners(num_env_runners=2, num_cpus_per_env_runner=0.5)
    algorithm = config.build_algo()
    try:
        algorithm.train()
        group = algorithm.env_runner_group
        os.kill(group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)[0], signal.SIGKILL)
        alive = [int(algorithm.train()[RUNNERS_ALIVE])]
        deadline = time.monotonic() + 120
        while (min(alive) == 2 or alive[-1] < 2) and time.monotonic() < deadline:
            alive.append(int(algorithm.train()[RUNNERS_ALIVE]))
        assert (min(alive), alive[-1]) == (1, 2)
        buffer = algorithm.local_replay_buffer
        for episode in buffer._episodes.values():
            starts = buffer._sequences.start[episode.slots]
            assert episode.done or (starts + buffer.train_length <= len(episode)).all()
    finally:
        algorithm.stop()


@pytest.mark.slow
def test_two_remote_runners_learn_and_survive_a_death(maze_config, cluster):
    config = maze_config.env_runners(num_env_runners=2, num_envs_per_env_runner=2, num_cpus_per_env_runner=0.5)
    algorithm = config.build_algo()
    try:
        algorithm.train()
        rungs = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.module.actor_epsilon.tolist(), local_env_runner=False
        )
        algorithm.env_runner_group.foreach_env_runner(
            lambda runner: __import__("os")._exit(1), remote_worker_ids=[1], local_env_runner=False
        )
        returns = []
        steps, deadline = 0, time.monotonic() + 120
        healthy = algorithm.env_runner_group.num_healthy_remote_workers
        while steps < 4000 or (healthy() < 2 and time.monotonic() < deadline):
            steps = algorithm.train()[NUM_ENV_STEPS_LIFETIME]
            returns += [episode.episode_return for episode in algorithm.finished_episodes()]
        assert healthy() == 2
        assert rungs == algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.module.actor_epsilon.tolist(), local_env_runner=False
        )
        assert np.mean(returns[-100:]) > 0.75
    finally:
        algorithm.stop()
