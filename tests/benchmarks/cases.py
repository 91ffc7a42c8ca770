"""Cases: task x recovery x precision, and the environment that each of them is measured in."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from agents.cli.arguments import recovery_overrides
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig, load_task
from tests.benchmarks.machine import describe
from tests.benchmarks.tables import Row

TASKS = ("cifar10/vgg16_bn", "cifar10/resnet56", "digits/convnet")
RECOVERIES = ("none", "bn", "finetune(1)")

FLOORS = {
    ("cifar10/vgg16_bn", "none"): 8.0,
    ("cifar10/vgg16_bn", "bn"): 8.0,
    ("cifar10/vgg16_bn", "finetune(1)"): 4.0,
    ("cifar10/resnet56", "none"): 5.0,
    ("cifar10/resnet56", "bn"): 5.0,
    ("cifar10/resnet56", "finetune(1)"): 4.0,
}
"""By task and recovery: how many times faster than the naive loop an episode in the task's own precision must be."""

KEY = ("task", "recovery", "precision")
"""Columns that name a case in every table."""

_SETTINGS = (
    "actions.kind=block",
    # A budget of 10 % of the MACs would end the episode in the right place, but trim its last action and refuse tasks
    # whose actions do not reach that far. This tolerance never ends an episode, not even at an accuracy of 0 after a
    # baseline of 1; the episode stops where its plan ends.
    "objective.kind=tolerance",
    "objective.drop=0.999999999999",
)
_REWARD_IMAGES = "data.held_out=0.1"  # half of it is the reward split: 2,500 of CIFAR-10's 50,000 training images
# With the task's 8 blocks a layer, of 16 filters, ResNet-56 cannot lose 90 % of its MACs.
_OF_TASK = {"cifar10/resnet56": ("actions.per_layer=16",)}


@dataclass(frozen=True)
class Sources:
    """Where a task's images and weights come from.

    Attributes:
        data: for the results: name of the data, or ``random``.
        weights: for the results: name of the file, ``trained``, or ``random``.
        overrides: dotted settings that name both, and the user's own settings, which win.
    """

    data: str
    weights: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        task: name of a shipped task, or path of a YAML file.
        recovery: ``none``, ``bn``, ``finetune`` or ``finetune(K)``.
        precision: of zeroout's reward and recovery passes; the naive loop is float32 throughout.
        sources: images and weights.
        threads: CPU threads; None leaves PyTorch's number, or the task's where it sets one.
    """

    task: str
    recovery: str
    precision: str
    sources: Sources
    threads: int | None = None

    @property
    def key(self) -> Row:
        """Columns that name the case."""
        return {"task": self.task, "recovery": self.recovery, "precision": self.precision}

    @property
    def name(self) -> str:
        """For progress bars and headings."""
        return f"{self.task} {self.recovery} {self.precision}"

    def environment(self) -> PruningEnv:
        """A new environment. What its recognizer may share with others of the task in this process is dropped."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        own = [*recovery_overrides(self.recovery), f"recognizer.precision={self.precision}"]
        env = PruningEnv(load_settings(self.task, [*own, *self.sources.overrides]))
        env.recognizer.forget()
        return env

    def circumstances(self, env: PruningEnv) -> Row:
        """Columns that say on what, and by what, the case was measured."""
        recognizer = env.recognizer
        return {
            "computes_in": str(recognizer.baseline.dtype).removeprefix("torch."),
            "data": self.sources.data,
            "weights": self.sources.weights,
            "images": len(recognizer.splits.reward.labels),
            **describe(),
        }


def slug(name: str) -> str:
    """A name of a task or a recovery as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def precisions(task: str) -> tuple[str, ...]:
    """The precisions to measure a task in: its own, and float32."""
    return tuple(dict.fromkeys((load_task(task).recognizer.precision, "float32")))


def load_settings(task: str, overrides: Iterable[str]) -> TaskConfig:
    """The settings of a task as the benchmark plays it; ``overrides`` come last and win."""
    reward_images = [_REWARD_IMAGES] if load_task(task).data.spec == "cifar10" else []
    shared = [*_SETTINGS, *_OF_TASK.get(task, ()), *reward_images]
    return load_task(task, [*shared, *overrides])
