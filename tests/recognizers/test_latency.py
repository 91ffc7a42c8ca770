"""Latencies are of the functions that were timed, in turn; the comparison leaves everything as it was."""

import importlib.util
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from recognizers.blueprint import Blueprint
from recognizers.data import Normalization
from recognizers.dependency import build_unit_table
from recognizers.export import PrunedNetwork
from recognizers.export.measuring import measure_sizes, measure_timings
from recognizers.latency import Latency, alternate


class Clock:
    """A time that passes only when a function says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def task(self, name: str, seconds: list[float]) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds[self.calls.count(name)]
            self.calls.append(name)

        return run


def test_medians_and_percentiles_of_the_rounds_after_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    slow, fast = [900.0, *range(10, 31)], [500.0, *[2.0] * 20, 42.0]
    latencies = alternate({"slow": clock.task("slow", slow), "fast": clock.task("fast", fast)}, rounds=21, warmup=1)
    assert latencies["slow"] == Latency(20.0, pytest.approx(29.0), 21)
    assert latencies["fast"] == Latency(2.0, pytest.approx(2.0), 21)


def test_they_take_turns_and_change_their_order() -> None:
    clock = Clock()
    alternate({name: clock.task(name, [0.0] * 4) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(clock.calls) == "cba" + "abc" + "cba" + "abc"


@pytest.fixture(scope="module")
def pruned() -> PrunedNetwork:
    blueprint = Blueprint("convnet", 4, 1, {"widths": [64, 64, 64]})
    network = blueprint.create().eval()
    table = build_unit_table(network, torch.randn(2, 1, 8, 8))
    mask = np.ones(table.n_units, dtype=np.int8)
    for layer in table.layers:
        mask[layer.start + 4 : layer.stop] = 0
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    return PrunedNetwork(network, table, mask, blueprint, Normalization((0.5,), (0.5,)), "base", images)


def test_sizes(pruned: PrunedNetwork) -> None:
    original, compact = measure_sizes(pruned)
    assert original.parameters == sum(parameter.numel() for parameter in pruned.complete.parameters())
    assert compact.parameters == sum(parameter.numel() for parameter in pruned.compact.parameters())
    assert compact.macs < original.macs / 50
    assert 4 * compact.parameters < compact.file_bytes < 4 * compact.parameters + 8000 < original.file_bytes


def test_timings(pruned: PrunedNetwork) -> None:
    timings = measure_timings(pruned, device=torch.device("cpu"), batch_sizes=[1, 64], rounds=5, warmup=1, threads=1)
    installed = importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript")
    runtimes = ["torch", "onnxruntime"] if installed else ["torch"]
    conditions = [(each.runtime, each.batch_size) for each in timings]
    assert conditions == [(runtime, size) for runtime in runtimes for size in (1, 64)]
    assert all(each.threads == 1 and each.original.passes == 5 for each in timings)
    assert all(0 < latency.median <= latency.p95 for each in timings for latency in (each.original, each.pruned))
    # Of 64 filters per layer 4 remain: that shows on any machine.
    assert all(each.speedup > 1.5 for each in timings if each.batch_size == 64)


def test_threads_are_put_back(pruned: PrunedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def record(runs: Mapping[str, object], **_: int) -> dict[str, Latency]:
        used.append(torch.get_num_threads())
        return dict.fromkeys(runs, Latency(1.0, 1.0, 1))

    monkeypatch.setattr("recognizers.export.measuring.alternate", record)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    before = torch.get_num_threads()
    arguments = {"device": torch.device("cpu"), "batch_sizes": [1], "rounds": 1, "warmup": 0}
    assert measure_timings(pruned, **arguments, threads=before + 1)[0].threads == before + 1  # type: ignore[arg-type]
    assert measure_timings(pruned, **arguments)[0].threads == before  # type: ignore[arg-type]
    assert used == [before + 1, before] and torch.get_num_threads() == before
