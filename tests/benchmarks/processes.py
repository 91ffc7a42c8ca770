"""A fresh process per case, so that memory, caches and number of threads are its own."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from recognizers.errors import ConfigurationError, ZeroOutError
from tests.benchmarks.cases import Case

Result = TypeVar("Result")


def in_own_process(case: Case, measure: Callable[[Case], Result]) -> Result:
    """Measure a case in a process that ends with it, or with this process.

    Raises:
        ZeroOutError: as in the process, or the process died.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            return pool.submit(_measured, case, measure).result()
        except BrokenProcessPool:
            raise ConfigurationError(f"{case.name}: the process died, perhaps for want of memory") from None


def _measured(case: Case, measure: Callable[[Case], Result]) -> Result:
    try:
        return measure(case)
    except ZeroOutError as error:  # some of them do not survive the way from one process to another
        raise ConfigurationError(f"{case.name}: {error}") from None


def _end_with_parent() -> None:
    """Whoever kills the benchmark does not want the case to go on."""

    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
