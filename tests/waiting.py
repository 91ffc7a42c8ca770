"""Waiting in tests for what other processes do."""

import time
from collections.abc import Callable

import pytest


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Wait until something holds; fail after so many seconds, naming ``what`` was waited for."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)
