"""Searching for the controller's settings with Ray Tune: every trial is a training of its own."""

import contextlib
import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import tune

from agents.cluster import start_ray
from agents.r2d2.settings import R2D2Settings
from agents.run_directory import RunDirectory, RunSettings
from agents.workbench import open_environment
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig
from recognizers.errors import ConfigurationError
from recognizers.files import write_json
from recognizers.settings import read_yaml, validate, write_yaml

SCORE = "score"
"""What trials are compared by: the best return of a greedy evaluation so far, under the task's objective."""


class Values(BaseModel):
    """Where a setting is drawn from; exactly one of these."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="one of these, by chance")
    grid: tuple[Any, ...] | None = Field(None, min_length=1, description="all of these, each `samples` times")
    uniform: tuple[float, float] | None = Field(None, description="lower and upper bound")
    loguniform: tuple[float, float] | None = Field(None, description="lower and upper bound, both positive")

    @model_validator(mode="after")
    def _one_kind(self) -> "Values":
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of choice, grid, uniform and loguniform")
        for low, high in (bounds for bounds in (self.uniform, self.loguniform) if bounds):
            if not low < high or (self.loguniform and low <= 0):
                raise ValueError(f"bounds must rise, and those of loguniform must be positive; got {low}, {high}")
        return self

    def domain(self) -> Any:
        """As Tune takes it."""
        if self.choice is not None:
            return tune.choice(list(self.choice))
        if self.grid is not None:
            return tune.grid_search(list(self.grid))
        return tune.uniform(*self.uniform) if self.uniform else tune.loguniform(*self.loguniform or ())


class SearchSpace(BaseModel):
    """What to search: the content of the file given to ``zeroout train --tune``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    parameters: dict[str, Values] = Field(
        min_length=1, description="dotted settings of the controller, e.g. learning.lr, and their values"
    )
    samples: int = Field(8, ge=1, description="draws (of each point of the grid, where there is one)")
    concurrent: int = Field(1, ge=1, description="trials at a time")


class Trial(BaseModel):
    """One training of the search."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    directory: str = Field(description="run directory of the training")
    parameters: dict[str, Any] = Field(description="values of the searched settings")
    score: float | None = Field(description="best return of a greedy evaluation; none where the training failed")
    environment_steps: int
    evaluations: int
    error: str | None = None


def load_space(path: str | os.PathLike[str]) -> SearchSpace:
    """Read a search space from YAML.

    Raises:
        FileError: no such file.
        ConfigurationError: a key is unknown, or a value unusable.
    """
    return validate(SearchSpace, read_yaml(Path(path)), str(path))


def search(
    controller: R2D2Settings,
    space: SearchSpace,
    run: RunDirectory,
    env: PruningEnv,
    *,
    seed: int,
    address: str | None = None,
) -> list[Trial]:
    """Train with settings drawn from a space. Writes ``tuning.json`` (all trials) and ``best.yaml`` (settings).

    Trials are run directories under ``trials/``; on a cluster all nodes must see them.

    Args:
        controller: the settings that are not searched.
        space: the others.
        run: where.
        env: of the task, with base weights in a file.
        seed: of the draws, and of every training.
        address: of a Ray cluster; this machine by default.

    Returns:
        The trials, best first.

    Raises:
        ConfigurationError: a parameter is no setting of the controller, the trials need more CPUs than there are, or
            all of them failed.
    """
    for name, values in space.parameters.items():
        for value in (values.choice or values.grid or values.uniform or values.loguniform or ())[:1]:
            _changed(controller, {name: value})
    start_ray(address)
    sampling = controller.sampling
    cpus = 1 + sampling.num_env_runners * sampling.cpus_per_env_runner
    if cpus > (there := ray.cluster_resources().get("CPU", 0)):
        raise ConfigurationError(
            f"a trial needs {cpus:g} CPUs, there are {there:g}: set controller.sampling.num_env_runners=0"
        )
    bundles = [{"CPU": 1.0}] + [{"CPU": sampling.cpus_per_env_runner}] * sampling.num_env_runners
    train = functools.partial(
        _train,
        controller=controller.model_dump(mode="json"),
        task=env.task.model_dump(mode="json"),
        trials=str(run.path.absolute() / "trials"),
        seed=seed,
    )
    tuner = tune.Tuner(
        tune.with_resources(train, tune.PlacementGroupFactory(bundles)),
        param_space={name: values.domain() for name, values in space.parameters.items()},
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="max",
            num_samples=space.samples,
            max_concurrent_trials=space.concurrent,
            search_alg=tune.search.BasicVariantGenerator(random_state=np.random.RandomState(seed)),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(run.path.absolute()), verbose=0),
    )
    with contextlib.redirect_stdout(sys.stderr):  # Tune prints where it put its files, and so on
        results = tuner.fit()
    trials = sorted((_trial(result) for result in results), key=_worth, reverse=True)
    write_json(run.path / "tuning.json", [trial.model_dump() for trial in trials])
    if trials[0].score is None:
        raise ConfigurationError(f"no trial came to an evaluation; the first error: {trials[0].error}")
    write_yaml(run.path / "best.yaml", _changed(controller, trials[0].parameters))
    return trials


def _worth(trial: Trial) -> float:
    return -np.inf if trial.score is None else trial.score


def _changed(controller: R2D2Settings, parameters: dict[str, Any]) -> R2D2Settings:
    tree = controller.model_dump(mode="json")
    for name, value in parameters.items():
        section, *keys = (tree, *name.split("."))
        for key in keys[:-1]:
            section = section.setdefault(key, {})
        section[keys[-1]] = value
    return validate(R2D2Settings, tree, "tune")


def _trial(result: Any) -> Trial:
    figures = result.metrics or {}
    return Trial(
        directory=figures.get("directory", ""),
        parameters=dict(result.config or {}),
        score=figures.get(SCORE),
        environment_steps=figures.get("environment_steps", 0),
        evaluations=figures.get("evaluations", 0),
        error=None if result.error is None else str(result.error),
    )


def _train(parameters: dict[str, Any], *, controller: Any, task: Any, trials: str, seed: int) -> None:
    """One trial, in a process of Tune's."""
    # Tune's own package of this function must not carry the training's modules.
    from agents.controller import ControllerTraining  # noqa: PLC0415

    settings = _changed(validate(R2D2Settings, controller, "tune"), parameters)
    run = RunDirectory.create(Path(trials) / tune.get_context().get_trial_id(), "train")
    env = open_environment(validate(TaskConfig, task, "tune"), run, progress=False)
    run.write_settings(
        RunSettings(command="train", task=env.task, seed=seed, policy="r2d2", controller=settings.model_dump())
    )
    best = -np.inf

    def report(record: dict[str, float]) -> None:
        nonlocal best
        best = max(best, record["evaluation_return"])
        figures = {name: int(record[name]) for name in ("environment_steps", "evaluations")}
        tune.report({SCORE: best, "directory": str(run.path), **figures})

    training = ControllerTraining(settings, run, env, seed=seed, progress=False, on_evaluation=report)
    try:
        training.train()
    finally:
        training.stop()
