"""Invariants of the replay buffer, with episodes whose every entry names its own place."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.r2d2.episodes import Branches, Fragment
from agents.r2d2.replay import PrioritizedSequenceReplayBuffer, SequenceBatch
from recognizers.errors import ConfigurationError


def branches_at(number, steps):
    """Branch i at step t: action 100 + i, reward 1000 e + t + 0.5, what follows it is -(1000 e + t); odd ones end."""
    steps = np.array(steps, dtype=np.int64)
    return Branches(
        steps=steps,
        actions=100 + np.arange(len(steps)),
        rewards=1000.0 * number + steps + 0.5,
        terminated=np.arange(len(steps)) % 2 == 1,
        observations={
            "accuracy": -(1000.0 * number + steps[:, None]).astype(np.float32),
            "mask": np.full((len(steps), 3), 2, np.int8),
        },
    )


def fragments_of(number, length, cuts=(), done=True, terminated=True, branches=()):
    """An episode in fragments: step t of episode e has action t, reward 1000 e + t; state t + 1 follows step t."""
    bounds = sorted({0, length, *(cut for cut in cuts if 0 < cut < length)})
    parts = []
    for low, high in itertools.pairwise(bounds):
        steps = np.arange(low, high)
        last = done and high == length
        parts.append(
            Fragment(
                episode_id=f"episode-{number}",
                start=low,
                observations={
                    "accuracy": (1000.0 * number + np.arange(low, high + 1, dtype=np.float32))[:, None],
                    "mask": np.tile((np.arange(low, high + 1) % 2).astype(np.int8)[:, None], (1, 3)),
                },
                actions=steps,
                rewards=1000.0 * number + steps,
                states={"h": np.repeat(1000.0 * number + steps[:, None] + 1, 2, axis=1).astype(np.float32)},
                terminated=last and terminated,
                truncated=last and not terminated,
                episode_seed=number if low == 0 else None,
                branches=branches_at(number, [step for step in branches if low <= step < high]),
                probes=2 * sum(low <= step < high for step in branches),
            )
        )
    return parts


def make_buffer(capacity=1000, burn_in=3, train_length=5, stride=2, **kwargs):
    return PrioritizedSequenceReplayBuffer(
        capacity, burn_in=burn_in, train_length=train_length, stride=stride, seed=0, **kwargs
    )


def check_rows(batch, burn_in, train_length, lengths, terminated):
    """Every entry of a batch stands where it belongs."""
    for row in range(len(batch.slots)):
        warm, steps = int(batch.burn_in_lengths[row]), int(batch.train_lengths[row])
        number, start = divmod(int(batch.rewards[row, 0]), 1000)
        end = start + steps
        assert 1 <= steps <= train_length
        assert warm == min(start, burn_in)
        assert end == min(start + train_length, lengths[number])
        assert batch.terminated[row] == (terminated[number] and end == lengths[number])
        assert batch.actions[row].tolist() == [*range(start, end), *[0] * (train_length - steps)]
        assert (batch.rewards[row, :steps] == 1000 * number + np.arange(start, end)).all()
        assert not batch.rewards[row, steps:].any()
        expected_state = 1000 * number + start - warm if start > warm else 0
        assert (batch.states["h"][row] == expected_state).all()
        for offset, low, high in ((0, start - warm, start), (burn_in, start, end + 1)):
            for index, time in enumerate(range(low, high)):
                at = offset + index
                assert batch.observations["accuracy"][row, at, 0] == 1000 * number + time
                assert batch.previous_actions[row, at] == (time if time else 0)  # action time - 1, plus one
                assert batch.previous_rewards[row, at] == (1000 * number + time - 1 if time else 0)
        assert not batch.observations["accuracy"][row, warm:burn_in].any()


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 24), max_size=5),
    burn_in=st.integers(0, 6),
    train_length=st.integers(1, 8),
    stride=st.integers(1, 8),
    terminated=st.booleans(),
)
def test_sampled_sequences_are_cut_out_of_the_episodes(lengths, cuts, burn_in, train_length, stride, terminated):
    stride = min(stride, train_length)
    buffer = make_buffer(200, burn_in, train_length, stride)
    for number, length in enumerate(lengths, start=1):
        buffer.add(fragments_of(number, length, cuts, terminated=terminated))
    expected = sum(1 + max(0, -(-(length - train_length) // stride)) for length in lengths)
    assert buffer.num_sequences == expected
    assert buffer.num_transitions == sum(lengths)
    by_number = dict(enumerate(lengths, start=1))
    check_rows(buffer.sample(32), burn_in, train_length, by_number, dict.fromkeys(by_number, terminated))


def check_branch(batch, row, burn_in, number, step, index):
    """A row is the episode up to a step, and a branch there."""
    warm = min(step, burn_in)
    assert (batch.burn_in_lengths[row], batch.train_lengths[row]) == (warm, 1)
    assert batch.actions[row].tolist() == [100 + index, *[0] * (batch.actions.shape[1] - 1)]
    assert batch.rewards[row, 0] == 1000 * number + step + 0.5
    assert not batch.rewards[row, 1:].any()
    assert batch.terminated[row] == (index % 2 == 1)
    assert (batch.states["h"][row] == (1000 * number + step - warm if step > warm else 0)).all()
    seen = batch.observations["accuracy"][row, :, 0]
    assert seen[:warm].tolist() == [1000 * number + time for time in range(step - warm, step)]
    assert seen[burn_in : burn_in + 2].tolist() == [1000 * number + step, -(1000 * number + step)]
    assert not seen[burn_in + 2 :].any()
    assert batch.observations["mask"][row, burn_in + 1].tolist() == [2, 2, 2]
    assert batch.previous_actions[row, burn_in : burn_in + 2].tolist() == [step, 101 + index]
    expected = [1000 * number + step - 1 if step else 0, 1000 * number + step + 0.5]
    assert batch.previous_rewards[row, burn_in : burn_in + 2].tolist() == expected


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 15),
    at=st.lists(st.integers(0, 14), min_size=1, max_size=8),
    burn_in=st.integers(0, 5),
    cut=st.integers(1, 14),
)
def test_a_share_of_the_rows_are_branches_that_leave_the_episode_where_they_say(length, at, burn_in, cut):
    at = sorted(min(step, length - 1) for step in at)
    buffer = make_buffer(200, burn_in, 5, 2, branch_share=0.5)
    first, *rest = fragments_of(1, length, [cut], branches=at)
    # The branches of each fragment are numbered anew.
    known = [(step, index) for part in (first, *rest) for index, step in enumerate(part.branches.steps.tolist())]
    buffer.add([first, *rest])
    assert buffer.num_branches == len(at)
    assert buffer.num_transitions == length + len(at)
    batch = buffer.sample(16)
    check_rows(_rows(batch, slice(0, 8)), burn_in, 5, {1: length}, {1: True})
    for row in range(8, 16):
        step = int(batch.rewards[row, 0] - 0.5) - 1000
        index = int(batch.actions[row, 0]) - 100
        assert (step, index) in known
        check_branch(batch, row, burn_in, 1, step, index)


def _rows(batch, rows):
    """Some rows of a batch."""
    cut = {}
    for name, value in vars(batch).items():
        cut[name] = {key: part[rows] for key, part in value.items()} if isinstance(value, dict) else value[rows]
    return SequenceBatch(**cut)


def test_priorities_of_branches_are_their_own():
    buffer = make_buffer(train_length=5, stride=5, priority_exponent=1.0, importance_exponent=1.0, branch_share=0.5)
    buffer.add(fragments_of(1, 5, branches=[1, 3]))
    batch = buffer.sample(8)
    branches = batch.slots >= 1000
    assert branches.tolist() == [False] * 4 + [True] * 4
    slot = {int(action): int(slot) for action, slot in zip(batch.actions[4:, 0], batch.slots[4:], strict=True)}
    buffer.update_priorities(np.array([batch.slots[0], slot[100], slot[101]]), np.array([50.0, 1.0, 3.0]))
    batch = buffer.sample(4000)
    assert (batch.actions[2000:, 0] == 101).mean() == pytest.approx(0.75, abs=0.01)
    assert batch.weights[2000:][batch.actions[2000:, 0] == 101] == pytest.approx(1 / 3)
    assert batch.weights[:2000] == pytest.approx(1.0)


def test_branches_leave_with_their_episode():
    buffer = make_buffer(30, train_length=3, stride=1, branch_share=0.5)
    buffer.add(fragments_of(1, 10, branches=[2, 2, 5]))
    slots = buffer.sample(16).slots
    buffer.add(fragments_of(2, 20))
    assert (buffer.num_branches, buffer.num_transitions, buffer.num_episodes) == (0, 20, 1)
    buffer.update_priorities(slots, np.full(16, 99.0))
    assert (buffer.sample(16).rewards[:, 0] >= 2000).all()


def test_ages_count_the_steps_since():
    buffer = make_buffer(train_length=10, stride=5)
    buffer.add(fragments_of(1, 4))
    buffer.add(fragments_of(2, 6, cuts=[2])[:1])
    assert buffer.sample(4).ages.tolist() == [2, 2, 2, 2]
    buffer.add(fragments_of(2, 6, cuts=[2])[1:])
    batch = buffer.sample(16)
    assert set(batch.ages[batch.rewards[:, 0] < 2000]) == {6}
    assert set(batch.ages[batch.rewards[:, 0] >= 2000]) == {0}


def test_every_step_is_trained_and_none_before_its_time():
    buffer = make_buffer(train_length=5, stride=5)
    seen = []
    for part in fragments_of(1, 13, cuts=range(1, 13)):
        buffer.add([part])
        seen.append(buffer.num_sequences)
    # Complete at 5 and 10 steps; the rest when the episode ends.
    assert seen == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3]
    trained = set()
    batch = buffer.sample(64)
    for row, steps in enumerate(batch.train_lengths):
        trained.update(batch.actions[row, :steps].tolist())
    assert trained == set(range(13))


def test_a_short_episode_is_one_sequence_from_its_reset():
    buffer = make_buffer(burn_in=3, train_length=10, stride=2)
    buffer.add(fragments_of(1, 4))
    batch = buffer.sample(2)
    assert buffer.num_sequences == 1
    assert batch.burn_in_lengths.tolist() == [0, 0]
    assert batch.train_lengths.tolist() == [4, 4]
    assert not batch.states["h"].any()


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 12), min_size=5, max_size=30), capacity=st.integers(12, 40))
def test_the_oldest_episodes_leave_and_their_sequences_with_them(lengths, capacity):
    buffer = make_buffer(capacity, train_length=3, stride=1)
    for number, length in enumerate(lengths, start=1):
        buffer.add(fragments_of(number, length))
        assert buffer.num_transitions <= capacity
        kept, steps = 0, 0
        for previous in reversed(lengths[:number]):
            if steps + previous > capacity:
                break
            kept, steps = kept + 1, steps + previous
        # What is held is the longest run of latest episodes, or what was left when the last one came in.
        assert buffer.num_episodes <= kept
        numbers = {int(value) // 1000 for value in buffer.sample(64).rewards[:, 0]}
        assert numbers <= set(range(number - buffer.num_episodes + 1, number + 1))
    assert buffer.num_sequences <= capacity


def test_a_fragment_whose_beginning_has_left_is_left_out():
    buffer = make_buffer(20, train_length=3, stride=1)
    first, second = fragments_of(1, 12, cuts=[6])
    buffer.add([first])
    buffer.add(fragments_of(2, 18))
    buffer.add([second])
    assert buffer.num_episodes == 1
    assert [episode.episode_seed for episode in buffer.drain_finished_episodes()] == [2]


def test_an_episode_longer_than_the_capacity_is_an_error():
    buffer = make_buffer(10)
    with pytest.raises(ConfigurationError, match="raise the capacity"):
        buffer.add(fragments_of(1, 12, cuts=[6]))


def test_priorities_decide_what_is_drawn_and_weights_correct_it():
    buffer = make_buffer(train_length=5, stride=5, priority_exponent=1.0, importance_exponent=1.0)
    buffer.add(fragments_of(1, 5))
    buffer.add(fragments_of(2, 5))
    slots = {int(batch_reward) // 1000: slot for batch_reward, slot in zip(*_first(buffer.sample(8)), strict=True)}
    buffer.update_priorities(np.array([slots[1], slots[2]]), np.array([1.0, 3.0]))
    batch = buffer.sample(4000)
    second = batch.rewards[:, 0] >= 2000
    assert second.mean() == pytest.approx(0.75, abs=0.01)
    assert batch.weights[second] == pytest.approx(1 / 3)
    assert batch.weights[~second] == pytest.approx(1.0)


def _first(batch):
    return batch.rewards[:, 0], batch.slots


def test_priorities_of_evicted_sequences_are_passed_over():
    buffer = make_buffer(10, train_length=5, stride=5)
    buffer.add(fragments_of(1, 10))
    slots = buffer.sample(8).slots
    buffer.add(fragments_of(2, 3))
    buffer.update_priorities(slots, np.full(8, 99.0))
    assert (buffer.sample(16).rewards[:, 0] >= 2000).all()


def test_state_round_trip_continues_identically():
    buffer, twin = make_buffer(60), make_buffer(60)
    for number in range(1, 6):
        buffer.add(fragments_of(number, 7 + number, branches=[0, 4]))
    buffer.add(fragments_of(6, 9, cuts=[4])[:1])
    buffer.update_priorities(buffer.sample(4).slots, np.array([0.1, 5.0, 2.0, 0.0]))
    twin.set_state(pickle.loads(pickle.dumps(buffer.get_state())))
    for target in (buffer, twin):
        target.add(fragments_of(6, 9, cuts=[4])[1:])
        target.add(fragments_of(7, 20))
    assert len(buffer.drain_finished_episodes()) == len(twin.drain_finished_episodes()) == 7
    for _ in range(3):
        one, other = buffer.sample(16), twin.sample(16)
        assert (one.slots >= 60).any()
        for name in ("slots", "weights", "actions", "rewards", "previous_actions", "train_lengths", "ages"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert np.array_equal(one.states["h"], other.states["h"])
        assert np.array_equal(one.observations["mask"], other.observations["mask"])


def test_state_of_another_capacity_is_refused():
    with pytest.raises(ConfigurationError, match="60 steps, this one 50"):
        make_buffer(50).set_state(make_buffer(60).get_state())


def test_finished_episodes_are_recorded_once():
    buffer = make_buffer()
    buffer.add(fragments_of(3, 4, cuts=[2], terminated=False))
    (episode,) = buffer.drain_finished_episodes()
    assert episode.actions == [0, 1, 2, 3]
    assert episode.rewards == [3000.0, 3001.0, 3002.0, 3003.0]
    assert episode.episode_return == sum(episode.rewards)
    assert (episode.episode_seed, episode.terminated) == (3, False)
    assert episode.accuracy == [3000.0, 3001.0, 3002.0, 3003.0, 3004.0]
    assert buffer.drain_finished_episodes() == []
