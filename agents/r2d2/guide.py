"""The connector that lets runners probe what their module proposes."""

from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from agents.r2d2.episodes import ProbedStep
from agents.r2d2.lookahead import best_of, probe
from agents.r2d2.module import PROPOSALS, R2D2TorchRLModule


class GuidedLookahead(ConnectorV2):
    """Module-to-env connector: measures the proposed actions and takes the best in place of the first.

    It keeps what it probed, as a runner's episodes have no place for it.

    Attributes:
        env: the runner's vector environment, whose sub-environments live in this process; set by the runner.
    """

    @override(ConnectorV2)
    def __init__(self) -> None:
        super().__init__()
        self.env: gym.vector.SyncVectorEnv | None = None
        self._probed: dict[str, list[ProbedStep]] = {}

    def __reduce__(self) -> tuple[type["GuidedLookahead"], tuple[()]]:
        """Checkpoints hold connectors, but no environments."""
        return GuidedLookahead, ()

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: R2D2TorchRLModule,
        batch: dict[str, Any],
        episodes: list[SingleAgentEpisode],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Replace actions; all columns hold one item per running episode."""
        if PROPOSALS not in batch:
            return batch
        proposals, rank = batch.pop(PROPOSALS), rl_module.model_config["lookahead"]["rank"]
        assert self.env is not None
        for env, episode in zip(self.env.unwrapped.envs, episodes, strict=True):
            key = (episode.id_,)
            if key not in proposals:
                continue  # it has just ended; its environment will be reset, whatever the action
            candidates = [int(action) for action in proposals[key][0] if action >= 0]
            if len(candidates) > 1:
                state = batch[Columns.STATE_OUT][key][0]
                probes = probe(env, candidates)
                taken = candidates[best_of(rl_module, probes, (state["h"], state["c"]), rank)]
                batch[Columns.ACTIONS][key] = [np.int64(taken)]
                self._probed.setdefault(episode.id_, []).append(ProbedStep(episode.t, taken, probes))
        return batch

    def drain(self) -> dict[str, list[ProbedStep]]:
        """What was probed since the last call, by episode."""
        probed, self._probed = self._probed, {}
        return probed
