"""The process of a case ends with the benchmark."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

DRIVER = """
import sys
from functools import partial
from tests.benchmarks.processes import in_own_process
from tests.benchmarks.test_processes import write_pid_and_wait

if __name__ == "__main__":
    in_own_process(None, partial(write_pid_and_wait, sys.argv[1]))
"""


def write_pid_and_wait(path: str, _: object) -> None:
    """A case that takes long."""
    unfinished = Path(f"{path}.part")
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(path)
    time.sleep(600)


def test_a_killed_benchmark_takes_its_case_along(tmp_path: Path) -> None:
    script, pid_file = tmp_path / "driver.py", tmp_path / "pid"
    script.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    driver = subprocess.Popen([sys.executable, str(script), str(pid_file)], env=environment)
    try:
        assert wait_until(pid_file.exists), "the case did not begin"
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    pid = int(pid_file.read_text())
    assert wait_until(lambda: not is_running(pid)), "the case goes on"


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether something comes to hold within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
