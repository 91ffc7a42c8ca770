"""The process of a case ends with the benchmark."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.waiting import wait_until

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
        wait_until(pid_file.exists, "the case begins", 60)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    pid = int(pid_file.read_text())
    wait_until(lambda: not is_running(pid), "the case ends", 60)


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
