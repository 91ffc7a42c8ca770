"""A pruning task so small that an episode takes milliseconds, and runs in a home of their own."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from envs.pruning import PruningEnv
from envs.tasks import TaskConfig, load_task, make_recognizer
from recognizers.config import save_weights

SMALL = [
    "recognizer.arguments={widths: [6, 8, 8]}",
    "recognizer.training.epochs=6",
    "recognizer.training.padding=0",
    "recovery.images=64",
    "actions.per_layer=4",
    "objective.drop=0.1",
]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def token_of_ray() -> Iterator[None]:
    """Ray's token. A process finds its own in its first home; nodes that it starts in another one would miss it."""
    with pytest.MonkeyPatch.context() as context:
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            context.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained weights of the small recognizer."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    recognizer = make_recognizer(load_task("digits/convnet", SMALL))
    save_weights(path, recognizer.base_state, recognizer.blueprint)
    return path


@pytest.fixture(scope="session")
def task(weights: Path) -> TaskConfig:
    """Tolerance of ten points, twelve blocks."""
    return load_task("digits/convnet", [*SMALL, f"recognizer.weights={weights}"])


@pytest.fixture
def env(task: TaskConfig) -> PruningEnv:
    return PruningEnv(task)


@pytest.fixture(scope="session")
def small_flags(weights: Path) -> list[str]:
    """The small task, as command line arguments."""
    return ["--task", "digits/convnet", "--weights", str(weights), *SMALL]


@pytest.fixture
def flags(small_flags: list[str]) -> list[str]:
    """A copy of them."""
    return list(small_flags)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and working directory."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return home
