"""Sharing: in one process, recognizers of equal settings stand on one and the same baseline."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from weakref import WeakValueDictionary

from recognizers.baseline import Baseline

_BASELINES = WeakValueDictionary[str, Baseline]()
_LOCK = threading.RLock()


def shared(key: str, make: Callable[[], Baseline]) -> Baseline:
    """The baseline of that key in this process; it is made where there is none, and goes with its last user."""
    with _LOCK:
        baseline = _BASELINES.get(key)
        if baseline is None:
            baseline = _BASELINES[key] = make()
        return baseline


def fingerprint(settings: object, files: Iterable[Path]) -> str:
    """A key for what is made from settings and files: another one as soon as either changes.

    Args:
        settings: plain values.
        files: by their path, size and time of change; they need not exist.
    """
    content = json.dumps([settings, [_stamp(path) for path in files]], sort_keys=True, default=repr)
    return hashlib.sha256(content.encode()).hexdigest()


def _stamp(path: Path) -> tuple[str | int, ...]:
    try:
        status = path.stat()
    except OSError:
        return (str(path.absolute()),)
    # A file that is written anew within a tick of the clock is another inode, as far as it is renamed into place.
    return (str(path.resolve()), status.st_mtime_ns, status.st_size, status.st_ino)
