"""The mathematics of R2D2's loss: value rescaling, n-step double-Q targets, priorities, importance weights.

Everything here is a pure function. Sources: Kapturowski et al. 2019, *Recurrent Experience Replay in Distributed
Reinforcement Learning* (R2D2); van Hasselt et al. 2016 (double Q); Schaul et al. 2016 (prioritised replay);
Pohlen et al. 2018, *Observe and Look Further* (value rescaling).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RESCALING_EPSILON = 1e-3


def rescale(value: Tensor, epsilon: float = RESCALING_EPSILON) -> Tensor:
    """Squash a value: ``h(x) = sign(x) (sqrt(|x| + 1) - 1) + epsilon x`` (Pohlen et al. 2018, proposition A.2)."""
    # sqrt(1 + x) - 1 = x / (sqrt(1 + x) + 1): the right-hand side does not cancel for small x.
    return value / (torch.sqrt(value.abs() + 1.0) + 1.0) + epsilon * value


def unrescale(value: Tensor, epsilon: float = RESCALING_EPSILON) -> Tensor:
    """Undo :func:`rescale`.

    The published inverse ``((sqrt(1 + 4 e (|x| + 1 + e)) - 1) / (2 e))^2 - 1`` cancels twice in float32. With
    ``y = sqrt(|h^-1(x)| + 1)``, the positive root of ``e y^2 + y - (|x| + 1 + e) = 0``, it is evaluated here as
    ``y - 1 = 2 |x| / (sqrt((1 + 2 e)^2 + 4 e |x|) + 1 + 2 e)`` and ``y^2 - 1 = (y - 1)(y - 1 + 2)``: no differences.
    """
    magnitude = value.abs()
    slope = 1.0 + 2.0 * epsilon
    excess = 2.0 * magnitude / (torch.sqrt(slope**2 + 4.0 * epsilon * magnitude) + slope)  # y - 1
    return torch.sign(value) * excess * (excess + 2.0)


def masked_argmax(q_values: Tensor, action_mask: Tensor) -> Tensor:
    """Best valid action along the last axis; a Q of exactly 0 is as valid as any other.

    Args:
        q_values: ``[..., A]``.
        action_mask: ``[..., A]``, nonzero where valid. A row with no valid action (a finished episode) yields 0.
    """
    lowest = torch.full_like(q_values, -torch.inf)
    return torch.where(action_mask.bool(), q_values, lowest).argmax(dim=-1)  # [...]


def double_q_values(online: Tensor, target: Tensor, action_mask: Tensor) -> Tensor:
    """Value of each state: the target network's Q of the online network's best valid action.

    Args:
        online: Q of the online network, ``[..., A]``.
        target: Q of the target network, ``[..., A]``.
        action_mask: ``[..., A]``, nonzero where valid.
    """
    best = masked_argmax(online, action_mask)  # [...]
    return target.gather(-1, best.unsqueeze(-1)).squeeze(-1)  # [...]


def n_step_targets(
    rewards: Tensor, values: Tensor, lengths: Tensor, terminated: Tensor, *, gamma: float, n_step: int
) -> Tensor:
    """n-step returns, shortened where the sequence ends (R2D2, section 2.3).

    ``target[t] = sum_{i=t}^{e-1} gamma^(i-t) rewards[i] + gamma^(e-t) values[e]`` with ``e = min(t + n, length)``.
    A sequence that ends in a terminal state bootstraps nothing there. One that was truncated, or is merely cut by the
    window, bootstraps from the observation after its last step.

    Args:
        rewards: ``[B, T]``.
        values: state values at every observation, ``[B, T + 1]``, on the scale of the rewards.
        lengths: number of real steps of each row, ``[B]``, from 1 to T; the rest is padding.
        terminated: whether the last real step of a row led to a terminal state, ``[B]``.
        gamma: discount factor.
        n_step: largest number of rewards to sum.

    Returns:
        Targets ``[B, T]``; zero in the padding.
    """
    batch, time = rewards.shape
    steps = torch.arange(time, device=rewards.device)  # [T]
    valid = steps < lengths.unsqueeze(1)  # [B, T]
    # Rewards beyond the end count as zero, so that a full n-step window shortens itself.
    real = torch.where(valid, rewards, torch.zeros_like(rewards))
    padded = torch.cat([real, real.new_zeros(batch, n_step - 1)], dim=1)  # [B, T + n - 1]
    powers = gamma ** torch.arange(n_step, dtype=rewards.dtype, device=rewards.device)  # [n]
    sums = padded.unfold(1, n_step, 1) @ powers  # [B, T]

    end = torch.minimum(steps + n_step, lengths.unsqueeze(1))  # [B, T]
    bootstrap = values.gather(1, end)  # [B, T]
    at_terminal = terminated.bool().unsqueeze(1) & (end == lengths.unsqueeze(1))
    bootstrap = torch.where(at_terminal, torch.zeros_like(bootstrap), bootstrap)
    discount = gamma ** (end - steps).clamp(min=0).to(rewards.dtype)
    return torch.where(valid, sums + discount * bootstrap, torch.zeros_like(sums))


def sequence_priorities(td_errors: Tensor, valid: Tensor, eta: float) -> Tensor:
    """``eta max_t |d_t| + (1 - eta) mean_t |d_t|`` over the real steps (R2D2, section 2.3).

    Args:
        td_errors: ``[B, T]``.
        valid: ``[B, T]``, true at real steps; at least one in each row.
        eta: weight of the maximum, 0 to 1.
    """
    errors = torch.where(valid, td_errors.abs(), torch.zeros_like(td_errors))
    mean = errors.sum(dim=1) / valid.sum(dim=1)
    return eta * errors.amax(dim=1) + (1.0 - eta) * mean  # [B]


def importance_weights(probabilities: NDArray[np.float64], size: int, exponent: float) -> NDArray[np.float32]:
    """``(N P(i))^-beta``, divided by the batch's largest (Schaul et al. 2016, section 3.4).

    Args:
        probabilities: chance with which each item was drawn, ``[B]``, positive.
        size: number of items in the buffer, N.
        exponent: beta; 0 leaves all weights at 1.
    """
    weights = (size * probabilities) ** -exponent
    normalised: NDArray[np.float32] = (weights / weights.max()).astype(np.float32)
    return normalised
