"""HRank, Taylor, SNIP, GraSP and SynFlow against slow, obvious references."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import odd_networks
import pytest
import torch
from fitted_networks import NETWORKS, Build, EveryPlace, inputs_and_outputs, make_baseline
from torch import Tensor, nn
from torch.nn import functional

from recognizers.criteria import criterion
from recognizers.criteria.filters import filters, per_filter, per_unit
from recognizers.criteria.flow import flow, linearised, schedule
from recognizers.criteria.gradients import TEMPERATURE, gradient, hessian_product
from recognizers.data import Examples, Normalization, Splits
from recognizers.recognizer import Recognizer
from recognizers.recovery import recalibrate

NAMES = ("hrank", "taylor", "snip", "grasp", "synflow")
Make = Callable[[Build], Recognizer]


@pytest.fixture(scope="module")
def make(digits: tuple[Splits, Normalization], enliven: Callable[..., nn.Module]) -> Make:
    """Of so few images that every criterion takes all of them, in one batch."""
    return lambda build: Recognizer(make_baseline(digits, enliven, build, images=48))


def _scores(name: str, recognizer: Recognizer) -> np.ndarray:
    return criterion(name)(recognizer, np.random.default_rng(0))


def _examples(recognizer: Recognizer) -> tuple[Tensor, Tensor]:
    train = recognizer.splits.train
    return recognizer.normalization.normalize(train.images), train.labels


def _filters_of(recognizer: Recognizer, network: nn.Module, unit: int) -> list[tuple[nn.Module, int]]:
    """The module and index of each filter that a unit has."""
    return [
        (module, int(index))
        for path, module in filters(network, recognizer.table).items()
        for index in np.flatnonzero(recognizer.table.slots[path].out_units == unit)
    ]


def _weights(network: nn.Module) -> list[nn.Parameter]:
    return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "build",
    [*NETWORKS.values(), *odd_networks.CUT.values(), *odd_networks.OTHERS.values(), odd_networks.TwiceUsed, EveryPlace],
)
def test_scores_are_finite_and_tell_units_apart(make: Make, build: Build, name: str) -> None:
    recognizer = make(build)
    scores = _scores(name, recognizer)
    assert scores.shape == (recognizer.n_units,) and np.isfinite(scores).all()
    assert len(np.unique(scores)) > recognizer.n_units / 2


class TestHRank:
    @pytest.mark.parametrize("name", ["chain", "no norm", "residual", "dense"])
    def test_mean_rank_map_by_map(self, make: Make, name: str) -> None:
        recognizer = make(NETWORKS[name])
        seen = inputs_and_outputs(recognizer.baseline.network, _examples(recognizer)[0])
        ranks: dict[int, list[int]] = {unit: [] for unit in range(recognizer.n_units)}
        for path, slot in recognizer.table.slots.items():
            if slot.in_units is None:
                continue
            for image in seen[path][0]:
                for unit in sorted(set(slot.in_units) - {-1}):
                    own = image[slot.in_units == unit]
                    if own.dim() == 1:  # flattened: of 2 x 2, or a single value
                        own = own.reshape(1, round(len(own) ** 0.5), -1)
                    ranks[unit] += [int(np.linalg.matrix_rank(one)) for one in own.numpy()]
        expected = np.array([np.mean(of_unit) for of_unit in ranks.values()])
        scores = _scores("hrank", recognizer)
        assert (scores >= expected).all()
        assert (scores - expected <= [0.5 / len(of_unit) + 1e-9 for of_unit in ranks.values()]).all()

    def test_equal_ranks_are_ordered_by_l1(self, make: Make) -> None:
        """What a linear layer reads of another are single values, here never 0."""
        recognizer = make(NETWORKS["chain"])
        recognizer.baseline.network.get_parameter("9.bias").data.fill_(100.0)
        units = recognizer.table.layers[-1].units
        ranks, norms = _scores("hrank", recognizer)[units], _scores("l1", recognizer)[units]
        assert ranks.argsort().tolist() == norms.argsort().tolist()
        assert ranks == pytest.approx(1, abs=1 / 48)

    def test_dead_units_go_first(self, make: Make) -> None:
        recognizer = make(NETWORKS["chain"])
        norm = recognizer.baseline.network.get_submodule("1")
        with torch.no_grad():
            norm.get_parameter("weight")[3], norm.get_parameter("bias")[3] = 0.0, -1.0
        assert _scores("hrank", recognizer)[:6].argmin() == 3


class TestTaylor:
    @pytest.mark.parametrize(
        "build", [NETWORKS["chain"], NETWORKS["residual"], NETWORKS["grouped"], odd_networks.TwiceUsed]
    )
    def test_image_by_image(self, make: Make, build: Build) -> None:
        recognizer = make(build)
        network, expected = recognizer.network, np.zeros(recognizer.n_units)
        images, labels = _examples(recognizer)
        for image, label in zip(images, labels, strict=True):
            network.zero_grad()
            functional.cross_entropy(network(image[None]), label[None]).backward()
            for unit in range(recognizer.n_units):
                for module, index in _filters_of(recognizer, network, unit):
                    change = 0.0
                    for parameter in module.parameters():
                        assert parameter.grad is not None
                        change += float((parameter.grad[index] * parameter[index].detach()).sum())
                    expected[unit] += change**2 / len(images)
        np.testing.assert_allclose(_scores("taylor", recognizer), expected, rtol=1e-3, atol=1e-6 * expected.max())


class TestSnip:
    @pytest.mark.parametrize("name", ["chain", "residual", "grouped"])
    def test_gradients_times_weights(self, make: Make, name: str) -> None:
        recognizer = make(NETWORKS[name])
        network, (images, labels) = recognizer.network, _examples(recognizer)
        recalibrate(network, images, len(images), "float32")
        functional.cross_entropy(network(images), labels).backward()
        expected = np.zeros(recognizer.n_units)
        for unit in range(recognizer.n_units):
            for module, index in _filters_of(recognizer, network, unit):
                weight = module.get_parameter("weight")
                assert weight.grad is not None
                expected[unit] += float((weight.grad[index] * weight[index].detach()).abs().sum())
        np.testing.assert_allclose(_scores("snip", recognizer), expected, rtol=1e-3, atol=1e-6 * expected.max())

    @pytest.mark.parametrize("name", ["snip", "grasp"])
    def test_statistics_of_an_untrained_network_do_not_count(self, make: Make, name: str) -> None:
        recognizer = make(NETWORKS["chain"])
        before = _scores(name, recognizer)
        for module in recognizer.baseline.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        np.testing.assert_allclose(_scores(name, recognizer), before, rtol=1e-6)


class TestGrasp:
    @pytest.mark.parametrize("name", ["chain", "residual"])
    def test_what_less_of_a_filter_takes_from_the_flow_of_gradients(self, make: Make, name: str) -> None:
        """By finite differences of ``g^T g`` in float64; so what takes least goes first."""
        recognizer = make(NETWORKS[name])
        network, (images, labels) = recognizer.network, _examples(recognizer)
        recalibrate(network, images, len(images), "float32")
        network, images = network.double(), images.double()
        weights = _weights(network)

        def squared_gradient() -> float:
            loss = functional.cross_entropy(network(images) / TEMPERATURE, labels)
            return sum(float(slope.square().sum()) for slope in torch.autograd.grad(loss, weights))

        expected, step = np.zeros(recognizer.n_units), 1e-7  # no ReLU switches
        for unit in range(recognizer.n_units):
            flows = []
            for sign in (1, -1):
                changed = _filters_of(recognizer, network, unit)
                before = [module.get_parameter("weight").data.clone() for module, _ in changed]
                for module, index in changed:
                    module.get_parameter("weight").data[index] *= 1 + sign * step
                flows.append(squared_gradient())
                for (module, _), weight in zip(changed, before, strict=True):
                    module.get_parameter("weight").data.copy_(weight)
            expected[unit] = (flows[0] - flows[1]) / (2 * step) / 2
        assert (expected < 0).any() and (expected > 0).any()
        np.testing.assert_allclose(_scores("grasp", recognizer), expected, rtol=1e-3, atol=1e-4 * abs(expected).max())

    def test_hessian_product_by_differences_of_the_gradient(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        inputs, labels = torch.randn(20, 5, dtype=torch.float64), torch.randint(3, (20,))
        weights = list(network.parameters())
        vector = [torch.randn_like(weight) for weight in weights]

        def losses(parts: int) -> Callable[[], object]:
            return lambda: (
                functional.cross_entropy(network(part), right, reduction="sum") / 20
                for part, right in zip(inputs.tensor_split(parts), labels.tensor_split(parts), strict=True)
            )

        found = hessian_product(losses(3), weights, vector)  # type: ignore[arg-type]
        slopes, step = [], 1e-5
        for sign in (1, -2):
            with torch.no_grad():
                for weight, part in zip(weights, vector, strict=True):
                    weight.add_(part, alpha=sign * step)
            slopes.append(gradient(losses(1), weights))  # type: ignore[arg-type]
        for product, forward, back in zip(found, *slopes, strict=True):
            torch.testing.assert_close(product, (forward - back) / (2 * step), rtol=1e-6, atol=1e-8)


class TestSynflow:
    @pytest.mark.parametrize("name", ["chain", "no norm", "residual", "dense", "repeated"])
    def test_what_flows_into_a_unit_flows_out_of_it(self, make: Make, name: str) -> None:
        """The conservation law: of every unit, and so of every layer that takes all."""
        recognizer = make(NETWORKS[name])
        network, table = linearised(recognizer.network), recognizer.table
        image = torch.ones(1, 1, 8, 8, dtype=torch.float64)
        total = float(network(image).detach().sum())
        modules = {
            path: module for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
        }
        flows = dict(zip(modules, flow(network, list(modules.values()), image), strict=True))
        into = per_unit(table, {path: per_filter(flows[path]) for path in filters(network, table)})
        out = np.zeros(recognizer.n_units)
        for path, slot in table.slots.items():
            if slot.in_units is not None:
                by_input = flows[path].transpose(0, 1).flatten(1).sum(1).detach().numpy()
                np.add.at(out, slot.in_units[slot.in_units >= 0], by_input[slot.in_units >= 0])
        np.testing.assert_allclose(into, out, rtol=1e-9)
        if name in ("chain", "no norm"):
            sums = [into[layer.units].sum() for layer in table.layers]
            assert sums == pytest.approx([total] * len(sums))

    @pytest.mark.parametrize("name", ["no norm", "dense"])
    def test_rounds_one_by_one(self, make: Make, name: str) -> None:
        """A filter's flow is what the output loses without it, the network being linear in each layer's weights."""
        recognizer = make(NETWORKS[name])
        recognizer.zero_out(np.array([1, 8]))
        network, table = linearised(copy.deepcopy(recognizer.baseline.network)), recognizer.table
        image = torch.ones(1, 1, 8, 8, dtype=torch.float64)
        kept, order = recognizer.mask, [1, 8]

        def output(without: list[int]) -> float:
            state = copy.deepcopy(network.state_dict())
            for unit in without:
                for module, index in _filters_of(recognizer, network, unit):
                    module.get_parameter("weight").data[index] = 0
            result = float(network(image).detach().sum())
            network.load_state_dict(state)
            return result

        def losses() -> np.ndarray:
            gone = np.flatnonzero(kept == 0).tolist()
            return np.array([output(gone) - output([*gone, unit]) for unit in range(len(kept))])

        for left in schedule(int(kept.sum()), len(table.layers)):
            number = int(kept.sum()) - left
            lost = losses() if number else np.zeros(len(kept))
            best = {layer.start + int(np.where(kept, lost, -1)[layer.units].argmax()) for layer in table.layers}
            candidates = [unit for unit in np.argsort(lost) if kept[unit] and unit not in best]
            order += candidates[:number]
            kept[candidates[:number]] = 0
        assert kept.sum() == len(table.layers), "one of each stays to the end"
        assert _scores("synflow", recognizer).argsort().tolist() == [*order, *np.flatnonzero(kept)]

    def test_the_schedule_descends_exponentially(self) -> None:
        left = schedule(1000, 10)
        assert len(left) == 100 and left[-1] == 10 and left[49] == 100
        assert all(later <= sooner for sooner, later in itertools.pairwise(left))

    def test_no_data_are_looked_at(self, make: Make) -> None:
        recognizer = make(NETWORKS["chain"])
        before = _scores("synflow", recognizer)
        train = recognizer.splits.train
        blank = Examples(torch.zeros_like(train.images), train.labels)
        recognizer.baseline.splits = replace(recognizer.splits, train=blank)
        assert np.array_equal(_scores("synflow", recognizer), before)
