"""Which pruning runs when: takes jobs out of the queue, watches them, and records how they end."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agents.service.store import Job, Store
from agents.service.work import EVENTS, Outcome, Work, found

ATTEMPTS = 3
"""How often a pruning is begun whose process dies."""
GRACE = 15.0
"""Seconds beyond its limit after which a pruning's process is ended."""

_LOG = logging.getLogger("zeroout.service")


class ProcessDiedError(Exception):
    """The process of a pruning died."""


class Executor(Protocol):
    """Runs prunings in processes of their own."""

    def start(self, work: Work) -> Any:
        """Begin; gives a handle."""

    def outcome(self, handle: Any) -> Outcome | None:
        """What came of it; None as long as it runs.

        Raises:
            ProcessDiedError: nothing did.
        """

    def end(self, handle: Any) -> None:
        """End the process, whatever it does; :meth:`outcome` tells when it is gone."""


@dataclass
class _Running:
    handle: Any
    work: Work
    begun: float | None = None
    overdue: bool = False
    ending: bool = False


class Supervisor:
    """Runs the jobs of a store, so many at a time, in the order of their arrival.

    Args:
        store: the record.
        executor: runs them.
        plan: from a job to what its process needs to know.
        workers: how many at a time.
    """

    def __init__(self, store: Store, executor: Executor, plan: Callable[[Job], Work], *, workers: int) -> None:
        self._store, self._executor, self._plan, self._workers = store, executor, plan, workers
        self._running: dict[str, _Running] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it watches."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Take up what an earlier service left, and watch from now on."""
        self.recover()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; what runs goes back into the queue."""
        self._over.set()
        self._thread.join()
        for id_, running in self._running.items():
            self._executor.end(running.handle)
            if not self._store.requeue(id_, forgive=True):
                self._store.cancelled(id_)

    def recover(self) -> None:
        """Settle the jobs that ran when an earlier service ended without a word."""
        for job in self._store.jobs_in("running", "cancelling"):
            result = found(self._plan(job).directory)
            if result is not None:
                self._store.finish(job.id, result)
            elif job.state == "cancelling":
                self._store.cancelled(job.id)
            else:
                self._again(job)

    def step(self) -> None:
        """Look once at everything."""
        for id_, running in list(self._running.items()):
            self._watch(id_, running)
        for job in self._store.jobs_in("queued")[: self._workers - len(self._running)]:
            if self._store.begin(job.id):
                work = self._plan(job)
                self._running[job.id] = _Running(self._executor.start(work), work)
                _LOG.info("pruning begun", extra={"pruning": job.id, "owner": job.owner, "attempt": job.attempts + 1})

    def _loop(self) -> None:
        while not self._over.wait(0.2):
            try:
                self.step()
            except Exception:  # one bad moment must not end the service
                _LOG.exception("supervisor")
                self._over.wait(1.0)

    def _watch(self, id_: str, running: _Running) -> None:
        try:
            outcome = self._executor.outcome(running.handle)
        except ProcessDiedError:
            del self._running[id_]
            self._take_death(id_, running)
            return
        if outcome is not None:
            del self._running[id_]
            if outcome.result is not None:
                self._store.finish(id_, outcome.result)
            elif self._store.job(id_).state == "cancelling":
                self._store.cancelled(id_)
            else:
                self._store.fail(id_, outcome.failure or "no result")
            _LOG.info("pruning ended", extra={"pruning": id_, "state": self._store.job(id_).state})
            return
        if running.begun is None and (running.work.directory / EVENTS).exists():
            running.begun = time.monotonic()  # waiting for a free core does not count
        running.overdue = running.begun is not None and time.monotonic() > running.begun + running.work.seconds + GRACE
        if not running.ending and (running.overdue or self._store.job(id_).state == "cancelling"):
            running.ending = True
            self._executor.end(running.handle)

    def _take_death(self, id_: str, running: _Running) -> None:
        job = self._store.job(id_)
        if (result := found(running.work.directory)) is not None:
            self._store.finish(id_, result)
        elif job.state == "cancelling":
            self._store.cancelled(id_)
        elif running.overdue:
            self._store.fail(id_, f"not finished within {running.work.seconds:g} seconds; its process was ended")
        else:
            self._again(job)
        _LOG.warning("pruning's process died", extra={"pruning": id_, "state": self._store.job(id_).state})

    def _again(self, job: Job) -> None:
        if job.attempts >= ATTEMPTS:
            self._store.fail(job.id, f"its process died {job.attempts} times")
        else:
            self._store.requeue(job.id)


def directory_of(root: Path, id_: str) -> Path:
    """Where the files of a pruning lie."""
    return root / "prunings" / id_
