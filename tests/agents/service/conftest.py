"""A service on a directory of its own, and clients of it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from service_fakes import ForkExecutor, untrained_controller
from starlette.testclient import TestClient

from agents.service.app import create_app
from agents.service.core import Service
from agents.service.settings import Limits, ServiceSettings
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig

LOCAL = "http://127.0.0.1:8000"
Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def checkpoint(task: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_controller(PruningEnv(task), tmp_path_factory.mktemp("controller") / "module")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts services; each is stopped at the end of the test."""
    clients: list[TestClient] = []

    def start(*, executor: Any = None, base_url: str = LOCAL, limits: dict[str, Any] | None = None, **settings: Any):
        made = ServiceSettings(directory=tmp_path / "service", limits=Limits(**(limits or {})), **settings)
        client = TestClient(create_app(Service(made, executor or ForkExecutor())), base_url=base_url)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@contextmanager
def listening(client: TestClient) -> Iterator[str]:
    """The address of the same service behind a socket."""
    server = uvicorn.Server(uvicorn.Config(client.app, port=0, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def small(weights: Path) -> dict[str, Any]:
    """A pruning of the small recognizer, without its weights' identifier."""
    return {
        "architecture": "convnet",
        "arguments": {"widths": [6, 8, 8]},
        "data": "digits",
        "policy": "uniform:l1",
        "recovery": {"kind": "bn", "images": 64},
        "objective": {"kind": "tolerance", "drop": 0.4},
        "actions": {"per_layer": 4},
    }


def uploaded(client: TestClient, weights: Path) -> str:
    answer = client.post("/v1/weights", content=weights.read_bytes())
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def ended(client: TestClient, id_: str, seconds: float = 60.0) -> dict[str, Any]:
    """A pruning after its end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pruning = client.get(f"/v1/prunings/{id_}").json()
        if pruning["state"] in ("finished", "failed", "cancelled"):
            return pruning
        time.sleep(0.05)
    raise AssertionError(f"still {pruning['state']}")
