"""Settings of a benchmark: which policies run on which tasks, with which seeds."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs.tasks import TaskConfig, load_task
from recognizers.settings import find, read_yaml, validate

TRAIN = "r2d2"
"""Name of the policy that trains a controller."""


class TaskEntry(BaseModel):
    """One task of a benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: str = Field(description="name of a shipped task, or path of a YAML file")
    label: str | None = Field(None, description="name in tables; default: the task's")
    overrides: tuple[str, ...] = Field((), description="dotted key=value settings of the task")

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.label or self.task


class Training(BaseModel):
    """The training of a controller within a benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    policy: str = Field(description="label of the entry that trains it")
    task: str = Field(description="label of the task that it is trained on")


class Entry(BaseModel):
    """One policy of a benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    policy: str = Field(
        description=f"name of a policy, or path/to/file.py:Class, or module:Class; {TRAIN} trains a controller first"
    )
    label: str | None = Field(None, description="name in tables; default: the policy's")
    line: str | None = Field(
        None, description="name of the line in the picture that joins its entries; default: one of its own"
    )
    controller: str = Field("default", description=f"controller settings, for {TRAIN}")
    overrides: tuple[str, ...] = Field((), description="dotted key=value of the controller settings")
    trained_by: Training | None = Field(
        None,
        description=f"for {TRAIN}: train nothing, act with the controller that an earlier entry has trained on an "
        "earlier task (of other actions: with network.action_embedding=false)",
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the policy's own")
    tasks: tuple[str, ...] | None = Field(None, description="names of the tasks that it runs on; default: all")
    task_overrides: tuple[str, ...] = Field(
        (),
        description="dotted key=value settings of the tasks for this entry alone; entries that differ in recognizer or "
        "data have base networks of their own",
    )
    finetune: bool = Field(False, description="fine-tune the final network as the task says")
    equal_evaluations_to: str | None = Field(
        None, description="label of an earlier entry; this search spends its evaluations, run by run, as steps"
    )

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.label or self.policy

    @property
    def trains(self) -> bool:
        """Whether it trains a controller."""
        return self.policy == TRAIN and self.trained_by is None

    @property
    def joined(self) -> str:
        """Name of its line in the picture."""
        return self.line or self.name

    def runs_on(self, task: TaskEntry) -> bool:
        """Whether it takes part in a task."""
        return self.tasks is None or task.name in self.tasks


class Key(NamedTuple):
    """What names a run within its benchmark."""

    task: str
    label: str
    seed: int

    def __str__(self) -> str:
        return f"{self.label} on {self.task}, seed {self.seed}"


class BenchmarkConfig(BaseModel):
    """A benchmark: tasks x policies x seeds.

    Each seed divides the data anew and trains a recognizer of its own, which all policies share. Overrides that all
    tasks have in common may stand beside them, under ``overrides``; those of each task come after them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    tasks: tuple[TaskEntry, ...] = Field(min_length=1, description="in this order")
    seeds: tuple[int, ...] = Field(
        min_length=1, description="seeds; all policies see the same recognizer under the same seed"
    )
    policies: tuple[Entry, ...] = Field(
        min_length=1, description="in this order; the first is compared with all others"
    )
    time_limit: float = Field(6 * 3600, gt=0, description="seconds that a run may take, fine-tuning included")

    @model_validator(mode="before")
    @classmethod
    def _common_overrides(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "overrides" not in content:
            return content
        common, tasks = content["overrides"], content.get("tasks")
        if not isinstance(common, list | tuple) or not isinstance(tasks, list | tuple):
            raise ValueError("overrides is a list of dotted key=value settings, beside a list of tasks")
        rest = {key: value for key, value in content.items() if key != "overrides"}
        merged = [
            {**task, "overrides": [*common, *task.get("overrides", ())]} if isinstance(task, dict) else task
            for task in tasks
        ]
        return {**rest, "tasks": merged}

    @model_validator(mode="after")
    def _names(self) -> "BenchmarkConfig":
        for kind, names in (
            ("tasks", [task.name for task in self.tasks]),
            ("policies", [entry.name for entry in self.policies]),
        ):
            files: dict[str, str] = {}
            for name in names:
                if name in files.values():
                    raise ValueError(f"two {kind} are called {name!r}: give one a label")
                if slug(name) in files:
                    raise ValueError(f"{kind} {name!r} and {files[slug(name)]!r} would share a directory: rename one")
                files[slug(name)] = name
        return self

    @model_validator(mode="after")
    def _references(self) -> "BenchmarkConfig":
        tasks = [task.name for task in self.tasks]
        earlier: dict[str, Entry] = {}
        for entry in self.policies:
            if unknown := set(entry.tasks or ()) - set(tasks):
                raise ValueError(f"{entry.name}: no task is called {min(unknown)!r}; there are {', '.join(tasks)}")
            if entry.trained_by is not None:
                self._check_training(entry, entry.trained_by, earlier.get(entry.trained_by.policy), tasks)
            if entry.equal_evaluations_to is not None:
                followed = earlier.get(entry.equal_evaluations_to)
                if followed is None:
                    raise ValueError(f"{entry.name}: equal_evaluations_to must name an earlier policy")
                if any(entry.runs_on(task) and not followed.runs_on(task) for task in self.tasks):
                    raise ValueError(
                        f"{entry.name}: {followed.name}, whose evaluations it spends, does not run on all its tasks"
                    )
            earlier[entry.name] = entry
        return self

    def _check_training(self, entry: Entry, training: Training, trainer: Entry | None, tasks: list[str]) -> None:
        if entry.policy != TRAIN or entry.equal_evaluations_to is not None:
            raise ValueError(f"{entry.name}: trained_by is for {TRAIN} alone, which spends what its controller does")
        if trainer is None or not trainer.trains:
            raise ValueError(f"{entry.name}: trained_by.policy must name an earlier policy that trains a controller")
        if training.task not in tasks or not trainer.runs_on(self.task(training.task)):
            raise ValueError(f"{entry.name}: {trainer.name} does not train on a task called {training.task!r}")
        own = [number for number, task in enumerate(self.tasks) if entry.runs_on(task)]
        if min(own) <= tasks.index(training.task):
            raise ValueError(f"{entry.name}: it can only act on tasks that come after {training.task}: give it `tasks`")

    def with_overrides(self, overrides: Sequence[str]) -> "BenchmarkConfig":
        """The same with further settings of all tasks, e.g. where the data lie on this machine."""
        tasks = [task.model_copy(update={"overrides": (*task.overrides, *overrides)}) for task in self.tasks]
        return self.model_copy(update={"tasks": tuple(tasks)})

    def task(self, name: str) -> TaskEntry:
        """The task of that name."""
        return next(task for task in self.tasks if task.name == name)

    def entry(self, label: str) -> Entry:
        """The policy of that label."""
        return next(entry for entry in self.policies if entry.name == label)

    def entries(self, task: TaskEntry) -> list[Entry]:
        """The policies that take part in a task."""
        return [entry for entry in self.policies if entry.runs_on(task)]

    def runs(self) -> Iterator[Key]:
        """All runs: seed by seed, task by task, so that a benchmark that is cut short has all policies alike."""
        for seed in self.seeds:
            for task in self.tasks:
                for entry in self.entries(task):
                    yield Key(task.name, entry.name, seed)

    def settings(self, key: Key) -> TaskConfig:
        """The task of a run, with its recognizer's training and the division of its data seeded.

        Raises:
            ConfigurationError: no such task, or an override is unusable.
        """
        task, entry = self.task(key.task), self.entry(key.label)
        seeded = (f"recognizer.training.seed={key.seed}", f"data.seed={key.seed}")
        return load_task(task.task, [*task.overrides, *entry.task_overrides, *seeded])


def load_benchmark(name: str, overrides: Sequence[str] = ()) -> BenchmarkConfig:
    """A shipped benchmark by name, or any by the path of its YAML file."""
    return validate(BenchmarkConfig, read_yaml(find("benchmarks", name)), f"benchmark {name}", overrides)


def table_path(directory: Path, key: Key) -> Path:
    """Where a benchmark keeps the latency table of a run; all seeds have the same."""
    return directory / "latency" / slug(key.task) / f"{slug(key.label)}.json"


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "-"
