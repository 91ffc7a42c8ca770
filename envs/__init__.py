"""Gymnasium environments in which a policy prunes a recognizer. Importing this package registers them."""

from gymnasium.envs.registration import register, registry

from envs.actions import ActionsConfig, ActionTable
from envs.episodes import Episode, read_episodes, replay, validate, write_episodes
from envs.errors import EpisodeError, InvalidActionError
from envs.objectives import Budget, Measurement, Objective, Tolerance, register_objective
from envs.pruning import Probe, PruningEnv
from envs.tasks import TaskConfig, load_task, make_recognizer, tasks

if "zeroout/Pruning-v0" not in registry:
    register(id="zeroout/Pruning-v0", entry_point="envs.pruning:PruningEnv")

__all__ = [
    "ActionTable",
    "ActionsConfig",
    "Budget",
    "Episode",
    "EpisodeError",
    "InvalidActionError",
    "Measurement",
    "Objective",
    "Probe",
    "PruningEnv",
    "TaskConfig",
    "Tolerance",
    "load_task",
    "make_recognizer",
    "read_episodes",
    "register_objective",
    "replay",
    "tasks",
    "validate",
    "write_episodes",
]
