"""Criteria that look at a layer's consumers, against their definitions on samples."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import odd_networks
import pytest
import torch
from fitted_networks import (
    NETWORKS,
    SITES,
    Build,
    EveryPlace,
    columns_of,
    inputs_and_outputs,
    make_baseline,
    rows_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recognizers.baseline import Baseline
from recognizers.criteria import criterion
from recognizers.criteria.consumers import grow, lasso_order
from recognizers.data import Normalization, Splits
from recognizers.errors import ConfigurationError
from recognizers.recognizer import Recognizer
from recognizers.reconstruction.recipe import Recipe
from recognizers.units import Layer

NAMES = ("reap", "cp", "thinet", "unification")
Make = Callable[[Build], Recognizer]


@pytest.fixture(scope="module")
def make(digits: tuple[Splits, Normalization], enliven: Callable[..., nn.Module]) -> Make:
    return lambda build: Recognizer(make_baseline(digits, enliven, build, images=80))


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Criteria look at all places, and have hardly any ridge."""
    monkeypatch.setattr("recognizers.criteria.consumers.RECIPE", Recipe("independent", positions=64, ridge=1e-8))


def _scores(name: str, recognizer: Recognizer) -> np.ndarray:
    return criterion(name)(recognizer, np.random.default_rng(0))


@dataclass
class View:
    """What one consumer (or a group of its channels) reads of a layer's units, on samples.

    Attributes:
        inputs: ``[N, d]``, a constant one last where it can have an offset.
        outputs: ``[N, m]``.
        units: of each input, -1 where it belongs to none.
        parts: what each unit of the layer contributes to the outputs, ``[n, N, m]``.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    units: np.ndarray
    parts: np.ndarray

    @property
    def energy(self) -> float:
        return float(np.square(self.outputs - self.outputs.mean(0)).sum())

    def error(self, gone: list[int]) -> float:
        """Least squared error without some units, relative to the energy."""
        kept = self.inputs[:, ~np.isin(self.units, gone)]
        solution = np.linalg.lstsq(kept, self.outputs, rcond=None)[0]
        return float(np.square(kept @ solution - self.outputs).sum()) / self.energy


def _views(baseline: Baseline, name: str, layer: Layer) -> list[View]:
    seen = inputs_and_outputs(baseline.network, baseline.calibration(1000))
    views = []
    for path, norm, _ in SITES[name]:
        slot, module = baseline.table.slots.get(path), baseline.network.get_submodule(path)
        if slot is None or slot.in_units is None or not set(layer.units) <= set(slot.in_units):
            continue
        assert isinstance(module, nn.Conv2d | nn.Linear)
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        read, outputs = columns_of(module, seen[path][0]), rows_of(seen[norm or path][1])
        scale = np.ones(outputs.shape[1])
        if norm is not None:
            follower = baseline.network.get_submodule(norm)
            assert isinstance(follower, nn.BatchNorm2d) and follower.running_var is not None
            scale = (follower.weight / (follower.running_var + follower.eps).sqrt()).detach().double().numpy()
        units = slot.in_units.repeat(read.shape[1] // len(slot.in_units))
        weights = module.weight.detach().flatten(1).double().numpy() * scale[:, None]  # [m, d]
        offset = norm is not None or module.bias is not None
        for inputs, targets, own, filters in zip(
            np.split(read.numpy(), groups, 1),
            np.split(outputs.numpy(), groups, 1),
            np.split(units, groups),
            np.split(weights, groups),
            strict=True,
        ):
            parts = np.stack([inputs[:, own == unit] @ filters[:, own == unit].T for unit in layer.units])
            constant = np.ones((len(inputs), int(offset)))
            known = np.concatenate([own - layer.start, np.full(int(offset), -1)])
            centred = parts - parts.mean(1, keepdims=True) if offset else parts
            views.append(View(np.concatenate([inputs, constant], 1), targets, known, centred))
    return views


class TestOnNetworks:
    @pytest.mark.usefixtures("exact")
    @pytest.mark.parametrize("name", NETWORKS)
    def test_reap_removes_what_costs_least_once_all_is_refitted(self, make: Make, name: str) -> None:
        """And scores are the error reached."""
        recognizer = make(NETWORKS[name])
        scores, compared = _scores("reap", recognizer), 0
        for layer in recognizer.table.layers:
            if not (views := _views(recognizer.baseline, name, layer)):
                continue
            compared += 1
            gone: list[int] = []
            start = sum(view.error([]) for view in views)
            for unit in np.argsort(scores[layer.units]).tolist():
                errors = {
                    other: sum(view.error([*gone, other]) for view in views)
                    for other in range(len(layer))
                    if other not in gone
                }
                gone.append(unit)
                assert errors[unit] == pytest.approx(min(errors.values()), rel=1e-3, abs=1e-5)
                assert scores[layer.start + unit] == pytest.approx(errors[unit] - start, rel=1e-3, abs=1e-5)
        assert compared >= len(recognizer.table.layers) - 1, "all but what a depthwise convolution reads"

    @pytest.mark.usefixtures("exact")
    @pytest.mark.parametrize("name", NETWORKS)
    def test_thinet_grows_the_set_whose_contributions_cancel_best(self, make: Make, name: str) -> None:
        recognizer = make(NETWORKS[name])
        scores = _scores("thinet", recognizer)
        for layer in recognizer.table.layers:
            views, gone = _views(recognizer.baseline, name, layer), list[int]()
            for unit in np.argsort(scores[layer.units]).tolist() if views else []:
                energies = {
                    other: sum(
                        float(np.square(view.parts[[*gone, other]].sum(0)).sum()) / view.energy for view in views
                    )
                    for other in range(len(layer))
                    if other not in gone
                }
                gone.append(unit)
                assert energies[unit] == pytest.approx(min(energies.values()), rel=1e-3, abs=1e-5)

    @pytest.mark.usefixtures("exact")
    @pytest.mark.parametrize("name", ["reap", "unification"])
    def test_one_of_two_equal_units_goes_first_and_costs_nothing(self, make: Make, name: str) -> None:
        recognizer = make(NETWORKS["chain"])
        network = recognizer.baseline.network
        convolution, norm = network.get_submodule("4"), network.get_submodule("5")
        for tensor in (*convolution.parameters(), *norm.parameters(), *norm.buffers()):
            if tensor.dim():
                tensor.data[6] = tensor.data[1]
        layer = recognizer.table.layers[1]
        scores = _scores(name, recognizer)[layer.units]
        first = int(scores.argmin())
        assert first in (1, 6) and scores[first] < 1e-5 < 0.1 * np.sort(scores)[1]

    @pytest.mark.parametrize("name", NAMES)
    def test_dead_units_go_first_and_dead_consumers_do_no_harm(self, make: Make, name: str) -> None:
        recognizer = make(NETWORKS["dense"])
        network = recognizer.baseline.network
        with torch.no_grad():
            network.get_submodule("norm1").weight[3], network.get_submodule("norm1").bias[3] = 0.0, -1.0  # type: ignore[index, operator]
            network.get_parameter("conv2.weight").zero_()  # conv1 is still read by conv3
        scores = _scores(name, recognizer)
        assert np.isfinite(scores).all() and scores.max() < 100, "relative to what consumers put out"
        assert scores[:5].argmin() == 3

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        "build", [*NETWORKS.values(), *odd_networks.CUT.values(), *odd_networks.OTHERS.values(), EveryPlace]
    )
    def test_scores_are_finite_and_tell_units_apart(self, make: Make, build: Build, name: str) -> None:
        recognizer = make(build)
        scores = _scores(name, recognizer)
        assert scores.shape == (recognizer.n_units,) and np.isfinite(scores).all()
        read = [layer for layer in recognizer.table.layers if len(np.unique(scores[layer.units])) == len(layer)]
        assert read or build is odd_networks.Transformer
        for layer in set(recognizer.table.layers) - set(read):
            assert (scores[layer.units] == scores.max()).all(), "what nothing known reads comes last"

    @pytest.mark.parametrize("name", NAMES)
    def test_what_cannot_be_traced_is_refused(self, make: Make, name: str) -> None:
        with pytest.raises(ConfigurationError, match="TwiceUsed cannot be reconstructed"):
            _scores(name, make(odd_networks.TwiceUsed))


class TestLasso:
    @given(st.lists(st.floats(-10, 10).filter(lambda value: abs(value) > 0.05), min_size=2, max_size=7, unique_by=abs))
    @settings(max_examples=60, deadline=None)
    def test_of_orthonormal_contributions_the_smallest_coefficients_vanish_first(self, pulls: list[float]) -> None:
        """They are the pulls, less the penalty; each costs its square."""
        order, added = lasso_order(np.eye(len(pulls)), np.array(pulls))
        expected = np.argsort(np.abs(pulls)).tolist()
        assert order == expected
        np.testing.assert_allclose(added, np.square(pulls)[expected], rtol=1e-6, atol=1e-9)

    def test_of_orthogonal_contributions_it_is_the_pull_that_counts(self) -> None:
        """Not the coefficient: 3 / 1, 5 / 100 and 1 / 0.01 here."""
        order, added = lasso_order(np.diag([1.0, 100.0, 0.01]), np.array([3.0, 5.0, 1.0]))
        assert order == [2, 0, 1]
        assert added == pytest.approx([1 / 0.01, 9.0, 25 / 100])

    def test_of_two_alike_one_is_enough(self) -> None:
        """The target is mostly the first; the second, much like it, enters late."""
        inputs = np.random.default_rng(0).normal(size=(200, 3))
        inputs[:, 1] += 3 * inputs[:, 0]
        target = inputs @ [2.0, 0.3, 1.0]
        order, added = lasso_order(inputs.T @ inputs, inputs.T @ target)
        errors = [np.linalg.lstsq(inputs[:, order[gone:]], target, rcond=None)[1].sum() for gone in range(3)]
        errors.append(float(target @ target))
        assert added == pytest.approx(np.diff(errors), rel=1e-6, abs=1e-6)
        assert order[-1] == 1, "it explains most by itself"

    def test_of_what_never_varies_rounding_is_left(self) -> None:
        products = np.array([[4.0, 1e-9, 1.0], [1e-9, -1e-12, 1e-9], [1.0, 1e-9, 2.0]])
        order, added = lasso_order(products, np.array([4.0, 1e-8, 3.0]))
        assert order == [1, 2, 0]
        assert added == pytest.approx([0, 44 / 7 - 4, 4])

    def test_contributions_that_explain_nothing(self) -> None:
        order, added = lasso_order(np.diag([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 4.0]))
        assert order[-1] == 2 and sorted(order) == [0, 1, 2]
        assert added == pytest.approx([0, 0, 8])


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_greedy_growth_against_all_candidates(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(6, 9))
    order, added = grow(values @ values.T)
    energy = 0.0
    for number, unit in enumerate(order):
        energies = [float(np.square(values[[*order[:number], other]].sum(0)).sum()) for other in sorted(order[number:])]
        assert np.square(values[order[: number + 1]].sum(0)).sum() == pytest.approx(min(energies))
        assert added[number] == pytest.approx(max(min(energies) - energy, 0.0), abs=1e-9)
        energy = min(energies)
        assert unit in order
