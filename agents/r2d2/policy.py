"""The trained controller as a policy: a checkpoint and PyTorch, no Ray cluster."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from torch import Tensor

from agents.r2d2.connectors import PREVIOUS_ACTION, PREVIOUS_REWARD, with_previous
from agents.r2d2.exploration import LookaheadSchedule, Rank, propose
from agents.r2d2.heads import ACTION_MASK
from agents.r2d2.lookahead import best_of, probe
from agents.r2d2.module import R2D2TorchRLModule
from agents.r2d2.settings import action_table_of
from recognizers.errors import ConfigurationError, FileError

MODULE_IN_CHECKPOINT = Path("learner_group", "learner", "rl_module", "default_policy")


def load_module(checkpoint: str | os.PathLike[str]) -> R2D2TorchRLModule:
    """Load the module out of an algorithm's checkpoint, or out of the module's own directory.

    RLlib's checkpoints are pickles: load those of one's own runs only.

    Raises:
        FileError: the checkpoint is missing, incomplete, corrupt, or of something else.
    """
    directory = Path(checkpoint).absolute()
    inner = directory / MODULE_IN_CHECKPOINT
    directory = inner if inner.is_dir() else directory
    if not (directory / RLModule.CLASS_AND_CTOR_ARGS_FILE_NAME).is_file():
        raise FileError(f"{checkpoint} is no R2D2 checkpoint: it lacks {MODULE_IN_CHECKPOINT}")
    try:
        module = RLModule.from_checkpoint(directory)
    except Exception as error:  # a damaged pickle can raise anything
        raise FileError(f"cannot read the checkpoint {checkpoint} (truncated or corrupt): {error}") from error
    if not isinstance(module, R2D2TorchRLModule):
        raise FileError(f"{checkpoint} holds a {type(module).__name__}, not an R2D2 controller")
    return module


class R2D2Controller:
    """Acts greedily with a trained controller. One instance follows one episode at a time.

    Where it was trained with guided lookahead, or is told so here, it has the environment measure its best proposals
    before it takes one.

    Args:
        checkpoint: directory of an algorithm's checkpoint, or of its module.
        k: proposals to be measured per step, 1 for none; by default as many as at the training's end.
        rank: what the best of them is, ``value`` or ``efficiency``, see :func:`~agents.r2d2.lookahead.best_of`; by
            default as in training.

    Raises:
        FileError: see :func:`load_module`.
        ConfigurationError: there is no such number or rank.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], k: int | None = None, rank: Rank | None = None) -> None:
        self.module = load_module(checkpoint)
        self.module.eval()
        trained = LookaheadSchedule(**self.module.model_config["lookahead"])
        self._lookahead = replace(trained, k=trained.k if k is None else k, rank=rank or trained.rank)
        if self._lookahead.k < 1:
            raise ConfigurationError(f"lookahead needs at least 1 proposal, got k={k}")
        if self._lookahead.rank not in get_args(Rank):
            raise ConfigurationError(f"lookahead ranks by {' or '.join(get_args(Rank))}, got {rank!r}")
        self._space: gym.spaces.Dict = self.module.observation_space
        self._env: gym.Env[Any, Any] | None = None
        self._forget()

    def _forget(self) -> None:
        h, c = self.module.network.initial_state(1)
        self._state: dict[str, Tensor] = {"h": h, "c": c}
        self._previous_action = 0  # none

    def reset(self, env: gym.Env[Any, Any]) -> None:
        """Begin an episode: zero state, no previous action.

        A controller without embeddings of its own network's actions takes over those of ``env``.

        Raises:
            ConfigurationError: the environment's observations or actions are not those of the training.
        """
        network = self.module.network
        if network.transferable and env is not self._env:
            table = action_table_of(env, features=self.module.model_config["network"]["features"])
            if table is None:
                raise ConfigurationError(f"the controller needs a description of the actions, which {env} lacks")
            network.carry_to(table)
        actions = getattr(env.action_space, "n", None)
        if actions != network.num_actions:
            raise ConfigurationError(
                f"the controller was trained for {network.num_actions} actions, the environment has "
                f"{env.action_space}; one trained with network.action_embedding=false could be carried over"
            )
        offered = env.observation_space.spaces if isinstance(env.observation_space, gym.spaces.Dict) else None
        if offered is not None:
            carried = {"mask"} if network.transferable else set()
            for key in self._observed_keys() - {ACTION_MASK} - carried:
                shape = offered[key].shape if key in offered else None
                if shape != self._space[key].shape:
                    raise ConfigurationError(
                        f"the controller was trained on observation {key!r} of shape {self._space[key].shape}, "
                        f"the environment offers {shape or 'none'}"
                    )
        self._env = env
        self._forget()

    def _observed_keys(self) -> set[str]:
        return set(self._space.spaces) - {PREVIOUS_ACTION, PREVIOUS_REWARD}

    def act(self, observation: Any, info: Mapping[str, Any]) -> int:
        """The valid action of the highest Q, or the best of the measured proposals; carries the recurrent state on.

        Args:
            observation: of the environment; without an ``action_mask`` it is taken from ``info``.
            info: of the environment; ``reward`` is the previous step's reward (0 if absent).
        """
        q, mask, self._state = self._evaluate(observation, info)
        proposals = propose(q[None], mask[None], torch.zeros(1), self._lookahead.k)[0]  # [K]
        candidates = [int(proposal) for proposal in proposals if proposal >= 0]
        action = candidates[0]
        if len(candidates) > 1:
            action = candidates[self._best_of(candidates)]
        self._previous_action = action + 1
        return action

    def _best_of(self, candidates: list[int]) -> int:
        if self._env is None:
            raise ConfigurationError("lookahead measures in an environment: call reset(env) first")
        probes = probe(self._env, candidates)
        state = self._state["h"][0].numpy(), self._state["c"][0].numpy()
        return best_of(self.module, probes, state, self._lookahead.rank)

    def q_values(self, observation: Any, info: Mapping[str, Any]) -> NDArray[np.float32]:
        """Q-values of all actions ``[A]`` on the scale of the training, ``nan`` for invalid ones; changes nothing."""
        q, mask, _ = self._evaluate(observation, info)
        return torch.where(mask, q, torch.full_like(q, torch.nan)).numpy()

    def _evaluate(self, observation: Any, info: Mapping[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        entries = with_previous(observation, self._previous_action, float(info.get("reward", 0.0)))
        if ACTION_MASK in self._space.spaces and ACTION_MASK in info:
            entries[ACTION_MASK] = info[ACTION_MASK]
        missing = set(self._space.spaces) - set(entries)
        if missing:
            raise ConfigurationError(f"the controller needs {sorted(missing)} of the environment")
        inputs = {key: torch.as_tensor(np.asarray(entries[key]))[None, None] for key in self._space.spaces}
        with torch.no_grad():
            out = self.module.compute_q_values({Columns.OBS: inputs, Columns.STATE_IN: self._state})
            mask = self.module.network.action_mask(inputs)[0, 0]  # [A]
        return out[QF_PREDS][0, 0], mask, out[Columns.STATE_OUT]
