"""Executors without Ray, and a controller without training."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from agents.r2d2.connectors import with_previous_space
from agents.r2d2.exploration import LookaheadSchedule
from agents.r2d2.module import R2D2TorchRLModule
from agents.r2d2.network import NetworkConfig
from agents.r2d2.settings import action_table_of
from agents.service.supervisor import ProcessDiedError
from agents.service.work import Outcome, Work, perform
from envs.pruning import PruningEnv

# A fork is quick, and time limits need the main thread of a process.
_FORK = multiprocessing.get_context("fork")


class ForkExecutor:
    """A forked process for each pruning."""

    def start(self, work: Work) -> Any:
        ours, theirs = _FORK.Pipe(duplex=False)
        process = _FORK.Process(target=_send, args=(work, theirs))
        process.start()
        theirs.close()
        return process, ours

    def outcome(self, handle: Any) -> Outcome | None:
        process, ours = handle
        if ours.poll():
            try:
                return ours.recv()
            except EOFError as error:
                raise ProcessDiedError from error
        if not process.is_alive():
            raise ProcessDiedError
        return None

    def end(self, handle: Any) -> None:
        handle[0].kill()


def _send(work: Work, connection: Connection) -> None:
    torch.set_num_threads(1)
    connection.send(perform(work))


class Scripted:
    """Prunings that end when the test says so."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome | None] = {}
        self.ended: list[str] = []
        self.started: list[str] = []

    def start(self, work: Work) -> str:
        self.outcomes[work.id] = None
        self.started.append(work.id)
        return work.id

    def outcome(self, handle: str) -> Outcome | None:
        if handle in self.ended:
            self.ended.remove(handle)
            raise ProcessDiedError
        return self.outcomes[handle]

    def end(self, handle: str) -> None:
        self.ended.append(handle)


def untrained_controller(env: PruningEnv, path: Path, *, size: int = 16) -> Path:
    """The checkpoint of a controller for an environment's task, with random weights."""
    torch.manual_seed(0)
    space = gym.spaces.Dict(
        {**env.observation_space.spaces, "action_mask": gym.spaces.MultiBinary(int(env.action_space.n))}
    )
    module = R2D2TorchRLModule(
        observation_space=with_previous_space(space, int(env.action_space.n)),
        action_space=env.action_space,
        model_config={
            "network": vars(NetworkConfig(lstm_size=size, encoder_size=size, embedding_size=size // 2)),
            "action_table": action_table_of(env),
            "burn_in_len": 2,
            "exploration_anneal_steps": 0,
            "lookahead": vars(LookaheadSchedule()),
            "learning": {"gamma": 1.0, "reward_scale": 1.0, "value_rescaling": False},
        },
    )
    module.save_to_path(str(path))
    return path
