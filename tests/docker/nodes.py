"""Ray nodes and other long commands in processes of their own, on ports of their own."""

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from recipes import ROOT, adapted

WAIT = 240.0
"""Seconds that something may take to come up on a busy machine."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Machine:
    """A directory, an environment with a token, ports instead of the usual ones, and the processes started."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="zr", dir="/tmp"))  # Ray's sockets need short paths
        self.token = secrets.token_hex(32)
        self.gcs, self.dashboard, self.client, self.http, self.board, *self.agents = free_ports(8)
        self.changes: dict[str, object] = {
            "/runs": self.directory / "runs",
            "6379": self.gcs,
            "8265": self.dashboard,
            "8000": self.http,
            "6006": self.board,
            "HEAD": "127.0.0.1",
            "head:": "127.0.0.1:",
        }
        bin_ = Path(sys.executable).parent
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ZEROOUT_"))}
        self.environment = {
            **kept,
            "HOME": str(self.directory),
            "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        (self.directory / "runs").mkdir()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def adapt(self, command: list[str], agent: int | None = None) -> list[str]:
        """A command for this machine, or for the n-th node on it, where nodes must not share ports and directory."""
        words = adapted(command, self.changes)
        if agent is None:
            return words
        words = adapted(words, {"52365": self.agents[agent]})
        if words[:2] != ["ray", "start"]:
            return words
        own = [f"--dashboard-agent-listen-port={self.agents[agent]}", f"--temp-dir={self.directory}/ray"]
        if "--head" in words:
            own += [
                f"--port={self.gcs}",
                f"--dashboard-port={self.dashboard}",
                f"--ray-client-server-port={self.client}",
            ]
        return [*words, *(word for word in own if word not in words)]

    def start(self, command: list[str], **environment: str | None) -> Path:
        """Start a command that does not end; gives the file of its output."""
        log = self.directory / f"{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env=self._with(environment),
                cwd=self.directory / "runs",
                start_new_session=True,
            )
        self._processes.append(process)
        return log

    def run(self, command: list[str], **environment: str | None) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=self._with(environment),
            cwd=self.directory / "runs",
            timeout=2 * WAIT,
            check=False,
        )

    def until_it_works(self, command: list[str], log: Path) -> str:
        """Run a command again and again until it exits with 0, as health checks do; gives its output."""
        deadline = time.monotonic() + WAIT
        while (tried := self.run(command)).returncode:
            assert self._processes[-1].poll() is None and time.monotonic() < deadline, (
                f"{shlex.join(command)}\n{tried.stdout}{tried.stderr}\n{log.read_text()[-4000:]}"
            )
            time.sleep(0.5)
        return tried.stdout

    def _with(self, environment: dict[str, str | None]) -> dict[str, str]:
        return {name: value for name, value in {**self.environment, **environment}.items() if value is not None}
