"""The connector that hands the network its previous action and reward beside the observation."""

from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from agents.r2d2.episodes import SINGLE_OBSERVATION, as_mapping
from recognizers.errors import ConfigurationError

PREVIOUS_ACTION = "previous_action"
"""Observation key: 0 at an episode's start, else the previous action plus one."""
PREVIOUS_REWARD = "previous_reward"
"""Observation key: the previous reward, 0 at an episode's start."""


def with_previous(observation: Any, previous_action: int, previous_reward: float) -> dict[str, Any]:
    """An observation as the network gets it.

    Args:
        observation: of the environment.
        previous_action: 0 for none, else the action plus one.
        previous_reward: as the environment gave it.
    """
    return {
        **as_mapping(observation),
        PREVIOUS_ACTION: np.int64(previous_action),
        PREVIOUS_REWARD: np.float32(previous_reward),
    }


def with_previous_space(space: gym.Space[Any], num_actions: int) -> gym.spaces.Dict:
    """Space of :func:`with_previous`.

    Raises:
        ConfigurationError: the observations are of a kind that the network cannot take in.
    """
    entries = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {SINGLE_OBSERVATION: space}
    for key, entry in entries.items():
        if not isinstance(entry, gym.spaces.Box | gym.spaces.MultiBinary):
            raise ConfigurationError(f"R2D2 needs Box and MultiBinary observations; {key!r} is {entry}")
    return gym.spaces.Dict(
        {
            **entries,
            PREVIOUS_ACTION: gym.spaces.Discrete(num_actions + 1),
            PREVIOUS_REWARD: gym.spaces.Box(-np.inf, np.inf, (), np.float32),
        }
    )


class PrevActionReward(ConnectorV2):
    """Env-to-module connector: adds the previous action and reward to what the network sees.

    The episodes stay as they are. The replay buffer has actions and rewards anyway and rebuilds these inputs, so they
    are not stored twice.
    """

    @override(ConnectorV2)
    def recompute_output_observation_space(
        self, input_observation_space: gym.Space[Any], input_action_space: gym.Space[Any]
    ) -> gym.Space[Any]:
        """Space of the observations after this connector."""
        if not isinstance(input_action_space, gym.spaces.Discrete):
            raise ConfigurationError(f"R2D2 needs a Discrete action space, got {input_action_space}")
        return with_previous_space(input_observation_space, int(input_action_space.n))

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], episodes: list[SingleAgentEpisode], **kwargs: Any) -> dict[str, Any]:
        """Fill the observation column of the batch, one item per running episode."""
        for episode in self.single_agent_episode_iterator(episodes):
            started = episode.t > 0
            item = with_previous(
                episode.get_observations(-1),
                int(episode.get_actions(-1)) + 1 if started else 0,
                float(episode.get_rewards(-1)) if started else 0.0,
            )
            self.add_batch_item(batch, Columns.OBS, item_to_add=item, single_agent_episode=episode)
        return batch
