"""A training that is stopped and resumed is the one that was never stopped, in the middle of episodes, too."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.r2d2.algorithm import R2D2
from agents.r2d2.resumption import Underway, followed, play_again

ROUNDS = 4


def everything(algorithm):
    """What a training has become; episodes have random names, which mean nothing."""
    state = algorithm.learner_group.get_state()
    replay = algorithm.local_replay_buffer.get_state()
    for episode in replay["episodes"].values():
        episode.pop("episode_id")
    replay["growing"] = list(replay["growing"].values())
    counters = {name: getattr(algorithm, name) for name in ("_env_steps", "_evaluations", "_updates", "_updates_due")}
    return {"learner": state, "replay": replay, "counters": counters}


def assert_same(one, other):
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("settings", ["plain", "lookahead", "maze"])
def test_a_resumed_training_ends_bit_for_bit_like_one_that_went_through(
    settings, pruning_config, maze_config, cluster, tmp_path
):
    config = maze_config if settings == "maze" else pruning_config
    # 7 steps per round cut episodes of 4 and of 9 at different places.
    config.env_runners(rollout_fragment_length=7).reporting(min_sample_timesteps_per_iteration=28)
    config.training(num_steps_sampled_before_learning_starts=20, target_network_update_freq=30)
    config.ladder(anneal_steps=100)
    if settings == "lookahead":
        config.guidance(k=2)
    whole = config.build_algo()
    try:
        for _ in range(2 * ROUNDS):
            whole.train()
        expected = everything(whole)
        assert expected["counters"]["_updates"] > 5
    finally:
        whole.stop()

    first = config.build_algo()
    for _ in range(ROUNDS):
        first.train()
    path = first.save_to_path(str(tmp_path / "checkpoint"))
    first.stop()
    resumed = R2D2.from_checkpoint(path)
    try:
        for _ in range(ROUNDS):
            resumed.train()
        assert_same(everything(resumed), expected)
    finally:
        resumed.stop()


class Walk(gym.Env):
    """Where it is depends on all actions and on the episode's seed."""

    def __init__(self, reports=True, faithful=True):
        self.reports, self.faithful = reports, faithful
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        own = int(self.np_random.integers(2**31)) if seed is None else seed
        self.position = np.array([own % 7 if self.faithful else self.np_random.random()])
        return self.position.copy(), {"episode_seed": own} if self.reports else {}

    def step(self, action):
        self.position = 2 * self.position + action
        return self.position.copy(), 0.0, False, False, {}


@given(st.lists(st.integers(0, 2), max_size=6), st.integers(0, 1000))
def test_an_episode_is_played_again(actions, seed):
    env = Walk()
    last, info = env.reset(seed=seed)
    for action in actions:
        last = env.step(action)[0]
    again = Walk()
    again.reset(seed=seed + 1)
    assert play_again(again, Underway(info["episode_seed"], tuple(actions)), last)
    np.testing.assert_array_equal(again.position, last)


def test_what_cannot_be_played_again_is_told():
    assert not play_again(Walk(), Underway(None), np.zeros(1))
    assert not play_again(Walk(), Underway(3, (1, 2)), np.zeros(1))
    first, info = (env := Walk(faithful=False)).reset()
    assert not play_again(env, Underway(info["episode_seed"]), first)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.booleans()), max_size=12))
def test_episodes_under_way_are_those_without_an_end(parts):
    """Against a recount of all steps."""
    known, expected, clock = {}, {}, 0
    for name, steps, ends in parts:
        actions = np.arange(clock, clock + steps)
        clock += steps
        begins = name not in expected
        seed = clock if begins else None
        expected.setdefault(name, (seed, []))[1].extend(actions.tolist())
        fragment = SimpleNamespace(
            episode_id=name, episode_seed=seed, actions=actions, terminated=ends, truncated=False
        )
        known = followed(known, [fragment])
        if ends:
            del expected[name]
    assert known == {name: Underway(seed, tuple(actions)) for name, (seed, actions) in expected.items()}


def test_an_environment_that_names_no_seed_starts_a_new_episode(pruning_config, cluster, tmp_path):
    config = pruning_config.environment("CartPole-v1").network(head="flat", action_table=None)
    first = config.build_algo()
    first.train()
    path = first.save_to_path(str(tmp_path / "checkpoint"))
    first.stop()
    resumed = R2D2.from_checkpoint(path)
    try:
        assert resumed.env_runner._needs_initial_reset
        growing = set(resumed.local_replay_buffer._growing)
        resumed.train()
        assert growing <= set(resumed.local_replay_buffer._growing)
    finally:
        resumed.stop()
