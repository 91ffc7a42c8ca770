"""How long networks take, side by side."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Latency:
    """Wall time of a forward pass, in seconds.

    Attributes:
        median: of all passes.
        p95: that 95 % of them stay within.
        passes: that were timed.
    """

    median: float
    p95: float
    passes: int


def alternate(runs: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int) -> dict[str, Latency]:
    """Time several functions in turn, so that what slows the machine down for a while slows down all of them.

    Every round calls each function once, every other round in reverse order.

    Args:
        runs: functions by name; each returns when its work is done.
        rounds: that are timed, at least 1.
        warmup: rounds before, that are not.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        for name in reversed(names) if number % 2 else names:
            started = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - started)
    timed = {name: np.array(taken[warmup:]) for name, taken in seconds.items()}
    return {
        name: Latency(float(np.median(taken)), float(np.percentile(taken, 95)), rounds) for name, taken in timed.items()
    }


def torch_run(network: nn.Module, *inputs: Tensor) -> Callable[[], object]:
    """A forward pass of a network in evaluation mode, as a function that returns when it is done."""

    def run() -> None:
        with torch.inference_mode():
            network(*inputs)
        if inputs[0].device.type == "cuda":
            torch.cuda.synchronize(inputs[0].device)

    return run


@contextmanager
def cpu_threads(count: int | None) -> Iterator[int]:
    """Set PyTorch's threads (None: leave them), yield how many there are, and put them back."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
