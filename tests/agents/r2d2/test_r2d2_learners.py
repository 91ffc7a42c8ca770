"""Several learners that share each update."""

import os
import signal

import numpy as np
import pytest
from ray.exceptions import RayError
from ray.rllib.core import DEFAULT_MODULE_ID

from agents.r2d2.algorithm import NUM_ENV_STEPS_LIFETIME, NUM_UPDATES_LIFETIME, R2D2


@pytest.fixture
def config(pruning_config):
    pruning_config.learners(num_learners=2, num_cpus_per_learner=0.5)
    return pruning_config.training(target_network_update_freq=30, recurrent_lr=1e-3)


def weights(algorithm):
    """Of each learner."""
    answers = algorithm.learner_group.foreach_learner(lambda learner: learner.get_state()["rl_module"])
    return [answer.get()[DEFAULT_MODULE_ID] for answer in answers]


def assert_equal(one, other):
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_two_learners_train_as_one_and_resume(config, cluster, tmp_path):
    algorithm = config.build_algo()
    twin = None
    try:
        start = weights(algorithm)
        assert_equal(*start)
        updated = set()
        pool = algorithm.local_replay_buffer
        update = pool.update_priorities
        pool.update_priorities = lambda slots, priorities: (updated.update(slots.tolist()), update(slots, priorities))
        sizes = []
        sample = pool.sample
        pool.sample = lambda size: (sizes.append(size), sample(size))[1]
        result = algorithm.train()
        assert result[NUM_UPDATES_LIFETIME] == len(sizes) > 0
        assert set(sizes) == {16}  # a batch of 8 for each
        assert len(updated) > 8
        after = weights(algorithm)
        assert_equal(*after)
        assert any((after[0][name] != start[0][name]).any() for name in after[0])
        path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
        algorithm.stop()
        twin = R2D2.from_checkpoint(path)
        for resumed in weights(twin):
            assert_equal(resumed, after[0])
        assert twin.train()[NUM_ENV_STEPS_LIFETIME] == result[NUM_ENV_STEPS_LIFETIME] + 40
        assert_equal(*weights(twin))
    finally:
        (twin or algorithm).stop()


@pytest.mark.parametrize("index", [0, 1])
def test_the_death_of_either_is_said_at_once(config, cluster, index):
    algorithm = config.build_algo()
    try:
        algorithm.train()
        answers = list(algorithm.learner_group.foreach_learner(lambda _: os.getpid()))
        os.kill(answers[index].get(), signal.SIGKILL)
        with pytest.raises(RayError):
            for _ in range(5):
                algorithm.train()
    finally:
        algorithm.stop()
