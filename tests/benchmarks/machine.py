"""The machine that a benchmark runs on: what it is, what it can do, and how much memory was needed."""

import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

import torch

from recognizers.device import processor_name
from tests.benchmarks.tables import Row


def describe() -> Row:
    """Processor, threads and versions."""
    return {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "zeroout": version("zeroout"),
    }


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MiB."""
    # The high-water mark of the process itself: ru_maxrss survives fork and exec, so it may be the parent's.
    mark = _field(Path("/proc/self/status"), "VmHWM")
    kibibytes = int(mark.split()[0]) if mark else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / 1024


def matmul_peak(dtype: torch.dtype, device: torch.device, *, size: int = 2048, repeats: int = 8) -> float:
    """Multiply-accumulates per second that a large matrix product reaches on the current threads: the best of several.

    Args:
        dtype: of the factors.
        device: where.
        size: rows and columns of the factors; large enough that the product is bound by arithmetic.
        repeats: products that are timed, after one that is not.
    """
    left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # reading a value waits for the device
        if repeat:
            best = min(best, time.perf_counter() - started)
    return size**3 / best


def _field(path: Path, name: str) -> str | None:
    """Value of the first line ``name: value`` of a file, None where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next(
        (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), None
    )
