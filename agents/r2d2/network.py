"""The controller's network: encoder, LSTM, dueling head. Plain PyTorch, without RLlib."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from agents.r2d2.heads import ACTION_MASK, FlatHead, UnitHead
from recognizers.errors import ConfigurationError

State = tuple[Tensor, Tensor]
"""Hidden and cell state of the LSTM, ``[B, H]`` each."""


Part = Literal["head", "all_but_encoder"]
"""What periodic resets forget: the layers behind the LSTM, or the LSTM, too."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes and kind of the network.

    Attributes:
        head: ``unit`` (shared scoring of described actions) or ``flat`` (one output per action).
        encoder_size: width of the layer before the LSTM.
        lstm_size: width of the recurrent state, H.
        embedding_size: width of an action's embedding.
        action_embedding: for ``unit``: learn an embedding per action and per layer beside the shared descriptions.
        features: the action table describes the actions' units, too; for those who make one for another network.
        recurrent: carry the LSTM's state from step to step; else it starts from zeros at each, with equal parameters.
        reward_scale: factor on the previous reward, the same as on the targets.
    """

    head: Literal["unit", "flat"] = "unit"
    encoder_size: int = 128
    lstm_size: int = 128
    embedding_size: int = 32
    action_embedding: bool = True
    features: bool = False
    recurrent: bool = True
    reward_scale: float = 1.0


class RecurrentQNetwork(nn.Module):
    """Q-values of a sequence of observations, previous actions and previous rewards (R2D2, section 2.3 and appendix).

    Args:
        config: sizes and kind.
        observation_shapes: shapes of the observation's entries.
        num_actions: A.
        action_table: description of the actions, needed by the ``unit`` head.

    Raises:
        ConfigurationError: the ``unit`` head lacks its action table or its observations.
    """

    def __init__(
        self,
        config: NetworkConfig,
        observation_shapes: Mapping[str, Sequence[int]],
        num_actions: int,
        action_table: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "encoder_size": config.encoder_size,
            "embedding_size": config.embedding_size,
            "lstm_size": config.lstm_size,
        }
        self.head: FlatHead | UnitHead
        if config.head == "flat":
            self.head = FlatHead(observation_shapes, num_actions, **sizes)
        else:
            missing = {"accuracy", "reduction", "mask"} - set(observation_shapes)
            if missing or action_table is None:
                lack = f"observations {sorted(missing)}" if missing else "an action table"
                raise ConfigurationError(f"the 'unit' head needs {lack} of the environment; use head 'flat' instead")
            described = len(action_table["layer_of_action"])
            if described != num_actions:
                raise ConfigurationError(
                    f"the action table describes {described} actions, but the action space has {num_actions}"
                )
            units = len(action_table["action_of_unit"])
            if tuple(observation_shapes["mask"]) != (units,):
                shape = tuple(observation_shapes["mask"])
                raise ConfigurationError(f"the action table describes {units} units, the mask has shape {shape}")
            self.head = UnitHead(action_table, action_embedding=config.action_embedding, **sizes)
        self.lstm_size = config.lstm_size
        self._recurrent = config.recurrent
        self._reward_scale = config.reward_scale
        self.lstm = nn.LSTM(self.head.encoded_size, config.lstm_size, batch_first=True)
        _open_forget_gate(self.lstm)

    @property
    def num_actions(self) -> int:
        """A."""
        return self.head.num_actions

    @property
    def transferable(self) -> bool:
        """Whether no parameter belongs to a certain unit, action or layer."""
        return isinstance(self.head, UnitHead) and self.head.action_embedding is None

    def carry_to(self, action_table: Mapping[str, Any]) -> None:
        """Go on with the actions of another network.

        Raises:
            ConfigurationError: the network is not transferable, or the actions are described in another way.
        """
        if not isinstance(self.head, UnitHead) or not self.transferable:
            raise ConfigurationError(
                "only a controller trained with network.head=unit and network.action_embedding=false can be carried "
                "to another network"
            )
        self.head.describe_actions(action_table)

    def initial_state(self, batch_size: int) -> State:
        """The state at an episode's start: zeros."""
        zeros = next(self.parameters()).new_zeros(batch_size, self.lstm_size)
        return zeros, zeros.clone()

    def action_mask(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Valid actions ``[B, T, A]``, boolean; all of them where the observation says nothing about it."""
        if ACTION_MASK in observation:
            return observation[ACTION_MASK].bool()
        example = next(iter(observation.values()))
        return torch.ones(*example.shape[:2], self.num_actions, dtype=torch.bool, device=example.device)

    def encode(self, observation: Mapping[str, Tensor], previous_action: Tensor, previous_reward: Tensor) -> Tensor:
        """LSTM inputs ``[B, T, D]``.

        Args:
            observation: each ``[B, T, ...]``.
            previous_action: 0 for none, else the action plus one, ``[B, T]``.
            previous_reward: as the environment gave it, ``[B, T]``.
        """
        return self.head.encode(observation, previous_action.long(), previous_reward.float() * self._reward_scale)

    def unroll(self, encoded: Tensor, state: State) -> tuple[Tensor, State]:
        """LSTM outputs ``[B, T, H]`` and the state after the last step; without recurrence that before the first."""
        if not self._recurrent:
            steps = encoded.flatten(0, 1).unsqueeze(1)  # [B T, 1, D]
            hidden, _ = self.lstm(steps)
            return hidden.view(*encoded.shape[:2], -1), state
        hidden, (h, c) = self.lstm(encoded, (state[0].unsqueeze(0), state[1].unsqueeze(0)))
        return hidden, (h.squeeze(0), c.squeeze(0))

    def burn_in(self, encoded: Tensor, lengths: Tensor, state: State) -> State:
        """State after the first ``lengths`` steps of each row, without gradient (R2D2, section 3).

        Args:
            encoded: LSTM inputs, ``[B, T, D]``, each row filled from its left.
            lengths: ``[B]``, 0 to T.
            state: state before the first step.
        """
        if encoded.shape[1] == 0 or not self._recurrent:
            return state
        with torch.no_grad():
            # A packed row has at least one step; rows without any keep their old state below.
            packed = pack_padded_sequence(encoded, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
            _, (h, c) = self.lstm(packed, (state[0].unsqueeze(0), state[1].unsqueeze(0)))
        warm = (lengths > 0).unsqueeze(-1)  # [B, 1]
        return torch.where(warm, h.squeeze(0), state[0]), torch.where(warm, c.squeeze(0), state[1])

    def q_values(self, hidden: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Q-values ``[B, T, A]`` from LSTM outputs ``[B, T, H]``."""
        q: Tensor = self.head(hidden, observation, self.action_mask(observation))
        return q

    def forward(
        self, observation: Mapping[str, Tensor], previous_action: Tensor, previous_reward: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Q-values ``[B, T, A]`` and the state after the last step."""
        hidden, state = self.unroll(self.encode(observation, previous_action, previous_reward), state)
        return self.q_values(hidden, observation), state

    def reinitialize(self, part: Part, seed: int) -> list[nn.Parameter]:
        """Forget what a part has learned; its parameters. Equal seeds give equal values, here and elsewhere."""
        modules: list[nn.Linear | nn.LSTM] = [*self.head.last_layers]
        if part == "all_but_encoder":
            modules.append(self.lstm)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in modules:
                module.reset_parameters()
        if self.lstm in modules:
            _open_forget_gate(self.lstm)
        return [parameter for module in modules for parameter in module.parameters()]


def _open_forget_gate(lstm: nn.LSTM) -> None:
    """Start with a forget-gate bias of 1, so that the state survives long gaps (Jozefowicz et al. 2015)."""
    forget = slice(lstm.hidden_size, 2 * lstm.hidden_size)  # PyTorch's order of gates: input, forget, cell, output
    with torch.no_grad():
        lstm.get_parameter("bias_ih_l0")[forget] = 1.0
        lstm.get_parameter("bias_hh_l0")[forget] = 0.0
