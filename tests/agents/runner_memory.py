"""How much private memory an environment takes in a runner, with data in the object store and with data of its own.

python tests/agents/runner_memory.py cifar10/resnet56 data.spec=npz:cifar10.npz recognizer.weights=resnet56.pt
"""

import ctypes
import gc
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from agents.cluster import start_ray
from agents.controller import make_env
from agents.object_store import Publication
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig, load_task

SMAPS = Path("/proc/self/smaps_rollup")
RUNNERS = 4


@dataclass(frozen=True)
class Figures:
    """Bytes.

    Attributes:
        copy: one copy of images, labels and base weights.
        shared: what each runner's private memory grows by with an environment whose baseline is in the object store.
        own: the same where each runner loads data and weights.
        small: the same as ``shared``, for a data set without images beyond those that an episode needs.
    """

    copy: int
    shared: list[int]
    own: list[int]
    small: list[int]

    @property
    def data_shared(self) -> int:
        """What data take in all runners together, apart from the one copy in the object store."""
        return sum(self.shared) - sum(self.small)

    @property
    def data_own(self) -> int:
        """The same where each runner loads data and weights."""
        return sum(self.own) - sum(self.small)

    def __str__(self) -> str:
        def megabytes(values: list[int]) -> str:
            return " ".join(f"{value / 1e6:.1f}" for value in values)

        shared, own = self.data_shared, self.data_own
        return "\n".join(
            [
                f"one copy of images, labels and base weights: {self.copy / 1e6:.1f} MB",
                "growth of each runner's private memory in MB:",
                f"  with the baseline in the object store: {megabytes(self.shared)}",
                f"  loading data and weights itself: {megabytes(self.own)}",
                f"  with a tiny data set in the object store: {megabytes(self.small)}",
                "private memory that data take in all runners together:",
                f"  in the object store: {shared / 1e6:.1f} MB = {shared / self.copy:.2f} copies, beside the one there",
                f"  loaded by each: {own / 1e6:.1f} MB = {own / self.copy:.2f} copies",
            ]
        )


class Runner:
    """A process that holds on to its environments, so that none finds memory that another one has left."""

    def __init__(self) -> None:
        self._envs: list[PruningEnv] = []

    def growth(self, config: dict[str, Any]) -> int:
        """Bytes that another environment takes: by what :func:`make_env` takes, or by its task alone."""
        before = private_bytes()
        env = make_env(config) if "baseline" in config else PruningEnv(config["task"], action_mask=True)
        _, info = env.reset(seed=0)
        env.step(int(info["action_mask"].argmax()))
        self._envs.append(env)
        return private_bytes() - before


def measure(task: TaskConfig, folder: Path) -> Figures:
    """Build environments of the task in several processes and see what they take.

    What an environment may keep between steps, ``cache_megabytes``, is left out: it says nothing about data.

    Args:
        task: with weights in a file.
        folder: for a small data set like the task's.
    """

    recognizer = task.recognizer.model_copy(update={"cache_megabytes": 0})
    task = task.model_copy(update={"recognizer": recognizer})
    env = PruningEnv(task)
    baseline = env.recognizer.baseline
    data = [tensor for part in ("train", "reward", "selection", "test") for tensor in getattr(baseline.splits, part)]
    copy = sum(tensor.nbytes for tensor in [*data, *baseline.state.values()])
    small = PruningEnv(small_task(env, folder))
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # other processes cannot import it
    actors = [ray.remote(Runner).options(num_cpus=0).remote() for _ in range(RUNNERS)]
    published = [Publication(user.recognizer, to_runners=True) for user in (small, small, env)]

    def growth(config: dict[str, Any]) -> list[int]:
        return ray.get([actor.growth.remote(config) for actor in actors])

    try:
        _, tiny, shared = (
            growth({"task": user.task.model_dump(mode="json"), "baseline": publication.name})
            for user, publication in zip((small, small, env), published, strict=True)
        )
        return Figures(copy, shared, growth({"task": task}), tiny)
    finally:
        for publication in published:
            publication.close()
        for actor in actors:
            ray.kill(actor)


def small_task(env: PruningEnv, folder: Path) -> TaskConfig:
    """The same task on few images, of which the reward split has as many."""
    splits = env.recognizer.splits
    count = 4 * len(splits.reward.labels)
    parts = {"train": (splits.train, count), "test": (splits.test, 10)}
    arrays = {}
    for name, (examples, number) in parts.items():
        arrays[f"{name}_images"] = examples.images[:number].permute(0, 2, 3, 1).numpy()
        arrays[f"{name}_labels"] = examples.labels[:number].numpy()
    path = folder / "small.npz"
    np.savez(path, **arrays)
    data = {"spec": f"npz:{path}", "held_out": 0.5, "selection_share": 0.5, "validation_images": None}
    return env.task.model_copy(update={"data": env.task.data.model_copy(update=data)})


def private_bytes() -> int:
    """Memory of this process that it shares with no other."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = (line.split() for line in SMAPS.read_text().splitlines())
    return sum(int(line[1]) for line in lines if line[0] in ("Private_Clean:", "Private_Dirty:")) * 1024


if __name__ == "__main__":
    start_ray()
    with tempfile.TemporaryDirectory() as folder_:
        print(measure(load_task(sys.argv[1], sys.argv[2:]), Path(folder_)))
