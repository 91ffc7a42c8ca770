"""Searching for settings: spaces, refusals, and a search."""

from pathlib import Path

import pytest
import yaml

from agents.controller import load_controller
from agents.run_directory import RunDirectory
from agents.tuning import load_space, search
from agents.workbench import open_environment
from envs.tasks import TaskConfig
from recognizers.errors import ConfigurationError
from recognizers.files import read_json


def space_of(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"learning.lr": {"loguniform": [0.0, 1.0]}}, "must be positive"),
        ({"learning.lr": {"uniform": [2.0, 1.0]}}, "must rise"),
        ({"learning.lr": {"choice": [1], "grid": [1]}}, "exactly one"),
        ({"learning.lr": {"chioce": [1]}}, "choice"),
        ({}, "parameters"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(tmp_path: Path, parameters: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_space(space_of(tmp_path / "space.yaml", parameters=parameters))


def test_a_parameter_that_is_no_setting_is_refused_before_anything_starts(home: Path, task: TaskConfig) -> None:
    space = load_space(space_of(Path("space.yaml"), parameters={"learning.rl": {"choice": [0.1]}}))
    run = RunDirectory.create(Path("run"), "tune")
    env = open_environment(task, run, progress=False)
    with pytest.raises(ConfigurationError, match="rl"):
        search(load_controller("quickstart"), space, run, env, seed=0)
    assert not (run.path / "tune").exists()


@pytest.mark.slow
def test_the_best_settings_are_found_and_can_be_trained_with(home: Path, task: TaskConfig) -> None:
    small = ["network.lstm_size=8", "network.encoder_size=8", "sampling.num_env_runners=0", "total_steps=100"]
    controller = load_controller("quickstart", [*small, "evaluation_interval=50", "replay.warmup=20"])
    space = load_space(
        space_of(
            Path("space.yaml"),
            samples=1,
            parameters={"learning.lr": {"grid": [1e-3, 1e-2]}, "lookahead.k": {"choice": [2]}},
        )
    )
    run = RunDirectory.create(Path("run"), "tune")
    env = open_environment(task, run, progress=False)
    trials = search(controller, space, run, env, seed=0)
    assert sorted(trial.parameters["learning.lr"] for trial in trials) == [1e-3, 1e-2]
    assert trials[0].score is not None and trials[0].score >= (trials[1].score or 0)
    assert read_json(run.path / "tuning.json") == [trial.model_dump() for trial in trials]
    best = load_controller(str(run.path / "best.yaml"))
    assert best.learning.lr == trials[0].parameters["learning.lr"]
    assert (best.lookahead.k, best.total_steps) == (2, 100)
    assert RunDirectory.open(Path(trials[0].directory)).learning.is_file()
