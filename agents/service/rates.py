"""How much a client may do at a time: requests per minute, and streams that are open."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agents.service.errors import TooManyError


class Rate:
    """A bucket of requests per name, refilled steadily.

    Args:
        per_minute: refilled in a minute, and the size of the bucket.
        clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._size, self._clock = float(per_minute), clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> float:
        """Take one; 0.0 where there was one, else the seconds until there is."""
        with self._lock:
            now = self._clock()
            left, then = self._buckets.get(name, (self._size, now))
            left = min(self._size, left + (now - then) * self._size / 60)
            if left < 1:
                self._buckets[name] = left, now
                return (1 - left) * 60 / self._size
            self._buckets[name] = left - 1, now
            return 0.0


class Places:
    """A number of places per name.

    Args:
        most: places of each name.
        what: they are for, in the plural.
    """

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what = most, what
        self._taken: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """Hold a place within the context.

        Raises:
            TooManyError: all are taken.
        """
        with self._lock:
            if self._taken.get(name, 0) >= self._most:
                raise TooManyError(f"{self._most} {self._what} are open already")
            self._taken[name] = self._taken.get(name, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[name] -= 1
