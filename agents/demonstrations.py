"""Episodes of baseline policies as demonstrations for the controller."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.policy import make_policy
from agents.r2d2.episodes import Arrays, Fragment, ProbedStep, branches_of
from agents.r2d2.heads import ACTION_MASK
from envs.actions import Action, Stop
from envs.episodes import Episode, play
from envs.pruning import Observation, PruningEnv
from recognizers.errors import ConfigurationError


@dataclass(frozen=True)
class Demonstration:
    """An episode as a record, and as replay takes it."""

    episode: Episode
    fragment: Fragment


def demonstrate(env: PruningEnv, name: str, *, seed: int, lstm_size: int) -> Demonstration:
    """Play an episode with a baseline policy. What the policy probes on the way becomes branches of it.

    The recurrent states are zeros, as R2D3 has them: burn-in warms them up, and the controller's first states would
    mean nothing to the later one.

    Args:
        env: where; what it costs is counted there.
        name: of the policy.
        seed: of the policy and the episode.
        lstm_size: width of the controller's recurrent state.

    Raises:
        UnknownNameError: no such policy.
        ConfigurationError: the policy acts by another kind of actions than the environment takes.
    """
    policy = make_policy(name, seed=seed)
    kind = getattr(policy, "actions", env.task.actions.kind)
    if kind != env.task.actions.kind:
        raise ConfigurationError(
            f"demonstrations.policies: {name} acts by actions of kind {kind!r}, the controller by those of kind "
            f"{env.task.actions.kind!r}"
        )
    observations: list[dict[str, Any]] = []
    probed: list[ProbedStep] = []

    def observe() -> dict[str, Any]:
        action_mask = np.zeros(len(env.action_table.layer_of_action), dtype=np.int8)
        action_mask[env.valid_actions()] = 1
        return {**env.observation, ACTION_MASK: action_mask}

    def choose(observation: Observation, info: dict[str, Any]) -> Action | Stop:
        action = policy.act(observation, info)
        if not isinstance(action, Stop):
            taken = int(action)  # kinds without indices were refused
            if env.probes:
                probed.append(ProbedStep(len(observations), taken, list(env.probes)))
            observations.append(observe())
        return action

    policy.reset(env)
    episode = play(env, choose, seed=seed, policy=name, phase="training")
    observations.append(observe())
    stacked: Arrays = {key: np.stack([entry[key] for entry in observations]) for key in observations[0]}
    steps = len(episode.actions)
    fragment = Fragment(
        episode_id=f"{name} {seed}",
        start=0,
        observations=stacked,
        actions=np.array(episode.actions, dtype=np.int64),
        rewards=np.array(episode.rewards, dtype=np.float64),
        states={key: np.zeros((steps, lstm_size), dtype=np.float32) for key in ("h", "c")},
        terminated=episode.terminated,  # the controller cannot stop by itself, so another's stop is no end for it
        truncated=not episode.terminated,
        episode_seed=seed,
        branches=branches_of(probed, stacked),
        probes=sum(len(step.probes) for step in probed),
    )
    return Demonstration(episode, fragment)
