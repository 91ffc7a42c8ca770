"""All shipped benchmarks can be read, with everything that they refer to; committed tables are those of their rows."""

from pathlib import Path

import pytest

from agents.benchmark import load_benchmark, read_rows
from agents.benchmark.config import TRAIN
from agents.benchmark.rows import read_settings
from agents.benchmark.table import markdown_table
from agents.controller import load_controller
from agents.policy import check_policy

ROOT = Path(__file__).parents[2]
RESULTS = sorted(path.parent for path in (ROOT / "configs" / "benchmarks" / "results").glob("*/results.jsonl"))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs" / "benchmarks").glob("*.yaml")))
def test_it_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_benchmark(name)
    for key in config.runs():
        config.settings(key)
    for entry in config.policies:
        check_policy(entry.policy)
        if entry.policy == TRAIN:
            load_controller(entry.controller, entry.overrides)


@pytest.mark.parametrize("directory", RESULTS, ids=lambda directory: directory.name)
def test_committed_tables_are_those_of_their_rows(directory: Path) -> None:
    config, rows = read_settings(directory / "config.json"), read_rows(directory / "results.jsonl")
    assert {row.key for row in rows} <= set(config.runs())
    ordered = sorted(rows, key=lambda row: list(config.runs()).index(row.key))
    assert (directory / "table.md").read_text() == markdown_table(config, ordered) + "\n"
