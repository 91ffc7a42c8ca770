"""Latency by a table: worked by hand, equal to a reference, refused where it is one of another network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from torch import nn

from recognizers.compaction import compact
from recognizers.costs import CostModel, Reductions
from recognizers.dependency import build_unit_table
from recognizers.errors import ConfigurationError, FileError
from recognizers.latency_table import LatencyModel, LatencyTable, read_latency_table, write_latency_table
from recognizers.units import UnitTable, is_depthwise
from tests.recognizers.latency_tables import Seconds, made_up_table

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Pruned = tuple[nn.Module, UnitTable]
MIDDLE = {4: 2, 6: 3, 216: 108}
"""Channels of the chain's sides where it keeps 2 and 3 filters."""


def _build(network: nn.Module) -> Pruned:
    return network.eval(), build_unit_table(network, IMAGES)


@pytest.fixture(scope="module")
def chain() -> Pruned:
    """4 and 6 filters, each a unit."""
    torch.manual_seed(0)
    return _build(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2)
        )
    )


@pytest.fixture(scope="module")
def grouped() -> Pruned:
    """Groups, a depthwise convolution, and several inputs per unit in the linear layer."""
    torch.manual_seed(0)
    return _build(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.PReLU(6), nn.Conv2d(6, 6, 3, groups=6),
            nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 2),
        )
    )  # fmt: skip


def _model(pruned: Pruned, seconds: Seconds, **options: Any) -> LatencyModel:
    network, table = pruned
    latencies = made_up_table(network, table, IMAGES, seconds, **options)
    return LatencyModel(latencies, network, table, IMAGES, "network")


def _mask(table: UnitTable, *kept: int) -> np.ndarray:
    mask = np.zeros(table.n_units, dtype=np.int8)
    for layer, count in zip(table.layers, kept, strict=True):
        mask[layer.start : layer.start + count] = 1
    return mask


@st.composite
def masks(draw: st.DrawFn, table: UnitTable) -> np.ndarray:
    bits = [draw(st.lists(st.integers(0, 1), min_size=len(layer), max_size=len(layer)).filter(any))
            for layer in table.layers]  # fmt: skip
    return np.array([bit for layer in bits for bit in layer], dtype=np.int8)


def test_by_hand(chain: Pruned) -> None:
    times = {(1, 3): 2.0, (4, 3): 5.0, (1, 1): 1.0, (1, 4): 3.0, (6, 1): 6.0, (6, 4): 18.0, (2, 36): 1.0, (2, 216): 7.0}
    model = _model(chain, lambda out, into: times[out, into], remainder=0.5)
    assert model.baseline == 5 + 18 + 7 + 0.5
    assert model(_mask(chain[1], 4, 6)) == model.baseline and model.reduction(_mask(chain[1], 4, 6)) == 0.0
    # First layer: 2 of 1..4. Second: at 1 output 1 + 2/3, at 6 outputs 6 + 12/3, between them 4/5 of the way less.
    expected = (2 + 3 / 3) + (5 / 3 + (10 - 5 / 3) * 2 / 5) + (1 + 6 * (108 - 36) / 180) + 0.5
    assert model(_mask(chain[1], 2, 3)) == pytest.approx(expected)
    assert model.reduction(_mask(chain[1], 2, 3)) == pytest.approx(1 - expected / 30.5)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_the_compact_network(data: st.DataObject, grouped: Pruned) -> None:
    """What is bilinear comes back exactly, whatever the grid."""
    network, table = grouped

    def seconds(out: int, into: int) -> float:
        return out * into + 2 * out + 3.0

    def grid(least: int, most: int) -> list[int]:
        return sorted({least, most, *data.draw(st.lists(st.integers(least, most), max_size=3))})

    mask = data.draw(masks(table))
    dense, pruned = (_layers(each) for each in (network, compact(network, table, mask)))
    expected = sum(
        seconds(after.weight.shape[0], 1 if is_depthwise(before) else _inputs(after))
        for before, after in zip(dense, pruned, strict=True)
    )
    assert _model(grouped, seconds, outputs=grid)(mask) == pytest.approx(expected)


def _layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.Linear)]


def _inputs(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_interpolation_equals_a_reference_and_is_exact_at_grid_points(data: st.DataObject, chain: Pruned) -> None:
    network, table = chain
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    drawn: dict[tuple[int, int], float] = {}
    latencies = made_up_table(
        network,
        table,
        IMAGES,
        lambda out, into: drawn.setdefault((out, into), float(generator.uniform())),
        outputs=lambda least, most: sorted({least, MIDDLE.get(most, most), most}),
    )
    model = LatencyModel(latencies, network, table, IMAGES, "network")
    kept = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    counts = {"0": (kept[0], 3), "2": (kept[1], kept[0]), "5": (2, 36 * kept[1])}
    expected = 0.0
    for path, layer in latencies.layers.items():
        axes = [axis if len(axis) > 1 else (axis[0] - 1, axis[0]) for axis in (layer.outputs, layer.inputs)]
        seconds = np.broadcast_to(np.array(layer.seconds), [len(axis) for axis in axes])
        expected += float(RegularGridInterpolator(axes, seconds)(counts[path]).item())
    assert model(_mask(table, *kept)) == pytest.approx(expected)
    at_points = sum(
        layer.seconds[0 if len(layer.outputs) == 1 else 1][0 if len(layer.inputs) == 1 else 1]
        for layer in latencies.layers.values()
    )
    assert model(_mask(table, 2, 3)) == pytest.approx(at_points)


def test_slower_is_a_negative_reduction(chain: Pruned) -> None:
    model = _model(chain, lambda out, into: 1 / (out * into))
    assert model.reduction(_mask(chain[1], 1, 1)) < 0


def test_costs_with_and_without_a_table(chain: Pruned) -> None:
    network, table = chain
    costs, mask = CostModel(network, table, IMAGES), _mask(table, 2, 3)
    model = _model(chain, lambda out, into: float(out * into))
    known = costs.with_latency(model).reductions(mask)
    assert costs.latency is None and known == Reductions(*costs.reductions(mask)[:2], model.reduction(mask))
    assert [known.of(measure) for measure in ("parameters", "macs", "latency")] == list(known)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"zeroout recognizer latency .*recognizer\.latency_table"):
        costs.reductions(mask).of("latency")


class TestRefusals:
    @pytest.fixture(scope="class")
    def latencies(self, chain: Pruned) -> LatencyTable:
        return made_up_table(*chain, IMAGES, lambda out, into: float(out * into))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"architecture": "resnet20"}, "one of resnet20 at 3 x 8 x 8, not of network at 3 x 8 x 8"),
            ({"image": (3, 9, 8)}, "one of network at 3 x 9 x 8, not"),
        ],
    )
    def test_another_network(
        self, chain: Pruned, latencies: LatencyTable, change: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=message):
            LatencyModel(latencies.model_copy(update=change), *chain, IMAGES, "network")

    def test_other_layers(self, chain: Pruned, latencies: LatencyTable) -> None:
        layers = latencies.layers
        first = layers["0"]
        for changed, message in (
            ({path: layer for path, layer in layers.items() if path != "2"}, "lacks the layer '2'"),
            ({**layers, "7": first}, "has the layer '7'"),
            ({**layers, "0": first.model_copy(update={"weight": (5, 3, 3, 3)})}, "has other shapes for the layer '0'"),
            ({**layers, "0": first.model_copy(update={"positions": 4})}, "has other shapes for the layer '0'"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                LatencyModel(latencies.model_copy(update={"layers": changed}), *chain, IMAGES, "network")

    def test_a_dense_network_that_takes_no_time(self, chain: Pruned, latencies: LatencyTable) -> None:
        with pytest.raises(ConfigurationError, match="gives the complete network"):
            LatencyModel(latencies.model_copy(update={"remainder": -1e9}), *chain, IMAGES, "network")

    @pytest.mark.parametrize(
        ("field", "value"),
        [("outputs", [4, 1]), ("inputs", []), ("seconds", [[1.0]]), ("seconds", [[1.0], [-1.0]]), ("positions", "x")],
    )
    def test_files_that_make_no_sense(self, latencies: LatencyTable, tmp_path: Path, field: str, value: Any) -> None:
        tree = latencies.model_dump(mode="json")
        tree["layers"]["0"][field] = value
        (tmp_path / "table.json").write_text(json.dumps(tree))
        with pytest.raises(ConfigurationError, match=r"table\.json is no latency table: layers\.0"):
            read_latency_table(tmp_path / "table.json")

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        (tmp_path / "cut.json").write_text("{")
        (tmp_path / "list.json").write_text("[]")
        for name, error in (("cut", FileError), ("list", ConfigurationError), ("missing", FileError)):
            with pytest.raises(error, match=f"{name}.json"):
                read_latency_table(tmp_path / f"{name}.json")


def test_written_and_read(chain: Pruned, tmp_path: Path) -> None:
    latencies = made_up_table(*chain, IMAGES, lambda out, into: 1e-3 * out / into)
    write_latency_table(tmp_path / "table.json", latencies)
    again = read_latency_table(tmp_path / "table.json")
    assert again == latencies and again.sha256 == latencies.sha256
    assert again.model_copy(update={"remainder": 1e-9}).sha256 != latencies.sha256
