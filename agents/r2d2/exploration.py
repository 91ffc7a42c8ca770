"""Exploration: the Ape-X ladder of epsilons, its annealing, and masked epsilon-greedy actions."""

import torch
from torch import Tensor

from agents.r2d2.targets import masked_argmax


def ladder(num_actors: int, base: float = 0.4, exponent: float = 7.0) -> list[float]:
    """Epsilon of each actor: ``base^(1 + exponent i / (N - 1))`` (Horgan et al. 2018, section 4.1).

    Args:
        num_actors: N, the environments of all runners together; a single actor gets ``base``.
        base: epsilon of the most curious actor.
        exponent: spread of the ladder; the last actor gets ``base^(1 + exponent)``.
    """
    return [base ** (1.0 + exponent * index / max(1, num_actors - 1)) for index in range(num_actors)]


def actor_epsilons(
    worker_index: int, num_runners: int, envs_per_runner: int, *, base: float, exponent: float
) -> list[float]:
    """Rungs of the ladder that belong to the environments of one runner.

    Args:
        worker_index: RLlib's index: from 1 for remote runners, 0 for the local one.
        num_runners: number of remote runners; 0 if the local runner samples.
        envs_per_runner: environments in each runner.
        base: see :func:`ladder`.
        exponent: see :func:`ladder`.
    """
    rungs = ladder(max(1, num_runners) * envs_per_runner, base, exponent)
    first = max(0, worker_index - 1) * envs_per_runner
    return rungs[first : first + envs_per_runner]


def annealed(epsilons: Tensor, env_steps: int, anneal_steps: int) -> Tensor:
    """Lower every epsilon linearly from 1 to its rung over the first ``anneal_steps`` environment steps.

    A ladder of few actors is degenerate ({0.4, 0.0007} for two): without annealing one of them would explore next to
    nothing from the start.
    """
    progress = 1.0 if anneal_steps <= 0 else min(1.0, env_steps / anneal_steps)
    return (1.0 - progress) + progress * epsilons


def epsilon_greedy(
    q_values: Tensor, action_mask: Tensor, epsilons: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Greedy among the valid actions, or with chance epsilon one of them drawn uniformly.

    Args:
        q_values: ``[B, A]``.
        action_mask: ``[B, A]``, nonzero where valid. A row without a valid action (a finished episode, whose action
            the vector environment ignores) may yield any action.
        epsilons: chance of a random action, ``[B]``.
        generator: source of randomness; torch's global one if not given.

    Returns:
        Actions ``[B]``.
    """
    mask = action_mask.bool()
    drawable = mask | ~mask.any(dim=-1, keepdim=True)  # multinomial needs a positive weight in each row
    random = torch.multinomial(drawable.float(), 1, generator=generator).squeeze(-1)  # [B]
    coins = torch.rand(q_values.shape[0], generator=generator, device=q_values.device)
    return torch.where(coins < epsilons, random, masked_argmax(q_values, mask))
