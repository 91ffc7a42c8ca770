"""Tasks: recognizer + data + units + recovery + objective under one name."""

import os
from collections.abc import Callable, Iterable

from pydantic import BaseModel, ConfigDict, Field

from envs.actions import ActionsConfig
from envs.objectives import AnyObjective, Tolerance
from recognizers.baseline import Baseline
from recognizers.config import DataConfig, RecognizerConfig, build_recognizer
from recognizers.recognizer import Recognizer
from recognizers.recovery import AnyRecovery, BatchNormRecovery
from recognizers.settings import find, read_yaml, shipped, validate
from recognizers.training import EpochRecord


class TaskConfig(BaseModel):
    """A task. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(description="name of the task, e.g. digits/convnet")
    recognizer: RecognizerConfig
    data: DataConfig
    actions: ActionsConfig = Field(default_factory=ActionsConfig)
    recovery: AnyRecovery = Field(default_factory=BatchNormRecovery)
    objective: AnyObjective = Field(default_factory=Tolerance)


def tasks() -> list[str]:
    """Names of the tasks that zeroout ships."""
    return list(shipped("tasks"))


def load_task(name: str | os.PathLike[str], overrides: Iterable[str] = ()) -> TaskConfig:
    """Load a shipped task by name, or any by the path of its YAML file.

    Args:
        name: e.g. ``digits/convnet`` or ``my_task.yaml``.
        overrides: dotted ``key=value`` settings, e.g. ``recovery.kind=none``.

    Raises:
        UnknownNameError: no such task.
        ConfigurationError: a setting is unknown or unusable.
    """
    path = find("tasks", name)
    return validate(TaskConfig, read_yaml(path), str(name), overrides)


def make_recognizer(
    task: TaskConfig,
    *,
    baseline: Baseline | None = None,
    progress: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Recognizer:
    """The recognizer of a task, with trained weights; see :func:`recognizers.config.build_recognizer`."""
    return build_recognizer(
        task.recognizer, task.data, task.recovery, baseline=baseline, progress=progress, on_epoch=on_epoch
    )
