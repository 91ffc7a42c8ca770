"""What a run computes in: chosen once, by the machine that begins it, wherever the run goes on or is checked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.benchmark import load_benchmark
from agents.benchmark import validation as benchmark_validation
from agents.benchmark.engine import run_benchmark
from agents.object_store import pack, unpack
from agents.run_directory import RunDirectory, RunSettings
from agents.workbench import open_environment, task_of
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig, make_recognizer
from recognizers.files import write_text

Machine = Callable[[str], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this a machine without CUDA whose ``auto`` stands for the given precision."""

    def become(precision: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: precision == "bfloat16")
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)

    return become


@pytest.fixture
def left_open(task: TaskConfig) -> TaskConfig:
    """The small task, its precision left to the machine."""
    return task.model_copy(update={"recognizer": task.recognizer.model_copy(update={"precision": "auto"})})


@pytest.mark.filterwarnings("ignore:recognizer.precision=bfloat16 is slower")
@pytest.mark.parametrize(("begun", "later"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_run_keeps_the_precision_it_began_in(
    left_open: TaskConfig, home: Path, machine: Machine, begun: str, later: str
) -> None:
    machine(begun)
    run = RunDirectory.create(home / "run", "prune")
    env = open_environment(left_open, run, progress=False)
    run.write_settings(RunSettings(command="prune", task=env.task, seed=0))
    machine(later)
    assert make_recognizer(left_open).baseline.resolved_precision == later
    for again in (PruningEnv(task_of(run)), open_environment(task_of(run), run, progress=False)):
        assert again.recognizer.baseline.resolved_precision == again.task.recognizer.precision == begun


def test_a_chosen_precision_stays(task: TaskConfig, home: Path, machine: Machine) -> None:
    machine("bfloat16")
    env = open_environment(task, RunDirectory.create(home / "run", "prune"), progress=False)
    assert env.task.recognizer.precision == "float32"


def test_runners_compute_in_the_precision_of_the_driver(left_open: TaskConfig, home: Path, machine: Machine) -> None:
    machine("bfloat16")
    contents = pack(open_environment(left_open, RunDirectory.create(home / "run", "train"), progress=False).recognizer)
    machine("float32")
    with pytest.warns(UserWarning, match="bfloat16 is slower than float32 on this processor"):
        baseline = unpack(contents)
    assert baseline.dtype == torch.bfloat16
    assert baseline.inputs.keys() == contents.inputs.keys()  # taken as they are, not made again in another type


@pytest.mark.filterwarnings("ignore:recognizer.precision=bfloat16 is slower")
@pytest.mark.parametrize(("begun", "later"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_rows_of_a_benchmark_are_checked_in_their_own(
    weights: Path, home: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, begun: str, later: str
) -> None:
    settings = ["recognizer.arguments={widths: [6, 8, 8]}", "recovery.images=64", f"recognizer.weights={weights}"]
    settings += ["recognizer.precision=auto", "actions.per_layer=4"]
    tree = {"tasks": [{"task": "digits/convnet", "overrides": settings}], "policies": [{"policy": "random"}]}
    write_text("small.yaml", json.dumps({**tree, "seeds": [0]}))
    config, out = load_benchmark("small.yaml"), Path("out")
    machine(begun)
    rows = list(run_benchmark(config, out, [], workers=0))
    assert [row.precision for row in rows] == [begun]
    machine(later)
    computed: list[Any] = []
    monkeypatch.setattr(
        benchmark_validation, "_check", lambda env, *_: computed.append(env.recognizer.baseline.resolved_precision)
    )
    places = benchmark_validation.find_weights([out / "bases"])
    old = [row.model_copy(update={"precision": None}) for row in rows]  # where nothing was recorded, as it is here
    list(benchmark_validation.validate_rows(config, [*rows, *old], places, out))
    assert computed == [begun, later]
