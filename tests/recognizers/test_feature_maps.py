"""Feature maps against what modules are seen to read, and principal components against eigenvalues of all samples."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from fitted_networks import NETWORKS, EveryPlace, inputs_and_outputs, make_baseline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recognizers.baseline import Baseline
from recognizers.data import Normalization, Splits
from recognizers.feature_maps import visit_maps
from recognizers.principal_components import components, cumulative_contributions, layer_contributions
from recognizers.recognizer import Recognizer
from recognizers.sampling import training_sample

Make = Callable[[str], Baseline]


@pytest.fixture(scope="module")
def make(digits: tuple[Splits, Normalization], enliven: Callable[..., nn.Module]) -> Make:
    builds = {**NETWORKS, "every place": EveryPlace}
    return lambda name: make_baseline(digits, enliven, builds[name], images=30)


def _maps(network: nn.Module, baseline: Baseline, images: Tensor, batch: int = 30) -> list[list[Tensor]]:
    """Of each layer the maps of its places, batch after batch."""
    found: list[list[Tensor]] = [[] for _ in baseline.table.layers]
    visit_maps(network, baseline.table, images.split(batch), lambda layer, maps: found[layer].append(maps.clone()))
    return found


class TestMaps:
    def test_a_chain(self, make: Make) -> None:
        """Behind pooling; a linear layer's inputs are folded into maps of 2 x 2, and into single values."""
        baseline = make("chain")
        images = baseline.calibration(30)
        seen = inputs_and_outputs(baseline.network, images)
        maps = _maps(baseline.network, baseline, images)
        assert [len(places) for places in maps] == [1, 1, 1]
        assert torch.equal(maps[0][0], seen["4"][0])  # of the pool behind the first convolution, 4 x 4
        assert torch.equal(maps[1][0], seen["8"][0])
        assert maps[1][0].shape == (30, 8, 2, 2)
        assert torch.equal(maps[2][0], seen["11"][0][:, :, None, None])

    def test_tied_units_are_seen_wherever_they_are_read(self, make: Make) -> None:
        baseline = make("residual")
        images = baseline.calibration(30)
        seen = inputs_and_outputs(baseline.network, images)
        maps = _maps(baseline.network, baseline, images)
        for layer, places in zip(baseline.table.layers, maps, strict=True):
            readers = [
                path
                for path, slot in baseline.table.slots.items()
                if slot.in_units is not None and layer.start in slot.in_units
            ]
            assert len(readers) == len(places)
            for found in places:
                matches = [found.equal(seen[path][0].reshape(*found.shape)) for path in readers]
                assert any(matches)

    def test_units_that_are_read_twice_in_one_place(self, make: Make) -> None:
        """Each image then gives two maps of a unit."""
        baseline = make("repeated")
        images = baseline.calibration(30)
        inputs = inputs_and_outputs(baseline.network, images)["conv3"][0]
        slot = baseline.table.slots["conv3"].in_units
        assert slot is not None
        first = baseline.table.layers[0]
        once, twice = _maps(baseline.network, baseline, images)[0]
        assert len(once) == 30 and len(twice) == 60
        for unit, own in zip(first.units, twice.transpose(0, 1), strict=True):
            both = inputs[:, np.flatnonzero(slot == unit)].flatten(0, 1)
            assert sorted(own.sum((1, 2)).tolist()) == pytest.approx(sorted(both.sum((1, 2)).tolist()))

    def test_channels_last(self, make: Make) -> None:
        baseline = make("every place")
        images = baseline.calibration(30)
        seen = inputs_and_outputs(baseline.network, images)["narrow"][0]  # [N, H, W, C]
        layer = next(index for index, layer in enumerate(baseline.table.layers) if layer.name == "wide")
        (found,) = _maps(baseline.network, baseline, images)[layer]
        assert torch.equal(found, seen.permute(0, 3, 1, 2))

    def test_masked_units_are_empty_and_the_network_is_left_as_it_was(self, make: Make) -> None:
        recognizer = Recognizer(make("chain"))
        recognizer.zero_out(np.array([2, 6]))
        network = recognizer.network.train()
        hooks = [len(module._forward_pre_hooks) for module in network.modules()]
        maps = _maps(network, recognizer.baseline, recognizer.baseline.calibration(30))
        assert not maps[0][0][:, 2].any() and not maps[1][0][:, 0].any()
        assert maps[0][0][:, [0, 1, 3, 4, 5]].any((0, 2, 3)).all()
        assert network.training and hooks == [len(module._forward_pre_hooks) for module in network.modules()]


class TestComponents:
    @given(st.integers(0, 10**6), st.floats(0.01, 1), st.integers(1, 6))
    @settings(max_examples=100, deadline=None)
    def test_the_least_number_against_all(self, seed: int, contribution: float, rank: int) -> None:
        generator = np.random.default_rng(seed)
        samples = generator.normal(size=(50, rank)) @ generator.normal(size=(rank, 6))
        covariance = np.cov(samples.T)
        count = components(cumulative_contributions(covariance), contribution)
        # The best share that k directions can hold: singular values of the centred samples.
        shares = np.linalg.svd(samples - samples.mean(0))[1] ** 2
        shares /= shares.sum()
        assert 1 <= count <= rank
        assert shares[:count].sum() >= contribution - 1e-9
        assert count == 1 or shares[: count - 1].sum() < contribution + 1e-9

    def test_what_never_varies_takes_one(self) -> None:
        assert components(cumulative_contributions(np.zeros((4, 4))), 0.99) == 1

    def test_by_hand(self) -> None:
        cumulative = cumulative_contributions(np.diag([1.0, 6.0, 3.0]))
        assert cumulative == pytest.approx([0.6, 0.9, 1.0])
        assert [components(cumulative, share) for share in (0.5, 0.6, 0.61, 0.9, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]

    @pytest.mark.parametrize("name", [*NETWORKS, "every place"])
    def test_layers_against_the_eigenvalues_of_all_samples(self, make: Make, name: str) -> None:
        baseline = make(name)
        images = baseline.calibration(30)
        found = layer_contributions(baseline.network, baseline.table, images.split(7))
        for places, cumulative in zip(_maps(baseline.network, baseline, images), found, strict=True):
            samples = np.concatenate(
                [maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).double().numpy() for maps in places]
            )
            values = np.linalg.eigvalsh(np.cov(samples.T))[::-1]
            np.testing.assert_allclose(cumulative, np.cumsum(values) / values.sum(), atol=1e-7)

    def test_a_constant_layer_needs_one_unit(self, make: Make) -> None:
        baseline = make("chain")
        with torch.no_grad():
            baseline.network.get_parameter("1.weight").zero_()
            baseline.network.get_parameter("1.bias").fill_(0.3)
        first, second, _ = layer_contributions(baseline.network, baseline.table, [baseline.calibration(30)])
        assert (first == 1).all()
        assert second[0] < 1, "at the border there are zeros"


class TestSample:
    def test_it_is_of_the_training_images_and_follows_from_the_generator(self, make: Make) -> None:
        recognizer = Recognizer(make("chain"))
        train = recognizer.splits.train
        images, labels = training_sample(recognizer, 12, np.random.default_rng(3))
        again, _ = training_sample(recognizer, 12, np.random.default_rng(3))
        other, _ = training_sample(recognizer, 12, np.random.default_rng(4))
        assert torch.equal(images, again) and not torch.equal(images, other)
        pool = recognizer.normalization.normalize(train.images)
        index = [int((pool == image).flatten(1).all(1).nonzero()[0]) for image in images]
        assert len(set(index)) == 12
        assert torch.equal(labels, train.labels[index])

    def test_no_more_than_there_are(self, make: Make) -> None:
        images, labels = training_sample(Recognizer(make("chain")), 1000, np.random.default_rng(0))
        assert images.shape == (30, 1, 8, 8) and labels.shape == (30,)
