"""Commands as a user calls them."""

import pytest

from agents.cli import main


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Status, output and error output of a command."""
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command fails with."""
    status, out, err = call(capsys, *arguments)
    assert status == 2 and out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("zeroout: error: ") and "Traceback" not in err
    return last
