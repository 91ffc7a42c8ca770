"""RLlib's DQN as a policy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.episodes import play
from envs.pruning import PruningEnv
from envs.tasks import load_task
from tests.benchmarks.faults import TASK
from tests.benchmarks.stock_dqn import StockDQN, next_valid


@given(st.integers(0, 9), st.sets(st.integers(0, 9), min_size=1))
def test_an_invalid_action_stands_for_the_next_valid_one(action, valid):
    expected = next(a % 10 for a in range(action, action + 10) if a % 10 in valid)
    assert next_valid(action, sorted(valid)) == expected


@pytest.mark.slow
def test_it_spends_its_steps_exactly_and_plays_valid_actions():
    env = PruningEnv(load_task("digits/convnet", TASK))
    policy = StockDQN(seed=0, evaluations=1111)
    policy.reset(env)
    assert env.environment_steps == env.evaluations == 1111
    episode = play(env, policy.act, seed=0, policy="dqn")
    assert episode.terminated and episode.episode_return > 0
