"""Benchmarks: policies x seeds on a task, one recorded result per finished run, then a table with intervals."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy import stats

from agents.controller import load_controller, train_controller
from agents.policy import make_policy, suited
from agents.results import Result
from agents.run_directory import RunDirectory, RunSettings
from agents.running import Run, run_policy
from agents.workbench import finetune_outcome, open_environment, save_outcome, save_plans
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig, load_task
from recognizers.errors import ConfigurationError, FileError
from recognizers.files import read_text
from recognizers.recognizer import Recognizer
from recognizers.settings import find, override, read_yaml, validate

TRAIN = "r2d2"
"""Name of the entry that trains a controller."""


class Entry(BaseModel):
    """One policy of a benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    policy: str = Field(description=f"name of a policy; {TRAIN} trains a controller first")
    label: str | None = Field(None, description="name in the table; default: the policy's")
    controller: str = Field("default", description=f"controller settings, for {TRAIN}")
    overrides: tuple[str, ...] = Field((), description="dotted key=value of the controller settings")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the policy's own")
    task_overrides: tuple[str, ...] = Field(
        (), description="dotted key=value settings of the task for this entry alone: objective, recovery, actions"
    )
    finetune: bool = Field(False, description="fine-tune the final network as the task says")
    equal_steps_to: str | None = Field(
        None, description="label of an earlier entry whose environment steps this search spends, seed by seed"
    )

    @property
    def name(self) -> str:
        """Name in the table."""
        return self.label or self.policy


class BenchmarkConfig(BaseModel):
    """A benchmark. Each seed trains a recognizer of its own on a division of the data of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: str = Field(description="name of the task")
    overrides: tuple[str, ...] = Field((), description="dotted key=value settings of the task")
    seeds: tuple[int, ...] = Field(description="seeds; all policies see the same recognizer under the same seed")
    policies: tuple[Entry, ...] = Field(description="in this order")

    @model_validator(mode="after")
    def _labels(self) -> "BenchmarkConfig":
        seen: set[str] = set()
        for entry in self.policies:
            if entry.name in seen:
                raise ValueError(f"two policies are called {entry.name!r}: give one a label")
            if entry.equal_steps_to is not None and entry.equal_steps_to not in seen:
                raise ValueError(f"{entry.name}: equal_steps_to must name an earlier policy")
            seen.add(entry.name)
        return self

    def task_of_seed(self, seed: int, entry: Entry | None = None) -> TaskConfig:
        """The task, or that of an entry, with its recognizer's training and the division of its data seeded."""
        seeded = (f"recognizer.training.seed={seed}", f"data.seed={seed}")
        return load_task(self.task, [*self.overrides, *(entry.task_overrides if entry else ()), *seeded])


class Row(BaseModel):
    """One finished run."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str
    seed: int
    result: Result


def load_benchmark(name: str, overrides: Sequence[str] = ()) -> BenchmarkConfig:
    """A shipped benchmark by name, or any by the path of its YAML file."""
    return validate(BenchmarkConfig, override(read_yaml(find("benchmarks", name)), overrides), f"benchmark {name}")


def read_rows(path: Path) -> list[Row]:
    """The finished runs of a results file; a last line that a kill cut off is dropped.

    Raises:
        FileError: another line is corrupt.
    """
    if not path.exists():
        return []
    lines = read_text(path).split("\n")[:-1]
    try:
        return [Row.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise FileError(f"{path} holds a line that is no result: {error.errors()[0]['msg']}") from error


def run_benchmark(
    config: BenchmarkConfig, directory: Path, finished: Sequence[Row], *, progress: bool
) -> Iterator[Row]:
    """Run what is not finished yet, seed by seed; yields each row as soon as it is there.

    Every run leaves its run directory under ``directory``.
    """
    rows = {(row.label, row.seed): row for row in finished}
    for seed in config.seeds:
        todo = [entry for entry in config.policies if (entry.name, seed) not in rows]
        if not todo:
            continue
        shared = RunDirectory.create(directory / f"seed-{seed}", "benchmark", resume=True)
        env = open_environment(config.task_of_seed(seed), shared, progress=progress)
        for entry in todo:
            run = RunDirectory.create(shared.path / entry.name.replace(":", "-"), "benchmark", resume=True)
            if entry.policy == TRAIN:
                result = _train(entry, run, env, seed, progress=progress).result
            else:
                settings = dict(entry.settings)
                if entry.equal_steps_to is not None:
                    settings["environment_steps"] = rows[entry.equal_steps_to, seed].result.environment_steps
                policy = make_policy(entry.policy, seed=seed, **settings)
                own = _environment(env, suited(config.task_of_seed(seed, entry), policy))
                done = run_policy(own, policy, entry.name, seed=seed)
                run.add_episodes(done.episodes[:1])
                save_outcome(run, own, done.result)
                save_plans(run, policy)
                result = done.result
                if entry.finetune:
                    finetuned = finetune_outcome(run, own, progress=progress, resume=True)
                    result = result.model_copy(update={"finetuned": finetuned})
            row = Row(label=entry.name, seed=seed, result=result)
            rows[entry.name, seed] = row
            yield row


def _environment(env: PruningEnv, task: TaskConfig) -> PruningEnv:
    """An environment of another task on the same data and base weights.

    Raises:
        ConfigurationError: the task is one of another recognizer.
    """
    for part in ("recognizer", "data"):
        same = {"weights", "finetuning", "cache_megabytes"}
        before, after = (getattr(given, part).model_dump(exclude=same) for given in (env.task, task))
        if before != after:
            raise ConfigurationError(f"task_overrides of a benchmark entry must leave {part} as it is")
    task = task.model_copy(
        update={"recognizer": task.recognizer.model_copy(update={"weights": env.task.recognizer.weights})}
    )
    recognizer = Recognizer(
        env.recognizer.baseline, recovery=task.recovery, cache_megabytes=task.recognizer.cache_megabytes
    )
    return PruningEnv(task, recognizer=recognizer)


def _train(entry: Entry, run: RunDirectory, env: PruningEnv, seed: int, *, progress: bool) -> Run:
    controller = load_controller(entry.controller, entry.overrides)
    resume = (run.checkpoints / "progress.json").is_file()
    if not resume:
        for path in (run.episodes, run.learning):  # left by a run that was killed before its first checkpoint
            path.unlink(missing_ok=True)
    run.write_settings(
        RunSettings(
            command="benchmark", task=env.task, seed=seed, policy=entry.name, controller=controller.model_dump()
        )
    )
    return train_controller(controller, run, env, seed=seed, resume=resume, progress=progress, name=entry.name)


COLUMNS = {
    "parameter_reduction": "parameters removed %",
    "macs_reduction": "MACs removed %",
    "validation_change": "validation change (points)",
    "selection_change": "selection change (points)",
    "test_change": "test change (points)",
    "test_accuracy": "test accuracy %",
    "finetuned_test_accuracy": "test accuracy, fine-tuned %",
    "episode_return": "return of the own episode",
    "environment_steps": "environment steps",
    "evaluations": "evaluations",
    "seconds": "seconds",
}


DIGITS = {
    "validation_change": 2,
    "selection_change": 2,
    "test_change": 2,
    "test_accuracy": 2,
    "finetuned_test_accuracy": 2,
    "episode_return": 3,
    "environment_steps": 0,
    "evaluations": 0,
}
"""Decimals of a column, where not 1."""
COMPARED = ("parameter_reduction", "macs_reduction", "test_change", "episode_return")
"""Columns whose differences between policies are shown."""


def figures(result: Result) -> dict[str, float]:
    """What a table shows of a run, in the units of :data:`COLUMNS`."""
    return {
        "parameter_reduction": 100 * result.parameter_reduction,
        "macs_reduction": 100 * result.macs_reduction,
        "validation_change": 100 * (result.validation_accuracy - result.baseline_validation_accuracy),
        "selection_change": 100 * (result.selection_accuracy - result.baseline_selection_accuracy),
        "test_change": 100 * (result.test_accuracy - result.baseline_test_accuracy),
        "test_accuracy": 100 * result.test_accuracy,
        "finetuned_test_accuracy": 100 * result.finetuned.test_accuracy if result.finetuned else float("nan"),
        "episode_return": result.episode_return,
        "environment_steps": result.environment_steps,
        "evaluations": result.evaluations,
        "seconds": result.seconds["policy"],
    }


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of independent runs, and half the width of Student's t interval around it (nan for a single run)."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return float(sample.mean()), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean()), float(half)


def markdown_table(config: BenchmarkConfig, rows: Sequence[Row]) -> str:
    """Mean and 95 % interval over seeds of every policy, and of its seed-by-seed difference from the first one."""
    of_policy = {
        entry.name: {row.seed: figures(row.result) for row in rows if row.label == entry.name}
        for entry in config.policies
    }
    lines = [*_header("policy", COLUMNS.values())]
    for name, of_seed in of_policy.items():
        if of_seed:
            cells = [_cell(column, [figure[column] for figure in of_seed.values()]) for column in COLUMNS]
            lines.append(f"| {name} | {len(of_seed)} | " + " | ".join(cells) + " |")
    (first, of_first), *others = of_policy.items()
    lines += ["", *_header(f"{first} minus", [COLUMNS[column] for column in COMPARED])]
    for name, of_seed in others:
        seeds = sorted(of_first.keys() & of_seed.keys())
        if seeds:
            pairs = {column: [of_first[seed][column] - of_seed[seed][column] for seed in seeds] for column in COMPARED}
            cells = [_cell(column, differences) for column, differences in pairs.items()]
            lines.append(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _header(first: str, columns: Iterable[str]) -> list[str]:
    titles = [first, "runs", *columns]
    return ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]


def _cell(column: str, values: Sequence[float]) -> str:
    mean, half = interval(values)
    digits = DIGITS.get(column, 1)
    if np.isnan(mean):
        return "-"
    return f"{mean:,.{digits}f}" + ("" if np.isnan(half) else f" ± {half:,.{digits}f}")
