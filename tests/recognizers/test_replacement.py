"""Filter replacement: which filters become copies of which, and what the network computes afterwards."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fitted_networks import NETWORKS, make_baseline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recognizers.baseline import Baseline
from recognizers.data import Normalization, Splits
from recognizers.errors import UnknownNameError
from recognizers.preparation import FilterReplacement, Provenance
from recognizers.preparation.replacement import choose, replaced_network
from recognizers.preparation.retraining import replace_filters
from recognizers.training import EpochRecord, RetrainingConfig
from recognizers.units import Layer, Slot, UnitTable
from recognizers.zero_out import insert_zero_outs, set_mask

MakeBaseline = Callable[..., Baseline]


@pytest.fixture(params=NETWORKS)
def baseline(request: pytest.FixtureRequest, digits: tuple[Splits, Normalization], enliven: object) -> Baseline:
    return make_baseline(digits, enliven, NETWORKS[request.param])


def _images(baseline: Baseline) -> torch.Tensor:
    return baseline.normalization.normalize(baseline.splits.reward.images).double()


@torch.no_grad()
def _logits(network: nn.Module, baseline: Baseline) -> torch.Tensor:
    return copy.deepcopy(network).double().eval()(_images(baseline))


@torch.no_grad()
def _masked_logits(baseline: Baseline, removed: np.ndarray) -> torch.Tensor:
    network = copy.deepcopy(baseline.network).double()
    insert_zero_outs(network, baseline.table)
    mask = np.ones(baseline.table.n_units, dtype=np.int8)
    mask[removed] = 0
    set_mask(network, mask)
    return network(_images(baseline))


def _scores(baseline: Baseline, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(baseline.table.n_units)


def _table(*sizes: int) -> UnitTable:
    """Layers of one producer and one reader each."""
    layers, slots, start = [], {}, 0
    for number, size in enumerate(sizes):
        layers.append(Layer(f"layer{number}", (f"layer{number}",), start, start + size))
        slots[f"layer{number}"] = Slot(out_units=np.arange(start, start + size))
        start += size
    return UnitTable(tuple(layers), slots)


class TestChoose:
    def test_by_hand(self) -> None:
        scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
        sources, targets = choose(_table(6), scores, 0.34, "top")
        assert (targets.tolist(), sources.tolist()) == ([5, 1], [0, 2])
        sources, targets = choose(_table(6), scores, 0.34, "best")
        assert (targets.tolist(), sources.tolist()) == ([5, 1], [0, 0])

    def test_counts_are_those_of_the_rate_in_spite_of_rounding(self) -> None:
        _, targets = choose(_table(100, 1, 3), np.arange(104.0), 0.29, "split")
        assert targets.tolist() == list(range(29))

    @settings(max_examples=50, deadline=None)
    @given(
        sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
        rate=st.floats(0, 0.5),
        variant=st.sampled_from(["top", "best", "split"]),
        seed=st.integers(0, 99),
    )
    def test_invariants(self, sizes: list[int], rate: float, variant: str, seed: int) -> None:
        table = _table(*sizes)
        scores = np.random.default_rng(seed).integers(0, 3, table.n_units).astype(float)
        sources, targets = choose(table, scores, rate, variant)
        assert len(set(targets)) == len(targets) == len(sources)
        assert not set(sources) & set(targets), "a copy of a copy would depend on the order"
        assert (table.layer_of_unit[sources] == table.layer_of_unit[targets]).all()
        assert (scores[sources] >= scores[targets]).all()
        for index, layer in enumerate(table.layers):
            own = table.layer_of_unit[targets] == index
            assert own.sum() == int(rate * len(layer) + 1e-9)
            rest = np.setdiff1d(layer.units, targets[own])
            assert not own.any() or scores[targets[own]].max() <= scores[rest].min()
            if variant == "best":
                assert len(set(sources[own])) <= 1
            else:
                assert len(set(sources[own])) == own.sum()

    def test_only_units_that_occur_as_often_are_exchanged(self) -> None:
        """The second half of the layer is read twice."""
        table = _table(4)
        table.slots["reader"] = Slot(in_units=np.array([0, 1, 2, 3, 2, 3]))
        sources, targets = choose(table, np.array([1.0, 2.0, 4.0, 3.0]), 0.5, "top")
        assert (targets.tolist(), sources.tolist()) == ([0, 3], [1, 2])

    def test_nothing_to_prune(self) -> None:
        sources, targets = choose(UnitTable((), {}), np.empty(0), 0.5, "top")
        assert len(sources) == len(targets) == 0


class TestNetworks:
    @pytest.mark.parametrize("rate", [0.2, 0.5])
    def test_split_computes_what_the_network_without_the_replaced_units_computes(
        self, baseline: Baseline, rate: float
    ) -> None:
        wanted = FilterReplacement(variant="split", rate=rate)
        network = replaced_network(baseline.network, baseline.table, _scores(baseline), wanted)
        _, targets = choose(baseline.table, _scores(baseline), rate, "split")
        assert len(targets)
        actual, expected = _logits(network, baseline), _masked_logits(baseline, targets)
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
        assert not torch.allclose(actual, _logits(baseline.network, baseline), atol=1e-3)

    @pytest.mark.parametrize("variant", ["top", "best", "split"])
    def test_copies_are_copies_in_all_that_makes_a_filter(self, baseline: Baseline, variant: str) -> None:
        wanted = FilterReplacement(variant=variant, rate=0.4)
        network = replaced_network(baseline.network, baseline.table, _scores(baseline), wanted)
        sources, targets = choose(baseline.table, _scores(baseline), 0.4, variant)
        source_of = dict(zip(targets.tolist(), sources.tolist(), strict=True))
        for path, slot in baseline.table.slots.items():
            before, after = baseline.network.get_submodule(path), network.get_submodule(path)
            expected = {name: tensor.clone() for name, tensor in before.state_dict().items()}
            if slot.out_units is not None:
                for target, source in source_of.items():
                    to, of = np.flatnonzero(slot.out_units == target), np.flatnonzero(slot.out_units == source)
                    for name, tensor in before.state_dict().items():
                        if tensor.dim():
                            expected[name][to] = tensor[of]
            for name, tensor in after.state_dict().items():
                if variant == "split" and name == "weight" and slot.in_units is not None:
                    continue  # those who read have other weights
                assert torch.equal(tensor, expected[name]), (path, name)

    def test_plain_copies_reach_their_readers_as_the_original_does(self, baseline: Baseline) -> None:
        """Reading a copy is reading the original: by moving the reader's weights to it, nothing changes."""
        wanted = FilterReplacement(variant="best", rate=0.4)
        network = replaced_network(baseline.network, baseline.table, _scores(baseline), wanted)
        sources, targets = choose(baseline.table, _scores(baseline), 0.4, "best")
        moved = copy.deepcopy(network)
        with torch.no_grad():
            for path, slot in baseline.table.slots.items():
                module = moved.get_submodule(path)
                if slot.in_units is None or not isinstance(module, nn.Conv2d | nn.Linear):
                    continue
                for source, target in zip(sources, targets, strict=True):
                    to, of = (np.flatnonzero(slot.in_units == unit) for unit in (source, target))
                    width = module.weight.shape[1]
                    module.weight[:, to[to < width]] += module.weight[:, of[of < width]]
                    module.weight[:, of[of < width]] = 0
        torch.testing.assert_close(_logits(moved, baseline), _logits(network, baseline), rtol=1e-5, atol=1e-5)

    def test_nothing_replaced(self, baseline: Baseline) -> None:
        before = copy.deepcopy(baseline.state)
        network = replaced_network(baseline.network, baseline.table, _scores(baseline), FilterReplacement(rate=0))
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    def test_the_original_stays(self, baseline: Baseline) -> None:
        before = copy.deepcopy(baseline.state)
        replaced_network(
            baseline.network, baseline.table, _scores(baseline), FilterReplacement(variant="split", rate=0.5)
        )
        assert all(torch.equal(tensor, before[name]) for name, tensor in baseline.state.items())

    def test_shared_weights_are_split_once(self, digits: object, enliven: object) -> None:
        class Twice(nn.Module):
            """Two layers read the same units with the same weights."""

            def __init__(self) -> None:
                super().__init__()
                self.stem = nn.Conv2d(1, 6, 3)
                self.one, self.other = nn.Linear(6, 10), nn.Linear(6, 10)
                self.other.weight = self.one.weight

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                features = self.stem(images).relu().mean((2, 3))
                logits: torch.Tensor = self.one(features) + self.other(features)
                return logits

        baseline = make_baseline(digits, enliven, Twice)
        wanted = FilterReplacement(variant="split", rate=0.5)
        network = replaced_network(baseline.network, baseline.table, _scores(baseline), wanted)
        _, targets = choose(baseline.table, _scores(baseline), 0.5, "split")
        torch.testing.assert_close(_logits(network, baseline), _masked_logits(baseline, targets))


class TestRetraining:
    TRAINING = RetrainingConfig(epochs=2, batch_size=32, learning_rate=0.01, precision="float32")

    def test_replaces_by_the_criterion_then_trains(self, digits: object, enliven: object) -> None:
        baseline = make_baseline(digits, enliven, NETWORKS["chain"])
        before = copy.deepcopy(baseline.state)
        wanted = FilterReplacement(criterion="l1", rate=0.25, training=self.TRAINING)
        records: list[EpochRecord] = []
        prepared = replace_filters(baseline, wanted, on_epoch=records.append)
        assert prepared.provenance == Provenance(preparation=wanted)
        assert [record.epoch for record in records] == [1, 2]
        assert prepared.history == tuple(records)
        assert all(torch.equal(tensor, before[name]) for name, tensor in baseline.state.items())
        assert prepared.sha256 != baseline.sha256
        again = replace_filters(baseline, wanted)
        assert again.sha256 == prepared.sha256
        further = replace_filters(prepared, wanted, on_epoch=records.append)
        assert [record.epoch for record in further.history] == [1, 2, 3, 4]

    def test_a_checkpoint_is_gone_on_from(self, digits: object, enliven: object, tmp_path: object) -> None:
        baseline = make_baseline(digits, enliven, NETWORKS["chain"])
        wanted = FilterReplacement(criterion="l1", rate=0.25, training=self.TRAINING)
        path = tmp_path / "retraining.checkpoint"

        def kill(record: EpochRecord) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            replace_filters(baseline, wanted, checkpoint=path, on_epoch=kill)
        records: list[EpochRecord] = []
        resumed = replace_filters(baseline, wanted, checkpoint=path, resume=True, on_epoch=records.append)
        assert [record.epoch for record in records] == [2]
        assert resumed.sha256 == replace_filters(baseline, wanted).sha256

    def test_unknown_criterion(self, digits: object, enliven: object) -> None:
        with pytest.raises(UnknownNameError, match="l1"):
            replace_filters(make_baseline(digits, enliven, NETWORKS["chain"]), FilterReplacement(criterion="l11"))
