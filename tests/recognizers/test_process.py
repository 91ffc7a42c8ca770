"""Freed memory is kept for the next tensors, unless the user has set how glibc allocates."""

import os
import platform
import subprocess
import sys

import pytest

from recognizers.process import sets_malloc

_PROGRAM = """
import resource, sys, torch
from recognizers.process import keep_freed_memory
kept = keep_freed_memory()
def step():
    tensors = [torch.ones(2**21) for _ in range(6)]  # 8 MiB each, freed at the end
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
pages = 10 * 6 * 2**23 // resource.getpagesize()
print(kept, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / pages)
"""


def _run(**variables: str) -> tuple[bool, float]:
    """Whether memory was kept, and page faults per page that the steps wrote."""
    plain = {name: value for name, value in os.environ.items() if not sets_malloc({name: value})}
    output = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=plain | variables, capture_output=True, text=True, check=True
    ).stdout
    kept, share = output.split()
    return kept == "True", float(share)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_memory_is_kept_unless_the_user_has_set_it() -> None:
    kept, faults = _run()
    assert kept
    assert faults < 0.05
    # The smallest of trims, as the user wishes: what is freed goes back at once.
    left, user_faults = _run(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert not left
    assert user_faults > 0.5


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"MALLOC_ARENA_MAX_IS": "2"}, False),
        ({"MALLOC_TRIM_THRESHOLD_": "0"}, True),
        ({"GLIBC_TUNABLES": "glibc.cpu.x86_shstk=off"}, False),
        ({"GLIBC_TUNABLES": "glibc.cpu.x=1:glibc.malloc.mmap_max=0"}, True),
    ],
)
def test_what_counts_as_set_by_the_user(environment: dict[str, str], expected: bool) -> None:
    assert sets_malloc(environment) is expected
