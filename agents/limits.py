"""Code that may take too long, or raise anything."""

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

from recognizers.files import write_text

Result = TypeVar("Result")


class TimeLimitExceeded(BaseException):
    """The time is over. Not an ``Exception``, so that a policy that catches those is stopped all the same."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop what runs within the context after so many seconds, even if it loops for ever.

    Works in the main thread of a process, between two operations of Python: a loop inside a C extension, or one that
    catches everything, goes on, and only ending the process helps. A timer that runs already is taken up again.

    Raises:
        TimeLimitExceeded: within the context.
    """

    def stop(signal_: int, frame: FrameType | None) -> None:
        raise TimeLimitExceeded

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop)
    # Once more every second: code that catches everything may swallow the first.
    outer, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - started), 1e-6), interval)


def attempt(
    work: Callable[[], Result], seconds: float, failure: Path, failed: Callable[[BaseException], Result]
) -> Result:
    """What ``work`` gives within so many seconds; else what ``failed`` makes of the error.

    The error's traceback is then in the file ``failure``.
    """
    try:
        with time_limit(seconds):
            return work()
    except (Exception, SystemExit, TimeLimitExceeded) as error:  # a policy may raise anything
        write_text(failure, traceback.format_exc())
        return failed(error)
