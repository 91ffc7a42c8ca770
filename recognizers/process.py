"""What is set for the whole process: the threads of PyTorch, and what becomes of freed memory."""

import ctypes
import functools
import multiprocessing
import os
import platform
from collections.abc import Mapping

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MOST_ON_HEAP = 32 * 2**20
"""Bytes of the largest block that glibc can be told to take from its heap."""


def set_threads(threads: int | None) -> None:
    """Set the CPU threads of the process, where it is asked for; a forked process has one.

    OpenMP cannot start its threads in a process that multiprocessing has forked from one where they ran: the first
    parallel loop would wait for them forever.
    """
    process = multiprocessing.current_process()
    if "fork" in multiprocessing.get_all_start_methods():
        threads = 1 if isinstance(process, multiprocessing.get_context("fork").Process) else threads
    if threads is not None:
        torch.set_num_threads(threads)


@functools.cache
def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next tensors; nothing is set elsewhere, or where the user has set it.

    Left to itself it hands the free end of its heap back to the system, and gets it again page by page, each of
    them zeroed: at every step, as the tensors of a step are freed at its end.

    Returns:
        Whether it was set.
    """
    if platform.libc_ver()[0] != "glibc" or sets_malloc(os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Either ends glibc's own adaptation of both; with its initial value the other would make each tensor a mapping.
    return bool(mallopt(_M_MMAP_THRESHOLD, _MOST_ON_HEAP) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def sets_malloc(environment: Mapping[str, str]) -> bool:
    """Whether environment variables tell glibc how to allocate."""
    variables = any(name.startswith("MALLOC_") and name.endswith("_") for name in environment)
    return variables or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "")
