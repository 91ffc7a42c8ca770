"""How fast does the service act? ``python -m tests.benchmarks.service`` measures it over loopback, and fills a table.

Each client asks for one action at a time and waits for the answer. Beside them the same module acts in a loop in this
process: what the way over HTTP and Ray Serve costs, and what gathering requests into batches wins back.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.client import Client, ServerError
from agents.r2d2.policy import R2D2Controller
from envs.pruning import Observation, PruningEnv
from envs.tasks import load_task
from tests.agents.service.service_fakes import untrained_controller
from tests.benchmarks.machine import describe
from tests.benchmarks.tables import Row, replace_rows, rounded

RESULTS = Path(__file__).parent / "results" / "service.csv"
START = 240.0
"""Seconds that the service may take to come up."""


@contextmanager
def serving(checkpoint: Path, directory: Path) -> Iterator[str]:
    """The address of a service with one controller, ``it``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "import sys; from agents.cli import main; sys.exit(main())", "serve"]
    flags = ["--port", str(port), "--out", str(directory), "--controller", f"it={checkpoint}"]
    process = subprocess.Popen(
        [*command, *flags, "limits.requests_per_minute=1000000000"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START
    try:
        while True:
            try:
                Client(url).controllers()
                break
            except ServerError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def asking(url: str, shown: tuple[Observation, dict[str, Any]], seconds: float) -> list[float]:
    """Seconds of each request of one client that carries its state on."""
    (observation, info), taken, state = shown, [], None
    with Client(url) as client:
        over = time.perf_counter() + seconds
        while (started := time.perf_counter()) < over:
            rewards = None if state is None else [0.0]
            _, state = client.act("it", [observation], [info["action_mask"]], rewards, state)
            taken.append(time.perf_counter() - started)
    return taken


def measured(name: str, clients: int, taken: Sequence[float], seconds: float) -> Row:
    """A row of the table."""
    return rounded(
        {
            "case": name,
            "clients": clients,
            "actions per second": len(taken) / seconds,
            "p50 ms": 1000 * float(np.percentile(taken, 50)),
            "p99 ms": 1000 * float(np.percentile(taken, 99)),
            "actions": len(taken),
            **describe(),
            "ray": version("ray"),
            "fastapi": version("fastapi"),
        }
    )


def looping(checkpoint: Path, env: PruningEnv, seconds: float) -> list[float]:
    """Seconds of each action of the policy in this process."""
    controller = R2D2Controller(checkpoint)
    controller.reset(env)
    observation, info = env.reset(seed=0)
    taken, over = [], time.perf_counter() + seconds
    while (started := time.perf_counter()) < over:
        controller.act(observation, info)
        taken.append(time.perf_counter() - started)
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.service", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", action="append", type=int, help="that ask at a time (default: 1, 16 and 64)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: 10)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="CSV", help="the table")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    env = PruningEnv(load_task("digits/convnet", ["recognizer.training.epochs=2"]))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = untrained_controller(env, Path(folder) / "module", size=128)
        rows.append(measured("loop", 1, looping(checkpoint, env, given.seconds), given.seconds))
        with serving(checkpoint, Path(folder) / "service") as url:
            shown = env.reset(seed=0)
            asking(url, shown, 1.0)
            for clients in given.clients or [1, 16, 64]:
                with ThreadPoolExecutor(clients) as pool:
                    parts = list(pool.map(lambda _: asking(url, shown, given.seconds), range(clients)))
                taken = [seconds for part in parts for seconds in part]
                rows.append(measured("service", clients, taken, given.seconds))
    for row in rows:
        print(json.dumps(row), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    replace_rows(given.out, ("case", "clients"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
