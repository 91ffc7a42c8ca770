"""Benchmarks on Ray: equal rows; dying and deaf policies."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.benchmark import Row, engine, load_benchmark
from agents.benchmark.engine import run_benchmark
from agents.cluster import start_ray
from recognizers.files import write_text

CONFIG = """
tasks:
  - task: digits/convnet
    overrides:
      - "recognizer.arguments={widths: [6, 8, 8]}"
      - recognizer.training.epochs=2
      - recovery.images=64
      - actions.per_layer=4
      - objective.drop=0.2
seeds: [0]
policies:
  - {policy: random}
  - {policy: "search:random", equal_evaluations_to: random}
"""
MINE = """
import os, signal

class Dies:
    def __init__(self, seed):
        pass

    def reset(self, env):
        with open("attempts", "a") as file:
            file.write("x")
        os._exit(1)

    def act(self, observation, info):
        pass

class Deaf(Dies):
    def reset(self, env):
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        while True:
            pass
"""


@pytest.fixture(scope="module", autouse=True)
def ray_() -> Iterator[None]:
    start_ray()
    yield


def timeless(row: Row) -> dict[str, object]:
    return row.model_dump(exclude={"result": {"seconds"}})


def test_rows_are_those_of_one_process(home: Path) -> None:
    write_text("small.yaml", CONFIG)
    config = load_benchmark("small.yaml")
    here = {row.key: row for row in run_benchmark(config, Path("here"), [])}
    there = {row.key: row for row in run_benchmark(config, Path("there"), [], workers=2)}
    assert here.keys() == there.keys() == set(config.runs())
    assert all(timeless(here[key]) == timeless(there[key]) for key in here)
    assert list(Path("there/bases").glob("*/recognizer.safetensors"))
    assert list(Path("there/runs").glob("*/*/seed-0/best.mask.safetensors"))


def test_what_dies_or_lacks_a_base_network_loses_no_other_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ATTEMPTS", 2)
    write_text("mine.py", MINE)
    more = """policies:
  - {policy: "mine.py:Dies"}
  - {policy: random, label: baseless, task_overrides: [recognizer.weights=missing.safetensors]}
  - {policy: "search:random", label: waits, equal_evaluations_to: baseless}"""
    write_text("bad.yaml", CONFIG.replace("policies:", more))
    rows = {row.label: row for row in run_benchmark(load_benchmark("bad.yaml"), Path("out"), [], workers=2)}
    assert str(rows["mine.py:Dies"].failure).startswith("its process died 2 times")
    assert Path("attempts").read_text() == "xx"
    assert str(rows["baseless"].failure).startswith("the base network: no such file")
    assert rows["waits"].failure == "waits for baseless on digits/convnet, seed 0, which failed"
    assert rows["random"].result is not None and rows["search:random"].result is not None


def test_a_policy_that_does_not_stop_is_ended_with_its_process(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "GRACE", 0.5)
    write_text("mine.py", MINE)
    write_text(
        "bad.yaml", CONFIG[: CONFIG.index("  - {policy: random}")] + '  - {policy: "mine.py:Deaf"}\ntime_limit: 1\n'
    )
    (row,) = run_benchmark(load_benchmark("bad.yaml"), Path("out"), [], workers=1)
    assert row.failure == "not finished within 1 seconds (time_limit); its process was ended"
