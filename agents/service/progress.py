"""Following a pruning: its events as they happen, resumable after a lost connection."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.service.store import ENDED, Job
from agents.service.work import EVENTS

PAUSE = 0.25
"""Seconds between two looks."""


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        id: ATTEMPT.LINE, by which a client says what it has seen; None for what is told anew every time.
        kind: ``state``, or that of a line in the pruning's file of events.
        data: JSON.
    """

    id: str | None
    kind: str
    data: dict[str, Any]


async def follow(look: Callable[[], Job], directory: Path, seen: str | None) -> AsyncIterator[Event]:
    """The events of a pruning until it has ended, beginning after the one that was ``seen``.

    Args:
        look: gives the job as it is recorded now.
        directory: of the pruning.
        seen: identifier of the last event that the client knows; anything else means none.
    """
    attempt, line = _position(seen)
    state: str | None = None
    while True:
        job = await asyncio.to_thread(look)  # before the events: none of a job that has ended is missed
        if job.attempts != attempt:
            attempt, line = job.attempts, 0
        if job.state != state:
            state = job.state
            yield Event(None, "state", {"state": state, "attempt": attempt})
        for content in await asyncio.to_thread(_lines, directory / EVENTS, line):
            line += 1
            yield Event(f"{attempt}.{line}", content.pop("event"), content)
        if job.state in ENDED:
            return
        await asyncio.sleep(PAUSE)


def _lines(path: Path, after: int) -> list[dict[str, Any]]:
    """The complete lines after so many."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines[after:]]


def _position(seen: str | None) -> tuple[int, int]:
    attempt, dot, line = (seen or "").partition(".")
    known = dot and attempt.isascii() and attempt.isdigit() and line.isascii() and line.isdigit() and len(line) < 10
    return (int(attempt), int(line)) if known else (-1, 0)
