"""One process at a time in a directory."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from recognizers.errors import ConfigurationError, FileError

LOCK = ".lock"


def hold(directory: Path, seconds: float = 0.0) -> FileLock:
    """Hold a directory against other processes until the lock is released or the process ends, by a kill, too.

    Args:
        directory: made where there is none.
        seconds: to wait for another process that is just ending.

    Raises:
        ConfigurationError: another process does not let go.
        FileError: the directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK, timeout=seconds, thread_local=False)
        lock.acquire()
    except Timeout as error:
        raise ConfigurationError(
            f"another process works in {directory}: wait for its end, or choose another --out"
        ) from error
    except OSError as error:
        raise FileError(f"cannot write to {directory}: {error}") from error
    return lock


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a directory within the context, which leaves no trace of it; nor a directory into which nothing was written.

    Raises:
        ConfigurationError: another process works there.
        FileError: the directory cannot be written to.
    """
    made = not directory.exists()
    with hold(directory):
        try:
            yield
        finally:
            with suppress(OSError):
                (directory / LOCK).unlink(missing_ok=True)
                if made and not any(directory.iterdir()):
                    directory.rmdir()
