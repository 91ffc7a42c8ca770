"""The record of prunings and uploads: an SQLite database that survives the end of any process."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents.service.errors import ConflictError, NotFoundError, TooManyError

State = Literal["queued", "running", "cancelling", "finished", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("finished", "failed", "cancelled")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    request TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    failure TEXT,
    result TEXT
);
CREATE INDEX IF NOT EXISTS jobs_state ON jobs (state);
CREATE INDEX IF NOT EXISTS jobs_owner ON jobs (owner, number);
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    created REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Job:
    """A pruning on record.

    Attributes:
        number: order of arrival.
        id: what clients know it by.
        owner: name of the token that asked for it.
        state: where it stands.
        request: what was asked for, as JSON.
        created: seconds since the epoch, as the next two.
        started: of the latest attempt.
        ended: of the last one.
        attempts: how often it was begun.
        failure: why it failed.
        result: what came of it, as JSON.
    """

    number: int
    id: str
    owner: str
    state: State
    request: str
    created: float
    started: float | None
    ended: float | None
    attempts: int
    failure: str | None
    result: str | None


@dataclass(frozen=True)
class Upload:
    """Weights on record; the attributes are those of :class:`Job`, beside the file's size and digest."""

    id: str
    owner: str
    bytes: int
    sha256: str
    created: float


class Store:
    """Reads and writes the record. Threads may share it; every change is on disk when its method returns.

    Args:
        path: of the database, which is made where there is none.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    # --- jobs ---

    def add(self, id_: str, owner: str, request: str, *, most: int) -> Job:
        """Put a job into the queue.

        Raises:
            TooManyError: ``most`` of the owner's have not ended yet.
        """
        with self._transaction() as database:
            (active,) = database.execute(
                "SELECT COUNT(*) FROM jobs WHERE owner = ? AND state IN ('queued', 'running', 'cancelling')", (owner,)
            ).fetchone()
            if active >= most:
                raise TooManyError(f"{active} of your prunings have not ended, and {most} are allowed: wait or cancel")
            database.execute(
                "INSERT INTO jobs (id, owner, state, request, created) VALUES (?, ?, 'queued', ?, ?)",
                (id_, owner, request, time.time()),
            )
        return self.job(id_)

    def job(self, id_: str, owner: str | None = None) -> Job:
        """A job; that of a certain owner, where one is given.

        Raises:
            NotFoundError: there is none.
        """
        with self._lock:
            row = self._database.execute("SELECT * FROM jobs WHERE id = ?", (id_,)).fetchone()
        if row is None or (owner is not None and row["owner"] != owner):
            raise NotFoundError(f"no such pruning: {id_}")
        return Job(**row)

    def jobs_of(self, owner: str, *, most: int, before: int | None = None) -> list[Job]:
        """An owner's jobs, newest first, from before the one with the number ``before``."""
        with self._lock:
            rows = self._database.execute(
                "SELECT * FROM jobs WHERE owner = ? AND number < ? ORDER BY number DESC LIMIT ?",
                (owner, 2**62 if before is None else before, most),
            ).fetchall()
        return [Job(**row) for row in rows]

    def jobs_in(self, *states: State) -> list[Job]:
        """Everybody's jobs in some states, in the order of their arrival."""
        marks = ", ".join("?" * len(states))
        with self._lock:
            rows = self._database.execute(
                f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY number", states
            ).fetchall()
        return [Job(**row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state that occurs."""
        with self._lock:
            return dict(self._database.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall())

    def begin(self, id_: str) -> bool:
        """Take a job out of the queue to run it; False where it is no longer there."""
        return self._change(
            "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1 WHERE id = ? AND state = 'queued'",
            (time.time(), id_),
        )

    def requeue(self, id_: str, *, forgive: bool = False) -> bool:
        """Put a running job back into its place in the queue; ``forgive``: that attempt does not count."""
        return self._change(
            "UPDATE jobs SET state = 'queued', started = NULL, attempts = attempts - ? "
            "WHERE id = ? AND state = 'running'",
            (int(forgive), id_),
        )

    def finish(self, id_: str, result: str) -> bool:
        """A job has its result."""
        return self._end(id_, "finished", result=result)

    def fail(self, id_: str, failure: str) -> bool:
        """A job came to nothing."""
        return self._end(id_, "failed", failure=failure)

    def cancelled(self, id_: str) -> bool:
        """A job was ended because its owner asked for it."""
        return self._end(id_, "cancelled")

    def cancel(self, id_: str, owner: str) -> Job:
        """Ask for the end of a job: one that waits is cancelled at once, one that runs when its process is gone.

        Raises:
            NotFoundError: the owner has no such job.
            ConflictError: it has ended.
        """
        job = self.job(id_, owner)
        if self._change(
            "UPDATE jobs SET state = 'cancelled', ended = ? WHERE id = ? AND state = 'queued'", (time.time(), id_)
        ):
            return self.job(id_)
        self._change("UPDATE jobs SET state = 'cancelling' WHERE id = ? AND state = 'running'", (id_,))
        job = self.job(id_)
        if job.state != "cancelling":
            raise ConflictError(f"pruning {id_} has ended: it is {job.state}")
        return job

    def _end(self, id_: str, state: State, *, result: str | None = None, failure: str | None = None) -> bool:
        return self._change(
            "UPDATE jobs SET state = ?, ended = ?, result = ?, failure = ? "
            "WHERE id = ? AND state IN ('running', 'cancelling')",
            (state, time.time(), result, failure, id_),
        )

    def _change(self, statement: str, values: tuple[object, ...]) -> bool:
        """Change one row; False where there is none that the statement speaks of."""
        with self._transaction() as database:
            return database.execute(statement, values).rowcount == 1

    # --- uploads ---

    def add_upload(self, id_: str, owner: str, *, size: int, sha256: str, most: int) -> Upload:
        """Record weights whose file is in place.

        Raises:
            TooManyError: the owner has ``most`` already.
        """
        with self._transaction() as database:
            (kept,) = database.execute("SELECT COUNT(*) FROM uploads WHERE owner = ?", (owner,)).fetchone()
            if kept >= most:
                raise TooManyError(f"you have {kept} uploads, and {most} are allowed: delete one")
            upload = Upload(id_, owner, size, sha256, time.time())
            database.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?)", (id_, owner, size, sha256, upload.created))
        return upload

    def upload(self, id_: str, owner: str) -> Upload:
        """Weights of an owner.

        Raises:
            NotFoundError: there are none.
        """
        with self._lock:
            row = self._database.execute("SELECT * FROM uploads WHERE id = ? AND owner = ?", (id_, owner)).fetchone()
        if row is None:
            raise NotFoundError(f"no such weights: {id_}")
        return Upload(**row)

    def uploads(self) -> set[str]:
        """The identifiers of all weights."""
        with self._lock:
            return {id_ for (id_,) in self._database.execute("SELECT id FROM uploads").fetchall()}

    def remove_upload(self, id_: str, owner: str) -> None:
        """Forget weights.

        Raises:
            NotFoundError: there are none.
        """
        if not self._change("DELETE FROM uploads WHERE id = ? AND owner = ?", (id_, owner)):
            raise NotFoundError(f"no such weights: {id_}")
