"""Encoders and heads of the controller's network: one that scores actions by what they are, one that is flat.

Both kinds offer the same three steps, so that the recurrent core between them does not know which one it serves:
``encode`` (observations to LSTM inputs), ``forward`` (LSTM outputs to Q-values) and ``encoded_size``.
Axes: B sequences, T steps, A actions, U units, G layers, E embedding, F static features of an action.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recognizers.errors import ConfigurationError

GONE_SCALE = 7.0
"""Brings a mean over removed actions to the size of the other inputs, which it enters beside."""

ACTION_MASK = "action_mask"


def dueling(value: Tensor, advantage: Tensor, action_mask: Tensor) -> Tensor:
    """``Q = V + A - mean(A)``, the mean over the valid actions only (Wang et al. 2016, equation 9).

    Args:
        value: ``[..., 1]``.
        advantage: ``[..., A]``.
        action_mask: ``[..., A]``, nonzero where valid.
    """
    mask = action_mask.bool()
    count = mask.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = torch.where(mask, advantage, torch.zeros_like(advantage)).sum(dim=-1, keepdim=True) / count
    return value + advantage - mean


class FlatHead(nn.Module):
    """Encodes any flattened observation; a linear dueling head with one row of weights per action.

    Args:
        observation_shapes: shapes of the observation's entries; the action mask is no input.
        num_actions: A.
        encoder_size: width of the encoder.
        embedding_size: width of the previous action's embedding.
        lstm_size: width of the recurrent state.
    """

    def __init__(
        self,
        observation_shapes: Mapping[str, Sequence[int]],
        num_actions: int,
        *,
        encoder_size: int,
        embedding_size: int,
        lstm_size: int,
    ) -> None:
        super().__init__()
        self._keys = sorted(key for key in observation_shapes if key != ACTION_MASK)
        width = sum(int(torch.Size(observation_shapes[key]).numel()) for key in self._keys)
        self.num_actions = num_actions
        self.encoded_size = encoder_size
        self.previous_action = nn.Embedding(num_actions + 1, embedding_size, padding_idx=0)
        self.encoder = nn.Sequential(nn.Linear(width + embedding_size + 1, encoder_size), nn.ReLU())
        self.value = nn.Linear(lstm_size, 1)
        self.advantage = nn.Linear(lstm_size, num_actions)
        self.last_layers: tuple[nn.Linear, ...] = (self.value, self.advantage)

    def encode(self, observation: Mapping[str, Tensor], previous_action: Tensor, previous_reward: Tensor) -> Tensor:
        """LSTM inputs ``[B, T, encoded_size]``; ``previous_action`` is 0 for none, else the action plus one."""
        flat = [observation[key].flatten(start_dim=2).float() for key in self._keys]  # [B, T, ...] each
        inputs = [*flat, self.previous_action(previous_action), previous_reward.unsqueeze(-1)]
        encoded: Tensor = self.encoder(torch.cat(inputs, dim=-1))
        return encoded

    def forward(self, hidden: Tensor, observation: Mapping[str, Tensor], action_mask: Tensor) -> Tensor:
        """Q-values ``[B, T, A]`` from LSTM outputs ``[B, T, H]``."""
        del observation  # everything is in the recurrent state
        return dueling(self.value(hidden), self.advantage(hidden), action_mask)


class UnitHead(nn.Module):
    """Scores every action from a description of it: ``q(s, a) = V(h) + A(h, e_a)``.

    The description of an action is the outer product of two parts, ``e_a = d_a(s) (x) z_a``:

    * ``z_a [E]``, static: an MLP over the action's features, plus (optionally) small learned embeddings of its layer
      and of the action itself, which tell apart units whose features are alike;
    * ``d_a(s) [3]``, dynamic: 1, the kept share of the action's own units, the kept share of its layer.

    ``A(h, e_a) = <P h, e_a>`` is thus a sum of three scaled matrix products ``[B T, E] x [E, A]``, and nothing of the
    size ``[B, T, A, E]`` is ever formed: thousands of units cost megabytes.

    The recurrent part sees the mask through two means: over the layers, of an MLP over each one's description and kept
    share; and over the actions, of what is gone. So no size depends on the network, and without the optional embeddings
    no parameter belongs to it.

    Args:
        action_table: ``layer_of_action`` [A], ``action_of_unit`` [U] and ``features`` [A, F], as lists.
        encoder_size: width of the encoder.
        embedding_size: E.
        lstm_size: width of the recurrent state.
        action_embedding: learn an embedding per action and per layer; off for a controller to be carried to another
            network.

    Raises:
        ConfigurationError: the action table contradicts itself.
    """

    layer_of_action: Tensor
    layer_of_unit: Tensor
    action_of_unit: Tensor
    features: Tensor
    layer_features: Tensor
    units_per_action: Tensor
    units_per_layer: Tensor

    def __init__(
        self,
        action_table: Mapping[str, Any],
        *,
        encoder_size: int,
        embedding_size: int,
        lstm_size: int,
        action_embedding: bool,
    ) -> None:
        super().__init__()
        self.describe_actions(action_table)
        width = self.features.shape[1]
        self.encoded_size = encoder_size
        self.describe = nn.Sequential(
            nn.Linear(width, embedding_size), nn.ReLU(), nn.Linear(embedding_size, embedding_size)
        )
        layers = len(self.units_per_layer)
        self.layer_embedding = nn.Embedding(layers, embedding_size) if action_embedding else None
        self.action_embedding = nn.Embedding(self.num_actions, embedding_size) if action_embedding else None
        # Of a layer: its description, and its kept share.
        self.summarize = nn.Sequential(
            nn.Linear(width + 2, embedding_size), nn.ReLU(), nn.Linear(embedding_size, embedding_size)
        )
        # Input: accuracy, reduction, summary of the layers, what is gone, previous action, previous reward.
        self.encoder = nn.Sequential(nn.Linear(2 + 3 * embedding_size + 1, encoder_size), nn.ReLU())
        self.value = nn.Linear(lstm_size, 1)
        self.project = nn.Linear(lstm_size, 3 * embedding_size)
        self.last_layers: tuple[nn.Linear, ...] = (self.value, self.project)
        self._scale = embedding_size**-0.5

    @property
    def num_actions(self) -> int:
        """A."""
        return len(self.layer_of_action)

    def describe_actions(self, action_table: Mapping[str, Any]) -> None:
        """Take the actions from a table.

        Raises:
            ConfigurationError: the action table contradicts itself, or has other features than the head knows.
        """
        layer_of_action = torch.as_tensor(action_table["layer_of_action"], dtype=torch.long)  # [A]
        action_of_unit = torch.as_tensor(action_table["action_of_unit"], dtype=torch.long)  # [U]
        features = torch.as_tensor(action_table["features"], dtype=torch.float32)  # [A, F]
        actions = len(layer_of_action)
        if len(features) != actions:
            raise ConfigurationError(f"the action table describes {actions} actions, but features of {len(features)}")
        if len(action_of_unit) and not 0 <= int(action_of_unit.min()) <= int(action_of_unit.max()) < actions:
            raise ConfigurationError("the action table assigns a unit to an action that does not exist")
        if hasattr(self, "features") and features.shape[1] != self.features.shape[1]:
            raise ConfigurationError(
                f"the controller was trained with {self.features.shape[1]} features per action, the environment has "
                f"{features.shape[1]}"
            )
        layers = int(layer_of_action.max()) + 1
        layer_of_unit = layer_of_action[action_of_unit]  # [U]
        units_per_layer = torch.bincount(layer_of_unit, minlength=layers).float()
        # Means over the layer's actions, and the layer's share of all units.
        sums = features.new_zeros(layers, features.shape[1]).index_add_(0, layer_of_action, features)
        means = sums / torch.bincount(layer_of_action, minlength=layers).clamp(min=1).unsqueeze(1)
        share = units_per_layer / units_per_layer.sum().clamp(min=1.0)
        # They follow from the task, not from training, but a module must be complete without its environment.
        self.register_buffer("layer_of_action", layer_of_action)
        self.register_buffer("layer_of_unit", layer_of_unit)
        self.register_buffer("action_of_unit", action_of_unit)
        self.register_buffer("features", features)
        self.register_buffer("layer_features", torch.cat([means, share.unsqueeze(1)], dim=1))  # [G, F + 1]
        self.register_buffer("units_per_action", torch.bincount(action_of_unit, minlength=actions).float())
        self.register_buffer("units_per_layer", units_per_layer)

    def static_embedding(self) -> Tensor:
        """``z_a`` of all actions, ``[A, E]``."""
        static: Tensor = self.describe(self.features)
        if self.layer_embedding is not None and self.action_embedding is not None:
            static = static + self.layer_embedding(self.layer_of_action) + self.action_embedding.weight
        return static

    def kept_shares(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of units kept, per action ``[B, T, A]`` and per layer ``[B, T, G]``, from the mask ``[B, T, U]``."""
        kept = mask.float()

        def share(group_of_unit: Tensor, sizes: Tensor) -> Tensor:
            sums = kept.new_zeros(*kept.shape[:2], len(sizes)).index_add_(2, group_of_unit, kept)
            return sums / sizes.clamp(min=1.0)

        return share(self.action_of_unit, self.units_per_action), share(self.layer_of_unit, self.units_per_layer)

    def layer_summary(self, layer_share: Tensor) -> Tensor:
        """What the layers have left, ``[B, T, E]``, from their kept shares ``[B, T, G]``."""
        static = self.layer_features.expand(*layer_share.shape, -1)  # [B, T, G, F + 1]
        described: Tensor = self.summarize(torch.cat([static, layer_share.unsqueeze(-1)], dim=-1))
        return described.mean(dim=2)

    def encode(self, observation: Mapping[str, Tensor], previous_action: Tensor, previous_reward: Tensor) -> Tensor:
        """LSTM inputs ``[B, T, encoded_size]``; ``previous_action`` is 0 for none, else the action plus one."""
        static = self.static_embedding()
        embeddings = torch.cat([torch.zeros_like(static[:1]), static])  # [1 + A, E]
        action_share, layer_share = self.kept_shares(observation["mask"])
        # The mean over the removed units' descriptions tells which are gone, in a size that does not depend on them.
        gone = (1.0 - action_share) @ static / len(static)  # [B, T, E]
        inputs = [
            observation["accuracy"].float(),
            observation["reduction"].float(),
            self.layer_summary(layer_share),
            gone * GONE_SCALE,
            nn.functional.embedding(previous_action, embeddings),
            previous_reward.unsqueeze(-1),
        ]
        encoded: Tensor = self.encoder(torch.cat(inputs, dim=-1))
        return encoded

    def forward(self, hidden: Tensor, observation: Mapping[str, Tensor], action_mask: Tensor) -> Tensor:
        """Q-values ``[B, T, A]`` from LSTM outputs ``[B, T, H]``."""
        static = self.static_embedding() * self._scale  # [A, E]
        constant, own, layer = self.project(hidden).chunk(3, dim=-1)  # [B, T, E] each
        action_share, layer_share = self.kept_shares(observation["mask"])
        advantage = (
            constant @ static.T
            + action_share * (own @ static.T)
            + layer_share[..., self.layer_of_action] * (layer @ static.T)
        )  # [B, T, A]
        return dueling(self.value(hidden), advantage, action_mask)
