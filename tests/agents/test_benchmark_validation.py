"""Benchmarks are checked by replay: what was tampered with is found, and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.benchmark import load_benchmark
from agents.benchmark.engine import run_benchmark
from agents.benchmark.validation import find_weights
from agents.cli import main
from agents.workbench import with_weights
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig
from recognizers.device import processor_name
from recognizers.files import read_tensors, write_json, write_tensors, write_text
from recognizers.masks import weights_sha256

CONFIG = """
tasks:
  - task: digits/convnet
    overrides:
      - "recognizer.arguments={{widths: [6, 8, 8]}}"
      - recovery.images=64
      - actions.per_layer=4
      - objective.drop=0.1
      - recognizer.weights={weights}
  - task: digits/convnet
    label: path
    overrides:
      - "recognizer.arguments={{widths: [6, 8, 8]}}"
      - "recovery={{kind: finetune, steps: 1}}"
      - actions.per_layer=4
      - "objective={{kind: budget, macs: 0.6}}"
      - recognizer.weights={weights}
seeds: [0]
policies:
  - {{policy: random}}
  - {{policy: "search:random", settings: {{evaluations: 12}}}}
"""


@pytest.fixture(scope="module")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished benchmark."""
    work = tmp_path_factory.mktemp("benchmark")
    write_text(work / "small.yaml", CONFIG.format(weights=weights))
    config = load_benchmark(str(work / "small.yaml"))
    rows = list(run_benchmark(config, work / "out", []))
    assert all(row.result for row in rows)
    write_text(work / "out" / "results.jsonl", "".join(row.model_dump_json() + "\n" for row in rows))
    write_json(work / "out" / "config.json", config.model_dump())
    return work / "out"


@pytest.fixture
def copy(finished: Path, home: Path) -> Path:
    """Results and settings alone, as they are handed on."""
    Path("copy").mkdir()
    for name in ("results.jsonl", "config.json"):
        shutil.copy(finished / name, "copy")
    return Path("copy")


def tamper(directory: Path, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change one row."""
    lines = (directory / "results.jsonl").read_text().splitlines()
    row = json.loads(lines[number])
    change(row)
    lines[number] = json.dumps(row)
    write_text(directory / "results.jsonl", "\n".join(lines) + "\n")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["validate", *arguments, "--json"]) == 2
    return capsys.readouterr().err


def test_a_benchmark_is_valid_as_it_was_written(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (finished, finished / "results.jsonl"):
        assert main(["validate", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"command": "validate", "runs": 4, "failed": 0}


def test_results_of_others_need_their_weights(finished: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(capsys, str(copy))
    assert "random on digits/convnet, seed 0: needs the base weights with SHA-256" in error and "--weights" in error
    assert main(["validate", str(copy), "--weights", str(finished / "bases"), "--limit", "2", "--json"]) == 0


def test_weights_of_early_pytorch_are_found(finished: Path, task: TaskConfig, home: Path) -> None:
    tensors, metadata = read_tensors(next((finished / "bases").rglob("*.safetensors")))
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert counters
    write_tensors("early.safetensors", {name: tensors[name] for name in tensors.keys() - counters}, metadata)
    write_tensors("late.safetensors", {**tensors, **{name: torch.tensor(7) for name in counters}}, metadata)
    found = find_weights([Path("early.safetensors"), Path("late.safetensors")])
    for path in ("early.safetensors", "late.safetensors"):
        env = PruningEnv(with_weights(task, Path(path)))
        assert found[env.recognizer.base_sha256] == found[weights_sha256(read_tensors(path)[0])] == Path(path)
    assert len(found) == 3  # the early one by two names


def rewards(row: dict[str, Any]) -> None:
    row["chosen"]["rewards"][0] += 0.01


def accuracies(row: dict[str, Any]) -> None:
    row["chosen"]["accuracies"][-1] += 0.01


def actions(row: dict[str, Any]) -> None:
    row["chosen"]["actions"][0], row["chosen"]["actions"][1] = row["chosen"]["actions"][1], row["chosen"]["actions"][0]


def own(row: dict[str, Any]) -> None:
    row["own"] = row["chosen"] | {"rewards": [reward + 0.01 for reward in row["chosen"]["rewards"]]}


def steps(row: dict[str, Any]) -> None:
    row["steps"] = 0


def too_many(row: dict[str, Any]) -> None:
    row["steps"] = 1000


def forgotten(row: dict[str, Any]) -> None:
    row["chosen"] = None


def objective(row: dict[str, Any]) -> None:
    row["result"]["objective"] = {"kind": "budget", "macs": 0.9, "parameters": None}


def stranger(row: dict[str, Any]) -> None:
    row["seed"] = 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewards, "recorded rewards"),
        (accuracies, "recorded accuracies"),
        (actions, "recorded"),
        (own, "recorded rewards"),
        (steps, "recorded validation_accuracy"),
        (too_many, "after 1000 actions"),
        (forgotten, "records no actions"),
        (objective, "recorded objective"),
        (stranger, "no such run"),
        *(
            (lambda row, name=name: row["result"].update({name: row["result"][name] + 0.01}), f"recorded {name}")
            for name in (
                "test_accuracy",
                "selection_accuracy",
                "macs_reduction",
                "episode_return",
                "baseline_test_accuracy",
            )
        ),
        (lambda row: row["result"]["kept_units"].update({"features.conv1": 99}), "kept_units"),
    ],
)
def test_what_was_tampered_with_is_found_and_named(
    finished: Path,
    copy: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tamper(copy, 2, change)
    error = refusal(capsys, str(copy), "--weights", str(finished / "bases"))
    assert message in error and "random on path, seed" in error
    assert "it ran on" not in error


def test_rows_from_another_processor_are_checked_and_say_so_where_they_differ(
    finished: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def elsewhere(row: dict[str, Any]) -> None:
        assert row["device"] == processor_name()
        row["device"] = "Xeon"

    tamper(copy, 2, elsewhere)
    assert main(["validate", str(copy), "--weights", str(finished / "bases"), "--json"]) == 0
    tamper(copy, 2, rewards)
    error = refusal(capsys, str(copy), "--weights", str(finished / "bases"))
    assert f"it ran on Xeon; this is {processor_name()}" in error


def test_failed_runs_hold_nothing_to_check(finished: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"task": "path", "label": "random", "seed": 0, "failure": "died"}
    write_text(copy / "results.jsonl", json.dumps(row) + "\n")
    assert main(["validate", str(copy)]) == 0
    assert "1 failed runs" in capsys.readouterr().out


def test_only_benchmarks_take_weights(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no results.jsonl" in refusal(capsys, ".", "--weights", "a.safetensors")
    assert "no such file" in refusal(capsys, "missing.jsonl")
