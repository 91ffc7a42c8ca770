"""Exploration: the Ape-X ladder of epsilons, its annealing, and masked epsilon-greedy proposals."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rank = Literal["value", "efficiency"]


@dataclass(frozen=True)
class LookaheadSchedule:
    """How many proposals are probed, and what the best of them is.

    Attributes:
        k: proposals per step; 1 takes the first as it is.
        k_start: at the beginning of the training.
        anneal_steps: environment steps over which the number goes from ``k_start`` to ``k``.
        rank: see :func:`agents.r2d2.lookahead.best_of`.
    """

    k: int = 1
    k_start: int = 1
    anneal_steps: int = 0
    rank: Rank = "value"

    def candidates(self, env_steps: int) -> int:
        """Proposals per step after so many environment steps."""
        return round(self.k_start + (self.k - self.k_start) * _progress(env_steps, self.anneal_steps))


def _progress(env_steps: int, anneal_steps: int) -> float:
    return 1.0 if anneal_steps <= 0 else min(1.0, env_steps / anneal_steps)


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
    progress = _progress(env_steps, anneal_steps)
    return (1.0 - progress) + progress * epsilons


def propose(
    q_values: Tensor, action_mask: Tensor, epsilons: Tensor, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """The best valid actions, each replaced with chance epsilon by one drawn uniformly from the other valid ones.

    With ``count`` 1 this is epsilon-greedy. With more, exploration costs little: what is drawn is measured beside the
    best, and taken only if it turns out better.

    Args:
        q_values: ``[B, A]``.
        action_mask: ``[B, A]``, nonzero where valid. A row without a valid action (a finished episode, whose action
            the vector environment ignores) may yield any action.
        epsilons: chance of a random action, ``[B]``.
        count: of proposals.
        generator: source of randomness; torch's global one if not given.

    Returns:
        Actions ``[B, K]``, ``K`` at most ``count``, all different in a row, greedy ones first, the best of them first;
        -1 where there are not so many valid ones.
    """
    mask = action_mask.bool()
    rows, actions = q_values.shape
    device = q_values.device
    coins = torch.rand(rows, count, generator=generator, device=device)
    greedy = count - (coins < epsilons.unsqueeze(1)).sum(1, keepdim=True)  # [B, 1]
    lowest = torch.full_like(q_values, -torch.inf)
    order = torch.where(mask, q_values, lowest).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(actions, device=device).expand(rows, -1))  # [B, A]
    # Greedy ones by rank, all above 1; random ones below 1.
    keys = torch.where(
        rank < greedy, 1.0 + (actions - rank), torch.rand(q_values.shape, generator=generator, device=device)
    )
    best = torch.where(mask, keys, lowest).topk(min(count, actions), dim=1)
    chosen = torch.where(best.values > -torch.inf, best.indices, torch.full_like(best.indices, -1))
    return torch.where(mask.any(dim=1, keepdim=True), chosen, best.indices)
