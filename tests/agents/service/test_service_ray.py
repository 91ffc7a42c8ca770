"""The service as it is deployed: ``zeroout serve`` on Ray Serve, spoken to over a socket, and killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agents.cli import main
from agents.client import Client, ServerError
from recognizers.compact_file import load_compact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Start = Callable[..., subprocess.Popen[bytes]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Starts ``zeroout serve``, and waits until it answers."""
    processes = []

    def started(port: int, *flags: str, token: str | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import sys; from agents.cli import main; sys.exit(main())", "serve"]
        log = Path("serve.log").open("ab")  # noqa: SIM115 - the process keeps it
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        process = subprocess.Popen(
            [*command, "--port", str(port), "--out", "service", *flags], stdout=log, stderr=log, env=environment
        )
        processes.append(process)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert process.poll() is None, Path("serve.log").read_text()
            try:
                Client(f"http://127.0.0.1:{port}", token).prunings()
            except ServerError:
                time.sleep(0.5)
            else:
                return process
        raise AssertionError(Path("serve.log").read_text())

    yield started
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


def test_killing_the_service_loses_nothing_that_was_finished(
    start: Start, small, weights: Path, checkpoint: Path, capsys
) -> None:
    assert main(["serve", "--out", "service", "--create-token", "alice"]) == 0
    token, port = capsys.readouterr().out.strip(), free_port()
    flags = ["--workers", "2", "--controller", f"small={checkpoint}", "limits.concurrent_jobs=30"]
    first = start(port, *flags, token=token)
    client = Client(f"http://127.0.0.1:{port}", token)
    with pytest.raises(ServerError, match="needs a token"):
        Client(f"http://127.0.0.1:{port}").prunings()
    assert [controller["name"] for controller in client.controllers()] == ["small"]

    asked = {**small, "weights": client.upload(weights)}
    quick = [client.submit({**asked, "seed": seed}) for seed in range(4)]
    slow = {"policy": "search:random", "settings": {"evaluations": 10**7}}
    long = [client.submit({**asked, **slow}) for _ in range(2)]
    waiting = [client.submit({**asked, "seed": seed}) for seed in range(14)]
    before = [client.wait(id_) for id_ in quick]
    assert {pruning["state"] for pruning in before} == {"finished"}
    while {client.pruning(id_)["state"] for id_ in long} != {"running"}:
        time.sleep(0.2)
    first.kill()
    first.wait()
    while listens(port):  # Ray's processes notice after a while; until then they would answer in the next one's place
        time.sleep(0.2)

    second = start(port, *flags, token=token)
    assert [client.pruning(id_) for id_ in quick] == before
    assert len(client.prunings()) == 20
    for id_ in long:
        assert client.pruning(id_)["state"] in ("queued", "running")
        client.cancel(id_)
    after = [client.wait(id_) for id_ in [*long, *waiting]]
    assert [pruning["state"] for pruning in after] == ["cancelled"] * 2 + ["finished"] * 14
    client.download(quick[0], "model", Path("model.safetensors"))
    load_compact("model.safetensors")
    text = Path("service/service.log").read_text()
    assert '"message": "pruning ended"' in text and token not in text
    second.send_signal(signal.SIGTERM)
    assert second.wait(120) == 0


def test_others_are_not_let_in_without_a_token(home: Path, capsys) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--out", "service"]) == 2
    assert "create a token first" in capsys.readouterr().err
