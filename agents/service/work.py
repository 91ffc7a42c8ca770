"""One pruning, in whatever process: it leaves its files and ends in an outcome, come what may."""

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.limits import TimeLimitExceeded, attempt
from agents.policy import Policy, make_policy, suited
from agents.report import write_report
from agents.results import Result
from agents.run_directory import RunDirectory, RunSettings
from agents.running import run_policy
from agents.service.requests import PruningRequest, task_of
from agents.workbench import finetune_outcome, open_environment, save_outcome, save_plans
from envs.pruning import PruningEnv
from recognizers.errors import ZeroOutError, in_one_line
from recognizers.files import append_text, read_text, write_json

EVENTS = "events.jsonl"
RESULT = "result.json"
PULSE = 1.0
"""Seconds between two looks at how many evaluations a policy has spent."""


@dataclass(frozen=True)
class Work:
    """What a pruning needs to know, in plain values that any process can read.

    Attributes:
        id: of the pruning.
        request: what is asked for.
        directory: to be written.
        weights: uploaded weights.
        controller: directory of the controller that the request names.
        seconds: that it may take.
        home: working directory, to which relative paths belong.
    """

    id: str
    request: PruningRequest
    directory: Path
    weights: Path | None
    controller: Path | None
    seconds: float
    home: Path


@dataclass(frozen=True)
class Outcome:
    """A result as JSON, or why there is none."""

    result: str | None = None
    failure: str | None = None


def perform(work: Work) -> Outcome:
    """Prune. The traceback of a failure is in ``failure.txt`` of the directory, for the operator."""
    os.chdir(work.home)
    shutil.rmtree(work.directory, ignore_errors=True)  # left by an attempt that was cut short
    return attempt(
        lambda: Outcome(result=_prune(work)),
        work.seconds,
        work.directory / "failure.txt",
        lambda error: Outcome(failure=_reason(work, error)),
    )


def found(directory: Path) -> str | None:
    """The result of a pruning that was finished, as JSON; None where there is none."""
    path = directory / RESULT
    return read_text(path) if path.is_file() else None


def add_event(directory: Path, kind: str, **content: Any) -> None:
    """Append to what clients see of a pruning's progress."""
    append_text(directory / EVENTS, json.dumps({"event": kind, "time": round(time.time(), 3), **content}) + "\n")


def _prune(work: Work) -> str:
    add_event(work.directory, "begun")
    request, name = work.request, work.request.selector
    policy = _policy(work)
    task = task_of(request, work.weights)
    if request.actions is None or "kind" not in request.actions:
        task = suited(task, policy)
    run = RunDirectory(work.directory)
    env = open_environment(task, run, progress=False)
    # The report shows these settings: the weights are named as they lie in the directory.
    recognizer = env.task.recognizer.model_copy(update={"weights": run.recognizer.name})
    shown = env.task.model_copy(update={"recognizer": recognizer})
    run.write_settings(RunSettings(command="prune", task=shown, seed=request.seed, policy=name))
    add_event(
        run.path,
        "opened",
        baseline_accuracy=env.baseline_accuracy,
        units={layer.name: len(layer) for layer in env.recognizer.table.layers},
    )
    started = time.perf_counter()
    with _pulse(run.path, env):
        done = run_policy(env, policy, name, seed=request.seed, on_step=lambda info: _step(run.path, info))
    run.add_episodes(done.episodes)
    result = done.result
    save_outcome(run, env, result)
    save_plans(run, policy)
    if request.finetune:
        add_event(run.path, "finetuning")
        result = result.model_copy(update={"finetuned": finetune_outcome(run, env, progress=False)})
    _report(run, result, time.perf_counter() - started)
    write_json(run.path / RESULT, result.model_dump(mode="json"))  # last: whoever finds it finds the rest
    return result.model_dump_json()


def _policy(work: Work) -> Policy:
    request = work.request
    if work.controller is not None:
        return make_policy(f"r2d2:{work.controller}", seed=request.seed, **request.settings)
    assert request.policy is not None
    return make_policy(request.policy, seed=request.seed, **request.settings)


def _step(directory: Path, info: dict[str, Any]) -> None:
    """Show a step."""
    shown = ("accuracy", "parameter_reduction", "macs_reduction", "kept_units")
    add_event(directory, "step", **{key: info[key] for key in shown})


@contextmanager
def _pulse(directory: Path, env: PruningEnv) -> Iterator[None]:
    """Show within the context how many evaluations are spent: a search may take hours before its first own step."""
    over = threading.Event()

    def beat() -> None:
        shown = env.evaluations
        while not over.wait(PULSE):
            if env.evaluations != shown:
                shown = env.evaluations
                add_event(directory, "evaluations", evaluations=shown)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _report(run: RunDirectory, result: Result, seconds: float) -> None:
    figures = result.model_dump(mode="json")
    run.write_summary("prune", {**figures, "results": [figures], "best": result.policy, "total_seconds": seconds})
    os.chdir(run.path.parent)  # the page names its directory relative to this one: no path of the server
    write_report(run.path)


def _reason(work: Work, error: BaseException) -> str:
    """What went wrong, in one line that tells nothing of the server."""
    if isinstance(error, TimeLimitExceeded):
        return f"not finished within {work.seconds:g} seconds"
    if isinstance(error, ZeroOutError):
        return without_paths(f"{type(error).__name__}: {in_one_line(error)}")
    return f"internal error ({type(error).__name__}); the operator finds more under the pruning's identifier"


def without_paths(text: str) -> str:
    """The text with absolute paths cut down to their last part."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/'\",;:()]+/)*([^\s/'\",;:()]*)", r"\1", text)
