"""Reading a run directory."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agents.report.palette import Style, assign
from agents.results import Result
from envs.objectives import AnyObjective, Objective
from recognizers.errors import FileError, first_fault
from recognizers.files import read_json, read_text


class Summary(BaseModel):
    """``summary.json``. Keys that reports do not need are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    command: str
    task: str
    results: list[Result] = Field(min_length=1)
    best: str
    total_seconds: float
    created: datetime


@dataclass(frozen=True)
class History:
    """Lines of numbers, any of which may be absent."""

    rows: tuple[dict[str, float], ...] = ()

    def series(self, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
        """The two columns, where a line has finite values of both."""
        pairs = [(row[x], row[y]) for row in self.rows if x in row and y in row]
        finite = np.array([pair for pair in pairs if all(map(math.isfinite, pair))], dtype=float).reshape(-1, 2)
        return finite[:, 0], finite[:, 1]

    def shows(self, x: str, *names: str) -> bool:
        """Whether there is a point to draw in any of the named columns."""
        return any(len(self.series(x, name)[0]) for name in names)


@dataclass(frozen=True)
class Entry:
    """A policy's result, as reports show it.

    Attributes:
        label: name of the policy, with the seed where the name occurs more than once.
        result: what it reached.
        score: worth of its mask on the reward split; None where it does not meet the objective.
        style: of its lines and bars.
        controller: whether this is the R2D2 controller rather than a baseline policy.
    """

    label: str
    result: Result
    score: float | None
    style: Style
    controller: bool


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        directory: where it is.
        summary: what was run.
        objective: of all results.
        entries: the policies, best score first.
        configuration: text of ``config.yaml``.
        learning: of the controller, per training iteration.
        training: of the recognizer, per epoch.
        finetuning: of the final network, per epoch.
    """

    directory: Path
    summary: Summary
    objective: Objective
    entries: tuple[Entry, ...]
    configuration: str
    learning: History
    training: History
    finetuning: History

    @property
    def controller(self) -> Entry | None:
        """The (best) R2D2 controller, or the only policy there is; None where it did not take part."""
        first = next((entry for entry in self.entries if entry.controller), None)
        return first or (self.entries[0] if len(self.entries) == 1 else None)

    @property
    def baseline(self) -> Result:
        """Any result, for the accuracies of the complete network."""
        return self.entries[0].result


def is_controller(policy: str) -> bool:
    """Whether a policy's name is that of the R2D2 controller or of a variant of it."""
    return policy.lower().startswith("r2d2")


def read_run(directory: Path) -> Run:
    """Read a run directory.

    Raises:
        FileError: a file is missing or malformed.
    """
    path = directory / "summary.json"
    summary = validated(TypeAdapter(Summary), read_json(path), path)
    for result in summary.results:
        _check(result, summary, path)
    if summary.best not in {result.policy for result in summary.results}:
        raise FileError(f"{path}: best is {summary.best!r}, which has no result")
    objective: Objective = validated(TypeAdapter(AnyObjective), summary.results[0].objective, path)
    return Run(
        directory=directory,
        summary=summary,
        objective=objective,
        entries=_entries(summary.results, objective),
        configuration=read_text(directory / "config.yaml"),
        learning=read_history(directory / "learning.jsonl"),
        training=read_history(directory / "training.jsonl"),
        finetuning=read_history(directory / "finetuning.jsonl"),
    )


def read_history(path: Path) -> History:
    """Read a JSON-lines file of numbers; one that does not exist is empty, and so is a last line that was cut off.

    Raises:
        FileError: a line is not an object of numbers.
    """
    if not path.exists():
        return History()
    lines = read_text(path).splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise FileError(f"{path}, line {number}: not JSON (corrupt)") from error
        if not isinstance(row, dict):
            raise FileError(f"{path}, line {number}: not a JSON object")
        rows.append({key: _number(value, key, path, number) for key, value in row.items() if value is not None})
    return History(tuple(rows))


def _number(value: Any, key: str, path: Path, line: int) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    raise FileError(f"{path}, line {line}: {key} is {value!r}, not a number")


def validated(adapter: TypeAdapter[Any], value: Any, path: Path) -> Any:
    """A value that was read from a file, as its type.

    Raises:
        FileError: it is none of that type.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise FileError(f"{path}: {first_fault(error)}") from error


def _check(result: Result, summary: Summary, path: Path) -> None:
    if result.task != summary.task:
        raise FileError(f"{path}: the result of {result.policy!r} is of task {result.task!r}, not {summary.task!r}")
    if result.objective != summary.results[0].objective:
        raise FileError(f"{path}: the result of {result.policy!r} has another objective than the others")
    curve = result.curve
    columns = [curve.parameter_reduction, curve.macs_reduction, curve.latency_reduction or curve.accuracy]
    if {len(curve.accuracy)} != set(map(len, columns)) or not curve.accuracy:
        raise FileError(f"{path}: the curve of {result.policy!r} is empty, or its columns have unequal lengths")
    if result.kept_units.keys() != result.units.keys():
        raise FileError(f"{path}: units and kept_units of {result.policy!r} name different layers")


def _entries(results: list[Result], objective: Objective) -> tuple[Entry, ...]:
    labels = _labels(results)
    controller = next(
        (label for label, result in zip(labels, results, strict=True) if is_controller(result.policy)), None
    )
    styles = assign(labels, controller)
    entries = [
        Entry(label, result, _score(result, objective), styles[label], is_controller(result.policy))
        for label, result in zip(labels, results, strict=True)
    ]
    return tuple(sorted(entries, key=lambda entry: -math.inf if entry.score is None else entry.score, reverse=True))


def _labels(results: list[Result]) -> list[str]:
    names = Counter(result.policy for result in results)
    labels: list[str] = []
    for result in results:
        label = result.policy if names[result.policy] == 1 else f"{result.policy} (seed {result.seed})"
        while label in labels:
            label += "'"
        labels.append(label)
    return labels


def _score(result: Result, objective: Objective) -> float | None:
    score = objective.score(result.measurement, result.baseline_validation_accuracy)
    return score if math.isfinite(score) else None
