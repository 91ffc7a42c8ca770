"""The mathematics of the loss against plain Python loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.r2d2.targets import (
    double_q_values,
    importance_weights,
    masked_argmax,
    n_step_targets,
    rescale,
    sequence_priorities,
    unrescale,
)


def loop_targets(rewards, values, length, terminated, gamma, n_step):
    """The definition, step by step, for one row."""
    targets = [0.0] * len(rewards)
    for t in range(length):
        total, i = 0.0, t
        while i < length and i < t + n_step:
            total += gamma ** (i - t) * rewards[i]
            i += 1
        if not (terminated and i == length):
            total += gamma ** (i - t) * values[i]
        targets[t] = total
    return targets


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 4),
    time=st.integers(1, 9),
    n_step=st.integers(1, 12),
    gamma=st.sampled_from([0.5, 0.9, 0.997, 1.0]),
)
def test_n_step_targets_equal_the_loop(seed, batch, time, n_step, gamma):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(batch, time, generator=generator, dtype=torch.float64)
    values = torch.randn(batch, time + 1, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    terminated = torch.rand(batch, generator=generator) < 0.5
    targets = n_step_targets(rewards, values, lengths, terminated, gamma=gamma, n_step=n_step)
    for row in range(batch):
        expected = loop_targets(
            rewards[row].tolist(), values[row].tolist(), int(lengths[row]), bool(terminated[row]), gamma, n_step
        )
        assert targets[row].tolist() == pytest.approx(expected)


def test_targets_never_read_the_padding():
    rewards = torch.tensor([[1.0, torch.nan]])
    values = torch.tensor([[5.0, 7.0, torch.nan]])
    targets = n_step_targets(rewards, values, torch.tensor([1]), torch.tensor([False]), gamma=0.5, n_step=3)
    assert targets.tolist() == [[1.0 + 0.5 * 7.0, 0.0]]


def test_terminated_does_not_bootstrap_and_truncated_does():
    rewards, values, lengths = torch.ones(2, 1), torch.full((2, 2), 10.0), torch.tensor([1, 1])
    targets = n_step_targets(rewards, values, lengths, torch.tensor([True, False]), gamma=0.9, n_step=1)
    assert targets[:, 0].tolist() == pytest.approx([1.0, 10.0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_unrescale_inverts_rescale_over_ten_orders_of_magnitude(dtype, tolerance):
    magnitude = torch.logspace(-6, 4, 200, dtype=dtype)
    value = torch.cat([-magnitude, torch.zeros(1, dtype=dtype), magnitude])
    torch.testing.assert_close(unrescale(rescale(value)), value, rtol=tolerance, atol=0.0)
    torch.testing.assert_close(rescale(unrescale(value)), value, rtol=tolerance, atol=0.0)


def test_rescale_is_the_published_function():
    value = torch.linspace(-50, 50, 101, dtype=torch.float64)
    published = torch.sign(value) * (torch.sqrt(value.abs() + 1) - 1) + 1e-3 * value
    torch.testing.assert_close(rescale(value), published)


def test_argmax_takes_valid_actions_only_and_zero_is_a_value():
    q = torch.tensor([[5.0, -1.0, 0.0], [9.0, -3.0, -2.0]])
    assert masked_argmax(q, torch.tensor([[0, 1, 1], [0, 1, 1]])).tolist() == [2, 2]


def test_double_q_selects_online_and_evaluates_target():
    online, target = torch.tensor([1.0, 3.0, 9.0]), torch.tensor([10.0, 20.0, 30.0])
    assert double_q_values(online, target, torch.tensor([1, 1, 0])) == 20.0


def test_priorities_mix_maximum_and_mean_of_real_steps():
    errors = torch.tensor([[1.0, -3.0, 100.0], [2.0, 2.0, 2.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert sequence_priorities(errors, valid, 0.9).tolist() == pytest.approx([0.9 * 3 + 0.1 * 2, 2.0])


def test_importance_weights():
    weights = importance_weights(np.array([0.5, 0.125]), size=4, exponent=0.5)
    assert weights.tolist() == pytest.approx([(2.0**-0.5) / (0.5**-0.5), 1.0])
    assert importance_weights(np.array([0.5, 0.125]), size=4, exponent=0.0).tolist() == [1.0, 1.0]
