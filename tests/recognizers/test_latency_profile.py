"""A measured table holds each layer at its grid, with what follows it; the dense network comes out exactly."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recognizers.costs import CostModel
from recognizers.dependency import build_unit_table
from recognizers.errors import ConfigurationError
from recognizers.latency import Latency
from recognizers.latency_profile import ProfileSettings, profile
from recognizers.latency_table import LatencyModel, LatencyTable
from recognizers.units import UnitTable

QUICK = ProfileSettings(points=3, rounds=1, warmup=0, checks=2)


class Branched(nn.Module):
    """A sum over two branches, and a layer that reads and writes what the sum ties together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.norm, self.outer = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1)
        self.tied, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.norm(self.inner(x)))))
        x = torch.relu(x + self.tied(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def branched() -> tuple[nn.Module, UnitTable, Tensor]:
    torch.manual_seed(0)
    network, images = Branched().eval(), torch.randn(2, 3, 8, 8)
    return network, build_unit_table(network, images), images


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes as multiply-accumulates and additions say: a second each, and one more for every call."""

    def run(network: nn.Module, *inputs: Tensor) -> Callable[[], float]:
        def seconds() -> float:
            done = 1.0

            def count(module: nn.Module, _: Any, output: Tensor) -> None:
                nonlocal done
                factor = module.weight[0].numel() if isinstance(module, nn.Conv2d | nn.Linear) else 1
                done += factor * output[0].numel()

            kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
            handles = [each.register_forward_hook(count) for each in network.modules() if isinstance(each, kinds)]
            with torch.inference_mode():
                network(*inputs)
            for handle in handles:
                handle.remove()
            return done

        return seconds

    def time(runs: Mapping[str, Callable[[], float]], **_: int) -> dict[str, Latency]:
        return {name: Latency(seconds := run(), seconds, 1) for name, run in runs.items()}

    monkeypatch.setattr("recognizers.latency_profile.torch_run", run)
    monkeypatch.setattr("recognizers.latency_profile.alternate", time)


@pytest.mark.usefixtures("counted")
def test_layers_are_timed_with_what_follows_them(branched: tuple[nn.Module, UnitTable, Tensor]) -> None:
    latencies = profile(*branched, "branched", QUICK)
    layers = latencies.layers
    assert list(layers) == ["stem", "inner", "outer", "tied", "head"]
    inner = layers["inner"]
    assert (inner.outputs, inner.inputs) == ((1, 3, 6), (1, 4, 8))
    assert inner.seconds == tuple(tuple(64.0 * out * (9 * into + 1) for into in (1, 4, 8)) for out in (1, 3, 6))
    assert (layers["stem"].outputs, layers["stem"].inputs) == ((1, 4, 8), (3,))
    assert (layers["head"].outputs, layers["head"].inputs) == ((2,), (1, 4, 8))
    # Its inputs are its outputs: they cannot be chosen apart.
    assert (layers["tied"].outputs, layers["tied"].inputs) == ((1, 4, 8), (8,))
    assert layers["tied"].seconds == ((64.0,), (64.0 * 16,), (64.0 * 64,))


@pytest.mark.usefixtures("counted")
def test_the_dense_network_comes_out_exactly(branched: tuple[nn.Module, UnitTable, Tensor]) -> None:
    network, table, images = branched
    latencies = profile(network, table, images, "branched", QUICK)
    assert latencies.remainder == pytest.approx(1.0), "the call of the whole"
    dense, *random = latencies.checks
    assert dense.macs == 1.0 and dense.error == pytest.approx(0.0, abs=1e-12)
    assert len(random) == 2 and all(0 < check.macs < 1 for check in random)
    model = LatencyModel(latencies, network, table, images, "branched")
    assert model.baseline == pytest.approx(dense.measured)


def test_a_real_one(branched: tuple[nn.Module, UnitTable, Tensor]) -> None:
    network, table, images = branched
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    before = torch.get_num_threads()
    settings = ProfileSettings(points=2, rounds=1, warmup=0, threads=before + 1, checks=1)
    latencies = profile(network, table, images, "branched", settings)
    assert torch.get_num_threads() == before and latencies.threads == before + 1
    assert (latencies.batch_size, latencies.image, latencies.torch) == (2, (3, 8, 8), torch.__version__)
    assert LatencyTable.model_validate_json(latencies.model_dump_json()) == latencies
    model = LatencyModel(latencies, network, table, images, "branched")
    assert model.baseline == pytest.approx(latencies.checks[0].measured)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    costs = CostModel(network, table, images).with_latency(model)
    assert costs.reductions(np.ones(table.n_units, dtype=np.int8)) == (0.0, 0.0, 0.0)


class Undecided(nn.Module):
    """Looks at its values before it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).mean((2, 3))
        return self.second(x if x.sum() > 0 else -x)


def test_networks_that_cannot_be_cut_are_refused() -> None:
    network, images = Undecided().eval(), torch.randn(2, 1, 8, 8)
    with pytest.raises(ConfigurationError, match="undecided cannot be cut into its layers"):
        profile(network, UnitTable((), {}), images, "undecided", QUICK)
