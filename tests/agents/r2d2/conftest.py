"""One thread, and Ray started once where it is needed."""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import r2d2_toys
import ray
import torch
from ray.tune.registry import register_env

from agents.r2d2.config import R2D2Config
from agents.r2d2.settings import action_table_of


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cluster():
    """Ray on this machine. Workers get the toy environments by value, as these are in no package."""
    ray.cloudpickle.register_pickle_by_value(r2d2_toys)
    ray.init("local", include_dashboard=False, log_to_driver=False, num_cpus=2, configure_logging=False)
    register_env("r2d2-toy-maze", lambda _: r2d2_toys.TMaze())
    register_env("r2d2-toy-pruning", lambda _: r2d2_toys.ToyPruning())
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(r2d2_toys)


@pytest.fixture
def maze_config():
    return r2d2_toys.maze_config("r2d2-toy-maze").debugging(seed=0)


@pytest.fixture
def pruning_config():
    return (
        R2D2Config()
        .environment("r2d2-toy-pruning")
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=10)
        .network(head="unit", lstm_size=16, encoder_size=16, action_table=action_table_of(r2d2_toys.ToyPruning()))
        .training(
            train_len=3,
            burn_in_len=2,
            replay_stride=2,
            n_step=2,
            train_batch_size_per_learner=8,
            num_steps_sampled_before_learning_starts=20,
            target_network_update_freq=30,
            replay_capacity=200,
        )
        .ladder(anneal_steps=100)
        .reporting(min_sample_timesteps_per_iteration=40)
        .debugging(seed=1)
    )
