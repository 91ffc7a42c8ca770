"""What a person looks at while a controller learns: JSON lines, TensorBoard, progress bar."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_LOSS_KEY, QF_MAX_KEY, QF_MEAN_KEY, TD_ERROR_MEAN_KEY
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS
from torch.utils.tensorboard import SummaryWriter

from agents.r2d2.algorithm import NUM_UPDATES_LIFETIME, REPLAY_AGE, REPLAY_BRANCHES, REPLAY_SEQUENCES, RUNNERS_ALIVE
from agents.r2d2.env_runner import PHASES
from agents.r2d2.exploration import annealed, ladder
from agents.r2d2.learner import PRIORITY_MEAN
from agents.r2d2.settings import R2D2Settings
from envs.episodes import Episode

LEARNER_FIGURES = {
    "loss": QF_LOSS_KEY,
    "mean_q": QF_MEAN_KEY,
    "max_q": QF_MAX_KEY,
    "td_error": TD_ERROR_MEAN_KEY,
    "priority": PRIORITY_MEAN,
}
"""Logged name and RLlib's name of the learner's figures."""


def iteration_figures(metrics: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Figures of replay, runners, phases of a step and learner out of an iteration's metrics.

    Args:
        metrics: that the algorithm returned.
        steps: environment steps of the training so far.
    """
    learner = metrics.get("learners", {}).get(DEFAULT_MODULE_ID, {})
    phases = metrics.get(ENV_RUNNER_RESULTS, {}).get(PHASES, {})
    return {
        "updates": int(metrics[NUM_UPDATES_LIFETIME]),
        "replay_sequences": int(metrics[REPLAY_SEQUENCES]),
        "replay_branches": int(metrics[REPLAY_BRANCHES]),
        "replay_age": float(metrics[REPLAY_AGE]),
        "runners_alive": int(metrics[RUNNERS_ALIVE]),
        "updates_per_step": int(metrics[NUM_UPDATES_LIFETIME]) / max(steps, 1),
        **{f"{phase}_milliseconds": float(spent) for phase, spent in phases.items()},
        **{name: float(learner[key]) for name, key in LEARNER_FIGURES.items() if key in learner},
    }


def episode_figures(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over the last episodes; none where there are none."""
    if not episodes:
        return {}
    return {
        "episode_return_mean": float(np.mean([episode.episode_return for episode in episodes])),
        "episode_reduction_mean": float(np.mean([episode.parameter_reductions[-1] for episode in episodes])),
        "episode_accuracy_mean": float(np.mean([episode.accuracies[-1] for episode in episodes])),
    }


def exploration_rates(settings: R2D2Settings, steps: int) -> list[float]:
    """Exploration rate of each actor after so many environment steps."""
    sampling, exploration = settings.sampling, settings.exploration
    actors = max(sampling.num_env_runners, 1) * sampling.num_envs_per_env_runner
    rungs = torch.tensor(ladder(actors, exploration.base, exploration.exponent))
    rates: list[float] = annealed(rungs, steps, exploration.anneal_steps).tolist()
    return rates


def write_scalars(writer: SummaryWriter, record: Mapping[str, float], rates: Sequence[float]) -> None:
    """TensorBoard's share of a record, and the exploration rate of each actor."""
    steps = int(record["environment_steps"])
    for name in record.keys() - {"environment_steps"}:
        writer.add_scalar(f"controller/{name}", record[name], steps)
    for actor, rate in enumerate(rates):
        writer.add_scalar(f"epsilon/{actor}", rate, steps)


def postfix(record: Mapping[str, float]) -> str:
    """The progress bar's share of a record."""
    shown = {"best": "best_score", "return": "episode_return_mean", "greedy": "evaluation_return", "eps": "epsilon_max"}
    return " ".join(f"{label} {record[name]:.3f}" for label, name in shown.items() if name in record)
