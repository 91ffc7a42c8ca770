"""A training on a cluster whose nodes for runners all die, and are replaced late."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.experimental import internal_kv

from recognizers.files import read_json
from tests.benchmarks.faults import Nodes, temporary_files_of_ray

CONTROLLER = [
    "controller.network.lstm_size=8",
    "controller.network.encoder_size=8",
    "controller.replay.warmup=40",
    "controller.learning.batch_size=4",
    "controller.sampling.num_env_runners=1",
    "controller.sampling.num_envs_per_env_runner=2",
    "controller.evaluation_interval=1000",
    "controller.total_steps=3000",
]


def wait(met: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert process.poll() is None, "the training has ended"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.2)


@pytest.mark.slow
def test_it_says_what_is_missing_waits_and_goes_on(home: Path, small_flags: list[str]) -> None:
    log, learning = Path("errors.txt"), Path("run", "learning.jsonl")
    asked = internal_kv.internal_kv_get_gcs_client()
    with (
        tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True) as directory,
        temporary_files_of_ray(directory),
        Nodes(1) as nodes,
        log.open("wb") as errors,
    ):
        program = "from agents.cli import main; raise SystemExit(main())"
        command = [sys.executable, "-c", program, "train", *small_flags, *CONTROLLER, "--out", "run"]
        process = subprocess.Popen([*command, "--address", nodes.address], stdout=subprocess.DEVNULL, stderr=errors)
        try:
            wait(lambda: learning.is_file() and learning.stat().st_size > 0, process, 200)
            (raylet,) = nodes.raylets.values()
            os.kill(raylet, signal.SIGKILL)
            wait(lambda: b"all runners (1) have been gone" in log.read_bytes(), process, 100)
            records = learning.read_text()
            time.sleep(3)
            assert process.poll() is None
            assert learning.read_text() == records
            nodes.add()
            assert process.wait(250) == 0
        finally:
            process.kill()
            process.wait()
    assert internal_kv.internal_kv_get_gcs_client() is asked  # of the Ray that this process may run
    said = log.read_text()
    assert re.search(r"Each needs 1 CPU\. Ray knows of \d nodes? with 0 of [01] CPU free", said)
    assert said.count("have been gone") == 1
    assert "Traceback" not in said
    assert read_json(Path("run", "summary.json"))
