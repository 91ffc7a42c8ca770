"""Guided lookahead: the controller proposes actions, the environment measures them, the best is taken."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.core.columns import Columns
from torch import Tensor

from agents.r2d2.connectors import with_previous
from agents.r2d2.episodes import Probed
from agents.r2d2.exploration import Rank
from agents.r2d2.heads import ACTION_MASK
from agents.r2d2.module import R2D2TorchRLModule
from agents.r2d2.targets import double_q_values, unrescale
from recognizers.errors import ConfigurationError


def probe(env: gym.Env[Any, Any], actions: Sequence[int]) -> list[Probed]:
    """What actions would give, measured by the environment without taking them.

    Raises:
        ConfigurationError: the environment cannot say.
    """
    ask = getattr(env.unwrapped, "probe", None)
    if ask is None:
        raise ConfigurationError(
            f"guided lookahead needs an environment with probe(), which {env.unwrapped} lacks: use lookahead k=1"
        )
    probes: list[Probed] = ask(actions)
    return probes


def best_of(
    module: R2D2TorchRLModule, probes: Sequence[Probed], state: tuple[NDArray[Any], NDArray[Any]], rank: Rank
) -> int:
    """Index of the best among measured candidates.

    Args:
        module: that proposed them.
        probes: what they would give.
        state: recurrent state after the observation at hand, ``[H]`` each.
        rank: ``value``: measured reward, and discounted value of the measured state that follows; ``efficiency``: how
            good the step looks to the objective, whatever follows.
    """
    if rank == "efficiency":
        return int(np.argmax([candidate.efficiency for candidate in probes]))
    return int(np.argmax(values_of(module, probes, state)))


def values_of(
    module: R2D2TorchRLModule, probes: Sequence[Probed], state: tuple[NDArray[Any], NDArray[Any]]
) -> NDArray[np.float64]:
    """``r(a) + gamma max_b Q(s_a, b)`` of each candidate, ``[K]``, on the scale of the learned returns."""
    learning = module.model_config["learning"]
    entries = [
        {
            ACTION_MASK: candidate.action_mask,
            **with_previous(candidate.observation, int(candidate.action) + 1, candidate.reward),
        }
        for candidate in probes
    ]
    device = next(module.parameters()).device
    observation = {
        key: torch.as_tensor(np.stack([entry[key] for entry in entries]), device=device).unsqueeze(1)  # [K, 1, ...]
        for key in module.observation_space.spaces
    }
    h, c = (torch.as_tensor(np.asarray(part), device=device).expand(len(probes), -1) for part in state)  # [K, H]
    with torch.no_grad():
        q: Tensor = module.compute_q_values({Columns.OBS: observation, Columns.STATE_IN: {"h": h, "c": c}})[QF_PREDS]
        value = double_q_values(q, q, module.network.action_mask(observation)).squeeze(-1)  # [K]
        value = unrescale(value) if learning["value_rescaling"] else value
    goes_on = np.array([not candidate.terminated for candidate in probes])
    rewards = np.array([candidate.reward for candidate in probes], dtype=np.float64)
    bootstrap = learning["gamma"] * value.double().cpu().numpy()
    values: NDArray[np.float64] = rewards * learning["reward_scale"] + np.where(goes_on, bootstrap, 0.0)
    return values
