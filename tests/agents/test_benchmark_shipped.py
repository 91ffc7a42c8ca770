"""All shipped benchmarks can be read, with everything that they refer to; committed tables are those of their rows."""

from pathlib import Path

import pytest

from agents.benchmark import load_benchmark, read_rows
from agents.benchmark.engine import plan
from agents.benchmark.rows import read_settings
from agents.benchmark.table import markdown_table
from agents.controller import load_controller

ROOT = Path(__file__).parents[2]
RESULTS = sorted(path.parent for path in (ROOT / "configs" / "benchmarks" / "results").glob("*/results.jsonl"))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs" / "benchmarks").glob("*.yaml")))
def test_every_name_in_it_exists(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_benchmark(name)
    jobs = plan(config, tmp_path, [])
    assert [job.key for job in jobs] == list(config.runs())
    assert all(job.task.data.seed == job.key.seed for job in jobs)


def test_one_process_is_the_default_but_for_its_processes() -> None:
    one, default = (load_controller(name).model_dump() for name in ("one_process", "default"))
    assert one.pop("sampling")["num_env_runners"] == 0 < default.pop("sampling")["num_env_runners"]
    assert one == default


def test_guided_lookahead_has_the_default_schedule_counted_in_evaluations() -> None:
    guided, default = (load_controller(name) for name in ("guided", "default"))
    cost = guided.lookahead.k + 1  # proposals, and the step
    for steps, expected in (
        (guided.replay.warmup, default.replay.warmup),
        (guided.learning.target_update_steps, default.learning.target_update_steps),
        (guided.evaluation_interval, default.evaluation_interval),
        (guided.total_steps, default.total_steps),
    ):
        assert steps * cost == expected
    assert guided.network == default.network and guided.sampling.num_env_runners == 0


@pytest.mark.parametrize("directory", RESULTS, ids=lambda directory: directory.name)
def test_committed_tables_are_those_of_their_rows(directory: Path) -> None:
    config, rows = read_settings(directory / "config.json"), read_rows(directory / "results.jsonl")
    assert {row.key for row in rows} <= set(config.runs())
    ordered = sorted(rows, key=lambda row: list(config.runs()).index(row.key))
    assert (directory / "table.md").read_text() == markdown_table(config, ordered) + "\n"
