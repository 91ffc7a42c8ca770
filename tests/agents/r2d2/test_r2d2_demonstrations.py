"""Batches of own experience and demonstrations."""

import numpy as np
import pytest
from r2d2_toys import ToyPruning
from test_r2d2_replay import fragments_of, make_buffer

from agents.r2d2.algorithm import R2D2
from agents.r2d2.demonstrations import MixedReplay, share_of_demonstrations
from agents.r2d2.env_runner import R2D2EnvRunner
from recognizers.errors import ConfigurationError


@pytest.fixture
def mixed():
    own, shown = make_buffer(60, branch_share=0.25), make_buffer(40, branch_share=0.25)
    own.add(fragments_of(1, 10, branches=[2]))
    shown.add(fragments_of(2, 12, branches=[3, 3]))
    return MixedReplay(own, shown)


def number_of(batch):
    return batch.rewards[:, 0].astype(int) // 1000


def test_each_part_has_its_share_of_the_rows(mixed):
    batch = mixed.sample(16, 0.25)
    assert number_of(batch).tolist() == [1] * 12 + [2] * 4
    assert (batch.train_lengths == 1).sum() >= 3 + 1  # branches, of both
    assert set(number_of(mixed.sample(16, 0.0))) == {1}
    assert number_of(mixed.sample(4, 0.99)).tolist() == [1, 2, 2, 2]


def test_priorities_return_to_the_buffer_they_came_from(mixed):
    """The first window of each buffer gets nearly all of the priority of its kind, and of its buffer alone."""
    batch = mixed.sample(64, 0.5)
    wanted = [int(np.flatnonzero((number_of(batch) == part) & (batch.train_lengths > 1))[0]) for part in (1, 2)]
    priorities = np.full(64, 1e-6)
    for row in range(64):
        if batch.slots[row] in batch.slots[wanted]:
            priorities[row] = 100.0
    mixed.update_priorities(batch.slots, priorities)
    again = mixed.sample(64, 0.5)
    sequences = again.train_lengths > 1
    assert set(again.slots[sequences]) <= set(batch.slots[wanted])


def test_the_share_falls_to_nothing():
    assert [share_of_demonstrations(0.4, 100, steps) for steps in (0, 50, 100, 200)] == [0.4, 0.2, 0.0, 0.0]
    assert share_of_demonstrations(0.4, 0, 10**6) == 0.4


def test_the_algorithm_learns_from_both_and_resumes_with_both(pruning_config, cluster, tmp_path):
    pruning_config.demonstrations(share=0.5).guidance(k=2, k_start=2)
    runner = R2D2EnvRunner(config=pruning_config, worker_index=0)
    fragments = [fragment for fragment in runner.sample_fragments()[0] if fragment.terminated and fragment.start == 0]
    runner.stop()
    assert fragments
    algorithm = pruning_config.build_algo()
    try:
        algorithm.add_demonstrations(fragments)
        algorithm.train()
        assert algorithm.finished_episodes()  # of the runners alone
        assert all(len(episode.actions) == ToyPruning().steps for episode in algorithm.finished_episodes())
        batch = algorithm._sample()
        assert (batch.slots >= algorithm.local_replay_buffer.num_slots).sum() == 4
        path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
        twin = R2D2.from_checkpoint(path)
        assert np.array_equal(algorithm._sample().slots, twin._sample().slots)
        twin.stop()
        with pytest.raises(ConfigurationError, match="differ in the observations"):
            algorithm.add_demonstrations(fragments_of(1, 4))
    finally:
        algorithm.stop()
