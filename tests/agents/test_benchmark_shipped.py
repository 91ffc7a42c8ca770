"""All shipped benchmarks can be read, with everything that they refer to."""

from pathlib import Path

import pytest

from agents.benchmark import load_benchmark
from agents.benchmark.config import TRAIN
from agents.controller import load_controller
from agents.policy import check_policy

ROOT = Path(__file__).parents[2]


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
