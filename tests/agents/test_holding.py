"""One process at a time in a directory."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.cli import main
from agents.holding import held, hold
from recognizers.errors import ConfigurationError, FileError

HOLDER = """
import sys
from pathlib import Path
from agents.holding import hold
lock = hold(Path("out"))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds ``out``."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    "command",
    [
        ["benchmark", "smoke", "--out", "out", "--resume"],
        ["train", "--out", "out", "--resume"],
        ["prune", "--task", "digits/convnet", "--policy", "random", "--out", "out"],
    ],
    ids=lambda command: command[0],
)
def test_a_second_process_is_refused_until_the_first_is_killed(
    other: subprocess.Popen[str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert "another process works in out" in capsys.readouterr().err
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with held(Path("out")):
        Path("out/results").touch()
    assert [path.name for path in Path("out").iterdir()] == ["results"]


def test_what_is_held_within_a_process_is_held_there_too(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(ConfigurationError, match="another process works in"):
        hold(tmp_path)
    hold(tmp_path, seconds=1).release()


def test_a_directory_without_content_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with held(tmp_path / name):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_file_cannot_be_held(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot write to"), held(tmp_path / "file" / "below"):
        pass
