"""Rows: what is recorded of every run of a benchmark, one JSON line each."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from agents.benchmark.config import BenchmarkConfig, Key
from agents.results import Result
from envs.episodes import Episode
from envs.objectives import AnyObjective, Budget, Objective
from recognizers.errors import ConfigurationError, FileError, first_fault
from recognizers.evaluation import Precision
from recognizers.files import read_json, read_text
from recognizers.settings import validate

_OBJECTIVE: TypeAdapter[Objective] = TypeAdapter(AnyObjective)


class Row(BaseModel):
    """One finished run: a result with the episode that it comes from, or the reason why there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: str = Field(description="name of the task in the benchmark")
    label: str = Field(description="name of the policy in the benchmark")
    seed: int
    result: Result | None = None
    failure: str | None = Field(None, description="why there is no result")
    actions: str | None = Field(None, description="kind of actions that the policy was given")
    chosen: Episode | None = Field(None, description="the episode that the final mask comes from")
    steps: int | None = Field(None, description="actions of it that lead to the final mask")
    device: str | None = Field(None, description="GPU or processor that it ran on")
    precision: Precision | None = Field(None, description="that rewards were computed in; None in old files")
    own: Episode | None = Field(None, description="the policy's own episode, where the final mask is not from it")

    @model_validator(mode="before")
    @classmethod
    def _task_of_result(cls, content: Any) -> Any:
        """Rows of benchmarks with a single task named it in the result alone."""
        if isinstance(content, dict) and "task" not in content and isinstance(content.get("result"), dict):
            return {"task": content["result"].get("task"), **content}
        return content

    @model_validator(mode="after")
    def _one_outcome(self) -> "Row":
        if (self.result is None) == (self.failure is None):
            raise ValueError("a row holds either a result or a failure")
        return self

    @property
    def key(self) -> Key:
        """What names the run."""
        return Key(self.task, self.label, self.seed)


def read_rows(path: Path) -> list[Row]:
    """The last row of every run of a results file; a last line that a kill cut off is dropped.

    Raises:
        FileError: another line is corrupt.
    """
    if not path.exists():
        return []
    rows: dict[Key, Row] = {}
    for number, line in enumerate(read_text(path).split("\n")[:-1], start=1):
        try:
            row = Row.model_validate_json(line)
        except ValidationError as error:
            raise FileError(f"{path}, line {number} is no result: {first_fault(error)}") from error
        rows[row.key] = row  # a run that failed and was tried again has several
    return list(rows.values())


def results(rows: Iterable[Row]) -> dict[Key, Result]:
    """The results among rows, by run."""
    return {row.key: row.result for row in rows if row.result is not None}


def objective_of(result: Result) -> Objective:
    """The objective that a result was reached under."""
    return _OBJECTIVE.validate_python(result.objective)


def score(result: Result) -> float:
    """Worth of a run, the higher the better, so that tasks can be averaged.

    Under a tolerance: the reduction reached, which holds the tolerance on the reward and the selection split. Under a
    budget: the share of the baseline's test accuracy that is left (after fine-tuning, where the run has one). Both lie
    between 0 and about 1. Other objectives: their own score on the reward split.
    """
    objective = objective_of(result)
    if isinstance(objective, Budget):
        return result.final_test_accuracy / max(result.baseline_test_accuracy, 1e-12)
    worth = objective.score(result.measurement, result.baseline_validation_accuracy)
    return worth if math.isfinite(worth) else 0.0


def read_settings(path: Path) -> BenchmarkConfig:
    """The settings that were recorded beside rows.

    Raises:
        FileError: there are none.
        ConfigurationError: they are not those of this zeroout.
    """
    return validate(
        BenchmarkConfig, read_json(path), f"{path} (from another zeroout? --resume without it writes it anew)"
    )


def refuse_other_settings(config: BenchmarkConfig, rows: Mapping[Key, Row], path: Path) -> None:
    """Refuse to go on under other settings than those that the finished rows were made with.

    Args:
        config: to go on with; it may have other tasks, policies and seeds beside those of the rows.
        rows: finished.
        path: of the settings that were recorded beside them.

    Raises:
        ConfigurationError: a task or a policy of a finished row is another one now.
    """
    if not path.is_file() or not rows:
        return
    before = read_settings(path)
    for kind in ("tasks", "policies"):
        old, new = ({part.name: part for part in getattr(given, kind)} for given in (before, config))
        used = {key.task if kind == "tasks" else key.label for key in rows}
        for name in sorted(used & old.keys() & new.keys()):
            if old[name] != new[name]:
                raise ConfigurationError(
                    f"{name} has other settings now than in {path}, and there are finished runs of it: give it another "
                    "label, or choose another --out"
                )
