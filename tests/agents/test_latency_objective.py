"""Pruning for latency as a user does it: make a table, prune, benchmark, validate."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.baselines.pro import share_out
from agents.cli import main
from recognizers.latency_table import read_latency_table, write_latency_table


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    status = main([*arguments, "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    result: dict[str, Any] = json.loads(captured.out)
    return result


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status = main(list(arguments))
    captured = capsys.readouterr()
    assert status == 2 and "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, weights: Path, small_flags: list[str]) -> Path:
    """A table that was measured, badly, but made so that fewer channels are faster."""
    path = tmp_path_factory.mktemp("latency") / "table.json"
    brief = ["--points", "2", "--rounds", "1", "--warmup", "0", "--checks", "1", "--batch-size", "3"]
    assert main(["recognizer", "latency", "--out", str(path), "--json", *brief, *small_flags]) == 0
    latencies = read_latency_table(path)
    layers = {
        name: layer.model_copy(
            update={"seconds": tuple(tuple(1e-6 * out * into for into in layer.inputs) for out in layer.outputs)}
        )
        for name, layer in latencies.layers.items()
    }
    write_latency_table(path, latencies.model_copy(update={"layers": layers, "remainder": 1e-5}))
    return path


@pytest.fixture
def table(measured: Path, home: Path) -> Path:
    shutil.copyfile(measured, "table.json")
    return Path("table.json")


def test_the_command_reports_how_well_the_table_predicts(
    home: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    brief = ["--points", "2", "--rounds", "1", "--warmup", "0", "--checks", "2"]
    assert main(["recognizer", "latency", "--out", "t.json", *brief, *flags]) == 0
    out = capsys.readouterr().out
    assert re.search(r"complete +100\.0 .*\+0\.0\n", out) and "random 2" in out and "table: t.json" in out
    assert "exists already" in fails(capsys, "recognizer", "latency", "--out", "t.json", *flags)
    assert "end in .json" in fails(capsys, "recognizer", "latency", "--out", "t.txt", *flags)
    for flag, value in (("--points", "1"), ("--rounds", "0"), ("--batch-size", "0")):
        assert flag in fails(capsys, "recognizer", "latency", "--out", "u.json", flag, value, *flags)


@pytest.mark.parametrize("policy", ["uniform:l1", "pro:l1", "lookahead"])
def test_prune_and_validate(policy: str, table: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    target = ["objective.kind=budget", "objective.latency=0.6", "recognizer.latency_table=table.json"]
    summary = call(capsys, "prune", "--policy", policy, "--out", "run", *flags[:-1], *target)
    assert 0.4 <= summary["latency_reduction"] < 0.6
    assert summary["curve"]["latency_reduction"][-1] == summary["latency_reduction"]
    page = Path("run/report.html").read_text()
    assert "Latency reduction, %" in page and "60" in page
    # The run has a table of its own.
    table.unlink()
    assert call(capsys, "validate", "run")["episodes"] >= 1
    changed = read_latency_table("run/latency.json").model_copy(update={"remainder": 2e-5})
    write_latency_table("run/latency.json", changed)
    assert "with another latency table" in fails(capsys, "validate", "run")


def test_tolerance(table: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    counted = ["objective.count=latency", "recognizer.latency_table=table.json"]
    summary = call(capsys, "prune", "--policy", "uniform:l1", "--out", "run", *flags, *counted)
    assert summary["latency_reduction"] == pytest.approx(summary["episode_return"], abs=0.3)
    assert "as much latency as possible" in Path("run/report.html").read_text()
    assert call(capsys, "validate", "run")["episodes"] >= 1
    error = fails(capsys, "prune", "--policy", "uniform:l1", "--out", "other", *flags, "objective.count=latency")
    assert "zeroout recognizer latency" in error


def test_benchmark(table: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    overrides = [*flags[4:-1], f"recognizer.weights={flags[3]}", "recognizer.latency_table=table.json"]
    config = {
        "tasks": [
            {"task": "digits/convnet", "overrides": [*overrides, "objective.kind=budget", "objective.latency=0.6"]}
        ],
        "seeds": [0],
        "policies": [{"policy": "uniform:l1"}, {"policy": "random"}],
    }
    Path("latency.yaml").write_text(json.dumps(config))
    call(capsys, "benchmark", "latency.yaml", "--out", "bench", "--workers", "0")
    assert "latency reduction %" in Path("bench/table.md").read_text()
    assert "latency_reduction" in Path("bench/results.csv").read_text().splitlines()[0]
    assert "Latency reduction, %" in Path("bench/report.html").read_text()
    table.unlink()
    assert call(capsys, "validate", "bench")["runs"] == 2
    path = Path("bench/latency/digits-convnet/random.json")
    write_latency_table(path, read_latency_table(path).model_copy(update={"remainder": 2e-5}))
    assert "random on digits/convnet, seed 0" in fails(capsys, "validate", "bench")


def test_costs_that_are_not_linear_are_shared_out_by_what_they_are() -> None:
    """The first 8 units of the first layer save nothing; by its first unit it would never be pruned."""
    tables = [0.1 * np.arange(17.0), np.arange(17.0)]

    def cost(counts: np.ndarray) -> float:
        return 1 - (max(int(counts[0]) - 8, 0) / 8 + int(counts[1]) / 16) / 2

    counts = share_out(tables, np.zeros(2, dtype=np.int64), cost, 0.5, linear=False)
    assert counts.tolist() == [16, 0]
