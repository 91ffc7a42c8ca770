"""The network as an RLlib module: acting with a stored state, and unrolling with burn-in for the learner."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS, QF_TARGET_NEXT_PREDS
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.annotations import override
from torch import Tensor

from agents.r2d2.connectors import PREVIOUS_ACTION, PREVIOUS_REWARD
from agents.r2d2.exploration import LookaheadSchedule, annealed, propose
from agents.r2d2.network import NetworkConfig, RecurrentQNetwork, State

BURN_IN_LENGTHS = "burn_in_lengths"
"""Batch column: warm-up steps of each row, ``[B]``."""
PROPOSALS = "proposals"
"""Output: actions worth probing, ``[B, 1, K]``, where there are several; -1 in the place of missing ones."""


class R2D2TorchRLModule(TorchRLModule, InferenceOnlyAPI, TargetNetworkAPI, QNetAPI):
    """Online and target network of R2D2.

    ``model_config`` holds the fields of :class:`~agents.r2d2.network.NetworkConfig` under ``network``, the
    ``action_table`` (lists, or ``None``), ``burn_in_len``, ``exploration_anneal_steps``, under ``lookahead`` the fields
    of :class:`~agents.r2d2.exploration.LookaheadSchedule`, and under ``learning`` what its values mean: ``gamma``,
    ``reward_scale`` and ``value_rescaling``.

    Attributes:
        actor_epsilon: exploration rate of each environment of this runner, ``[B]``; set by the runner, and left alone
            by weight synchronisation because it is no parameter.
        generator: what exploration draws from; set by the runner, torch's global one otherwise.
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        """Build the online network from the spaces and ``model_config``."""
        shapes = {
            key: space.shape or ()
            for key, space in self.observation_space.spaces.items()
            if key not in (PREVIOUS_ACTION, PREVIOUS_REWARD)
        }
        self.network = RecurrentQNetwork(
            NetworkConfig(**self.model_config["network"]),
            shapes,
            int(self.action_space.n),  # numpy integers break nn.LSTM
            self.model_config["action_table"],
        )
        self.actor_epsilon: Tensor = torch.ones(1)
        self.generator: torch.Generator | None = None

    @override(RLModule)
    def get_initial_state(self) -> dict[str, NDArray[np.float32]]:
        """Recurrent state at an episode's start, without batch axis."""
        size = self.network.lstm_size
        return {"h": np.zeros(size, np.float32), "c": np.zeros(size, np.float32)}

    @override(QNetAPI)
    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Q-values ``[B, T, A]`` and the state after the last step, from ``obs`` and ``state_in``."""
        observation, previous_action, previous_reward = _split(batch[Columns.OBS])
        q, (h, c) = self.network(observation, previous_action, previous_reward, _state(batch))
        return {QF_PREDS: q, Columns.STATE_OUT: {"h": h, "c": c}}

    @override(TorchRLModule)
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch, torch.zeros(1), int(self.model_config["lookahead"]["k"]))

    @override(TorchRLModule)
    def _forward_exploration(self, batch: dict[str, Any], *, t: int = 0, **kwargs: Any) -> dict[str, Any]:
        epsilons = annealed(self.actor_epsilon, t, self.model_config["exploration_anneal_steps"])
        return self._act(batch, epsilons, LookaheadSchedule(**self.model_config["lookahead"]).candidates(t))

    def _act(self, batch: dict[str, Any], epsilons: Tensor, count: int) -> dict[str, Any]:
        with torch.no_grad():
            out = self.compute_q_values(batch)
            q, mask = out[QF_PREDS][:, -1], self.network.action_mask(batch[Columns.OBS])[:, -1]  # [B, A]
            proposals = propose(q, mask, epsilons.to(q.device).expand(len(q)), count, self.generator)  # [B, K]
        acting = {Columns.ACTIONS: proposals[:, :1], Columns.STATE_OUT: out[Columns.STATE_OUT]}
        return acting if count == 1 else {**acting, PROPOSALS: proposals.unsqueeze(1)}

    @override(TorchRLModule)
    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Q-values of both networks over the trained steps and one more, ``[B, T + 1, A]``."""
        online = self._unroll_with_burn_in(self.network, batch)
        return {QF_PREDS: online, **self.forward_target(batch)}

    @override(TargetNetworkAPI)
    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Q-values of the target network, which warms its own recurrent state up."""
        with torch.no_grad():
            return {QF_TARGET_NEXT_PREDS: self._unroll_with_burn_in(self._target_network, batch)}

    def _unroll_with_burn_in(self, network: RecurrentQNetwork, batch: dict[str, Any]) -> Tensor:
        burn_in: int = self.model_config["burn_in_len"]
        observation, previous_action, previous_reward = _split(batch[Columns.OBS])
        encoded = network.encode(observation, previous_action, previous_reward)  # [B, burn_in + T + 1, D]
        state = network.burn_in(encoded[:, :burn_in], batch[BURN_IN_LENGTHS], _state(batch))
        hidden, _ = network.unroll(encoded[:, burn_in:], state)
        return network.q_values(hidden, {key: value[:, burn_in:] for key, value in observation.items()})

    @override(TargetNetworkAPI)
    def make_target_networks(self) -> None:
        """Create the target network as a copy of the online one."""
        self._target_network: RecurrentQNetwork = make_target_network(self.network)

    @override(TargetNetworkAPI)
    def get_target_network_pairs(self) -> list[tuple[RecurrentQNetwork, RecurrentQNetwork]]:
        """The online network and its target."""
        return [(self.network, self._target_network)]

    @override(InferenceOnlyAPI)
    def get_non_inference_attributes(self) -> list[str]:
        """Only the learner needs the target network."""
        return ["_target_network"]


def _split(inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    observation = {key: value for key, value in inputs.items() if key not in (PREVIOUS_ACTION, PREVIOUS_REWARD)}
    return observation, inputs[PREVIOUS_ACTION], inputs[PREVIOUS_REWARD]


def _state(batch: dict[str, Any]) -> State:
    return batch[Columns.STATE_IN]["h"], batch[Columns.STATE_IN]["c"]
