"""Benchmarks: rows, resume, intervals, table."""

from pathlib import Path

import numpy as np
import pytest

from agents.benchmark import Row, interval, load_benchmark, markdown_table, read_rows, run_benchmark
from agents.cli import main
from recognizers.errors import ConfigurationError, FileError
from recognizers.files import write_text
from recognizers.settings import shipped

CONFIG = """
task: digits/convnet
overrides:
  - "recognizer.arguments={widths: [6, 8, 8]}"
  - recognizer.training.epochs=4
  - recovery.images=64
  - actions.per_layer=4
  - objective.drop=0.2
seeds: [0, 1]
policies:
  - {policy: random}
  - {policy: "uniform:l1"}
  - {policy: "search:random", equal_steps_to: random, label: search}
"""


@pytest.fixture
def config(home: Path) -> str:
    write_text("small.yaml", CONFIG)
    return "small.yaml"


def test_every_policy_runs_with_every_seed(config: str) -> None:
    rows = list(run_benchmark(load_benchmark(config), Path("out"), [], progress=False))
    assert [(row.seed, row.label) for row in rows] == [
        (seed, label) for seed in (0, 1) for label in ("random", "uniform:l1", "search")
    ]
    by = {(row.label, row.seed): row.result for row in rows}
    for seed in (0, 1):
        own = len(by["search", seed].curve.accuracy)
        assert by["search", seed].environment_steps >= by["random", seed].environment_steps
        assert own > 0
        assert by["random", seed].baseline_test_accuracy == by["search", seed].baseline_test_accuracy
    assert by["random", 0].baseline_test_accuracy != by["random", 1].baseline_test_accuracy


def test_resume_repeats_nothing_and_gives_equal_rows(config: str) -> None:
    whole = list(run_benchmark(load_benchmark(config), Path("out"), [], progress=False))
    rest = list(run_benchmark(load_benchmark(config), Path("out"), whole[:4], progress=False))
    assert [(row.seed, row.label) for row in rest] == [(row.seed, row.label) for row in whole[4:]]
    for one, other in zip(rest, whole[4:], strict=True):
        assert _timeless(one) == _timeless(other)


def _timeless(row: Row) -> dict[str, object]:
    return row.model_dump(exclude={"result": {"seconds"}})


def test_the_command_resumes(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", config, "--out", "out", "seeds=[0]", "--json"]) == 0
    assert main(["benchmark", config, "--out", "out", "seeds=[0]", "--json"]) == 2
    capsys.readouterr()
    write_text("out/results.jsonl", Path("out/results.jsonl").read_text() + '{"label": "cut off')
    assert main(["benchmark", config, "--out", "out", "seeds=[0]", "--resume"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("| policy | runs |") and "| search | 1 |" in out
    assert len(read_rows(Path("out/results.jsonl"))) == 3


def test_a_corrupt_line_is_named(home: Path) -> None:
    write_text("results.jsonl", '{"label": 3}\n')
    with pytest.raises(FileError, match="no result"):
        read_rows(Path("results.jsonl"))


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        mean, half = interval(generator.normal(3.0, 2.0, size=5))
        hits += abs(mean - 3.0) <= half
    assert 0.93 < hits / 2000 < 0.97
    assert np.isnan(interval([1.0])[1])


def test_contradictions_are_refused(home: Path) -> None:
    write_text("twice.yaml", CONFIG.replace("label: search", "label: random"))
    with pytest.raises(ConfigurationError, match="two policies"):
        load_benchmark("twice.yaml")
    write_text("later.yaml", CONFIG.replace("equal_steps_to: random", "equal_steps_to: r2d2"))
    with pytest.raises(ConfigurationError, match="earlier policy"):
        load_benchmark("later.yaml")


@pytest.mark.parametrize("name", shipped("benchmarks"))
def test_shipped_benchmarks_are_valid(name: str) -> None:
    config = load_benchmark(name)
    assert config.task_of_seed(config.seeds[0]).data.seed == config.seeds[0]


def test_tables_have_a_line_per_policy_and_paired_differences(config: str) -> None:
    loaded = load_benchmark(config)
    rows = list(run_benchmark(loaded, Path("out"), [], progress=False))
    lines = markdown_table(loaded, rows).splitlines()
    assert len(lines) == (2 + 3) + 1 + (2 + 2)
    by = {(row.label, row.seed): 100 * row.result.parameter_reduction for row in rows}
    mean, half = interval([by["random", seed] - by["uniform:l1", seed] for seed in (0, 1)])
    assert lines[-2].startswith(f"| uniform:l1 | 2 | {mean:,.1f} ± {half:,.1f} |")
