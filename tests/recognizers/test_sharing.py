"""Baselines are there once per key, as long as anyone uses them; keys follow files."""

import gc
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recognizers.baseline import Baseline
from recognizers.recognizer import Recognizer
from recognizers.sharing import fingerprint, shared


class TestShared:
    def test_made_once_and_gone_with_the_last_user(self, make_recognizer: object) -> None:
        made: list[int] = []

        def make() -> Baseline:
            made.append(1)
            return make_recognizer().baseline  # type: ignore[operator]

        first = Recognizer(shared("a", make))
        second = Recognizer(shared("a", make))
        assert first.baseline is second.baseline
        assert len(made) == 1
        assert shared("b", make) is not first.baseline
        gone = weakref.ref(first.baseline)
        del first
        gc.collect()
        assert gone() is second.baseline
        del second
        gc.collect()
        assert gone() is None
        shared("a", make)
        assert len(made) == 3

    def test_made_once_by_threads_at_the_same_time(self, make_recognizer: object) -> None:
        barrier, made = threading.Barrier(4), []

        def make() -> Baseline:
            time.sleep(0.05)
            made.append(make_recognizer().baseline)  # type: ignore[operator]
            return made[-1]

        def use(_: int) -> Baseline:
            barrier.wait()
            return shared("threads", make)

        with ThreadPoolExecutor(4) as pool:
            users = list(pool.map(use, range(4)))
        assert len(made) == 1
        assert all(user is made[0] for user in users)

    def test_a_failure_leaves_nothing_behind(self, make_recognizer: object) -> None:
        def fail() -> Baseline:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            shared("fails", fail)
        baseline = make_recognizer().baseline  # type: ignore[operator]
        assert shared("fails", lambda: baseline) is baseline


class TestFingerprint:
    def test_of_settings(self) -> None:
        assert fingerprint({"a": 1, "b": (2, 3)}, []) == fingerprint({"b": [2, 3], "a": 1}, [])
        assert fingerprint({"a": 1}, []) != fingerprint({"a": 2}, [])
        assert fingerprint({"a": list}, []) == fingerprint({"a": list}, []) != fingerprint({"a": dict}, [])

    def test_of_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "file"
        seen = [fingerprint(0, [path])]
        path.write_text("one")
        seen.append(fingerprint(0, [path]))
        os.utime(path, ns=(1, 1))
        seen.append(fingerprint(0, [path]))
        path.write_text("longer")
        os.utime(path, ns=(1, 1))
        seen.append(fingerprint(0, [path]))
        other = tmp_path / "other"
        other.write_text("LONGER")
        os.utime(other, ns=(1, 1))
        other.rename(path)
        seen.append(fingerprint(0, [path]))
        assert len(set(seen)) == 5
        monkeypatch.chdir(tmp_path)
        assert fingerprint(0, [Path("file")]) == seen[-1]
