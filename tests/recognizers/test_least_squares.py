"""Least squares without some inputs: everything against fits made anew from the samples themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem, normal, random_problem
from torch import Tensor, nn

from recognizers.errors import ConfigurationError
from recognizers.reconstruction.layer import affine, input_units, parts
from recognizers.reconstruction.least_squares import eliminate, fit, moments
from recognizers.reconstruction.samples import positions, sampled_inputs, sampled_outputs

SEEDS = st.integers(0, 10**6)


LAYERS: dict[str, nn.Conv2d | nn.Linear] = {
    "linear": nn.Linear(6, 5),
    "1x1": nn.Conv2d(6, 5, 1),
    "3x3": nn.Conv2d(6, 5, 3, padding=1),
    "stride 2": nn.Conv2d(6, 5, 3, stride=2),
    "grouped": nn.Conv2d(6, 6, (3, 1), groups=2, padding=(1, 0), bias=False),
}


def _of_layer(name: str, seed: int) -> list[tuple[Problem, Tensor]]:
    """The problem of each part of a layer, for random feature maps, and the part's own weights.

    The targets are the layer's outputs and some noise.
    """
    torch.manual_seed(seed)
    layer = LAYERS[name].double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    features = normal(seed, 90, 6) if isinstance(layer, nn.Linear) else normal(seed, 20, 6, 5, 5)
    with torch.no_grad():
        outputs = layer(features)
    places = positions(outputs.shape, 9, torch.Generator().manual_seed(seed))
    read, given_out = sampled_inputs(layer, features, places).double(), sampled_outputs(outputs, places).double()
    units = input_units(layer, np.arange(6))
    problems = []
    for part in parts(layer):
        inputs = torch.cat([read[:, part.inputs], torch.ones(len(read), 1, dtype=torch.float64)], 1)
        noise = 0.5 * normal(seed + 1, len(read), len(part.outputs))
        of_input = units[part.inputs]
        groups = [(of_input == unit).nonzero().flatten() for unit in of_input.unique()]
        problems.append((Problem(inputs, given_out[:, part.outputs] + noise, groups), affine(layer, None, part)))
    return problems


@pytest.mark.parametrize("name", LAYERS)
class TestLayers:
    """With a column of ones for the offset, and no ridge."""

    def test_fits_reach_what_the_layer_computes(self, name: str) -> None:
        for problem, weights in _of_layer(name, 0):
            inputs = problem.inputs @ weights
            solved = fit(moments(problem.inputs, inputs), ridge=0).weights
            torch.testing.assert_close(solved, weights, rtol=1e-6, atol=1e-6)

    def test_errors_and_weights_after_one_removal(self, name: str) -> None:
        for problem, _ in _of_layer(name, 1):
            start = fit(problem.data, ridge=0)
            errors = start.removal_errors(problem.groups)
            least = problem.best([])[1]
            for unit, group in enumerate(problem.groups):
                weights, error = problem.best([unit])
                assert float(errors[unit]) == pytest.approx(error - least, rel=1e-6)
                torch.testing.assert_close(start.remove(group).weights, weights, rtol=1e-6, atol=1e-8)

    def test_successive_removals_are_those_of_refitting_every_candidate(self, name: str) -> None:
        for problem, _ in _of_layer(name, 2):
            count = len(problem.groups)
            order, added, (last,) = eliminate([fit(problem.data, ridge=0)], [problem.groups], count=count)
            gone: list[int] = []
            for unit, rise in zip(order, added, strict=True):
                candidates = {other: problem.best([*gone, other])[1] for other in range(count) if other not in gone}
                assert unit == min(candidates, key=candidates.__getitem__)
                assert rise == pytest.approx(candidates[unit] - problem.best(gone)[1], rel=1e-6)
                gone.append(unit)
            weights, error = problem.best(order)
            torch.testing.assert_close(last.weights, weights, rtol=1e-6, atol=1e-8)  # the offset alone
            assert sum(added) == pytest.approx(error - problem.best([])[1], rel=1e-6)


class TestRemoval:
    @given(SEEDS, st.integers(1, 3), st.data())
    @settings(max_examples=40, deadline=None)
    def test_any_set_at_once_or_one_after_the_other(self, seed: int, of_each: int, data: st.DataObject) -> None:
        problem = random_problem(seed, units=5, of_each=of_each)
        gone = data.draw(st.lists(st.integers(0, 4), unique=True, max_size=4))
        state = start = fit(problem.data, ridge=0)
        rises = 0.0
        for unit in gone:
            rises += float(state.removal_errors([problem.groups[unit]])[0])
            state = state.remove(problem.groups[unit])
        weights, error = problem.best(gone)
        tolerance = 1e-6 * float(weights.abs().max()) if gone else 1e-8
        torch.testing.assert_close(state.weights, weights, rtol=1e-6, atol=tolerance)
        together = torch.cat([problem.groups[unit] for unit in gone]) if gone else torch.empty(0, dtype=torch.int64)
        torch.testing.assert_close(start.remove(together).weights, weights, rtol=1e-6, atol=tolerance)
        assert rises == pytest.approx(error - problem.best([])[1], rel=1e-6, abs=1e-9)
        if gone:
            assert float(start.removal_errors([together])[0]) == pytest.approx(rises, rel=1e-6)

    def test_a_removal_leaves_the_start_as_it_was(self) -> None:
        problem = random_problem(0)
        start = fit(problem.data)
        inverse, weights = start.inverse.clone(), start.weights.clone()
        start.remove(problem.groups[1])
        eliminate([start], [problem.groups], count=3)
        assert torch.equal(start.inverse, inverse) and torch.equal(start.weights, weights)

    def test_units_of_different_sizes(self) -> None:
        problem = random_problem(3, units=3, of_each=2)
        sizes = Problem(
            problem.inputs, problem.targets, [torch.tensor([4]), torch.tensor([0, 1, 5]), torch.tensor([3])]
        )
        errors = fit(sizes.data, ridge=0).removal_errors(sizes.groups)
        expected = [sizes.best([unit])[1] - sizes.best([])[1] for unit in range(3)]
        assert errors.tolist() == pytest.approx(expected, rel=1e-6)

    @given(SEEDS)
    @settings(max_examples=20, deadline=None)
    def test_several_layers_that_read_the_same_units(self, seed: int) -> None:
        problems = [random_problem(seed, units=4, of_each=1), random_problem(seed + 9, units=4, of_each=3, outputs=2)]
        importance = [2.0, 0.5]
        starts = [fit(problem.data, ridge=0) for problem in problems]
        order, added, _ = eliminate(starts, [problem.groups for problem in problems], count=4, weights=importance)

        def error(gone: list[int]) -> float:
            return float(sum(one * problem.best(gone)[1] for one, problem in zip(importance, problems, strict=True)))

        for number, unit in enumerate(order):
            gone = order[:number]
            rises = {other: error([*gone, other]) - error(gone) for other in set(range(4)) - set(gone)}
            assert rises[unit] == pytest.approx(min(rises.values()), rel=1e-6)
            assert added[number] == pytest.approx(rises[unit], rel=1e-6)

    @pytest.mark.parametrize("at_once", [2, 3, 99])
    def test_several_at_once(self, at_once: int) -> None:
        """The cheapest of each round go together; what that costs is divided among them, and sums up all the same."""
        problem = random_problem(4, units=7, of_each=1)
        start = fit(problem.data, ridge=0)
        order, added, (last,) = eliminate([start], [problem.groups], count=5, at_once=at_once)
        first = start.removal_errors(problem.groups).argsort()[: min(at_once, 5)]
        assert order[: len(first)] == first.tolist()
        assert len(set(order)) == len(added) == 5
        assert len(set(added[: len(first)])) == 1
        weights, error = problem.best(order)
        torch.testing.assert_close(last.weights, weights, rtol=1e-6, atol=1e-8)
        assert sum(added) == pytest.approx(error - problem.best([])[1], rel=1e-6)


def _duplicated(problem: Problem) -> Problem:
    """Its last unit becomes a copy of the first, twice as strong."""
    inputs = problem.inputs.clone()
    inputs[:, problem.groups[-1]] = 2 * inputs[:, problem.groups[0]]
    return Problem(inputs, problem.targets, problem.groups)


def _dead(problem: Problem) -> Problem:
    inputs = problem.inputs.clone()
    inputs[:, problem.groups[2]] = 0.0
    return Problem(inputs, problem.targets, problem.groups)


SINGULAR: dict[str, Problem] = {
    "dead": _dead(random_problem(0)),
    "duplicated": _duplicated(random_problem(1)),
    "both": _dead(_duplicated(random_problem(2))),
    "fewer samples than inputs": random_problem(3, samples=7),
    "nothing but zeros": Problem(
        torch.zeros(9, 10, dtype=torch.float64), random_problem(4, samples=9).targets, random_problem(4).groups
    ),
}


@pytest.mark.parametrize("ridge", [0.0, 1e-9, 1e-6])
@pytest.mark.parametrize("name", SINGULAR)
class TestSingular:
    def _assert_close(self, error: float, least: float, problem: Problem, ridge: float) -> None:
        energy = problem.error(torch.zeros_like(problem.best([])[0]))
        assert error <= least + max(1e-5, 100 * ridge) * energy

    def test_fits_are_as_good_as_can_be(self, name: str, ridge: float) -> None:
        problem = SINGULAR[name]
        solved = fit(problem.data, ridge=ridge)
        assert solved.weights.isfinite().all() and solved.inverse.isfinite().all()
        self._assert_close(problem.error(solved.weights), problem.best([])[1], problem, ridge)

    def test_removals_are_as_good_as_can_be(self, name: str, ridge: float) -> None:
        problem = SINGULAR[name]
        start = fit(problem.data, ridge=ridge)
        least = problem.best([])[1]
        for unit, rise in enumerate(start.removal_errors(problem.groups).tolist()):
            error = problem.best([unit])[1]
            self._assert_close(rise, error - least, problem, ridge)
            self._assert_close(problem.error(start.remove(problem.groups[unit]).weights), error, problem, ridge)

    def test_all_units_can_go_one_by_one(self, name: str, ridge: float) -> None:
        problem = SINGULAR[name]
        count = len(problem.groups)
        order, added, (last,) = eliminate([fit(problem.data, ridge=ridge)], [problem.groups], count=count)
        assert sorted(order) == list(range(count))
        assert np.isfinite(added).all() and min(added) >= 0
        assert last.weights.abs().max() == 0
        rise = problem.best(order)[1] - problem.best([])[1]
        assert sum(added) == pytest.approx(rise, rel=1e-3 + 1e3 * ridge, abs=1e-9)

    def test_what_costs_nothing_goes_first(self, name: str, ridge: float) -> None:
        problem = SINGULAR[name]
        free = {"dead": [2], "duplicated": [0, 4], "both": [0, 2, 4]}.get(name, range(5))
        (first, *_), _, _ = eliminate([fit(problem.data, ridge=ridge)], [problem.groups], count=1)
        assert first in free


def test_moments_of_chunks_add_up_and_give_the_error_of_any_weights() -> None:
    problem, weights = random_problem(5), normal(6, 10, 3)
    whole = moments(problem.inputs, problem.targets)
    chunks = moments(problem.inputs[:13], problem.targets[:13]) + moments(problem.inputs[13:], problem.targets[13:])
    for one in (whole, chunks):
        assert one.samples == 40
        expected = (problem.inputs @ weights - problem.targets).square().sum(0)
        torch.testing.assert_close(one.error(weights), expected)
    part = torch.tensor([1, 4, 7])
    expected = (problem.inputs[:, part] @ weights[part] - problem.targets).square().sum(0)
    torch.testing.assert_close(whole.keep(part).error(weights[part]), expected)


@given(SEEDS, st.floats(1e-4, 10), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_ridge_and_prior_are_those_of_the_augmented_system(seed: int, ridge: float, near: bool, some: bool) -> None:
    problem = random_problem(seed, units=3)
    prior = normal(seed + 7, 6, 3) if near else None
    penalise = torch.tensor([True, True, False, True, True, False]) if some else None
    solved = fit(problem.data, ridge=ridge, prior=prior, penalise=penalise)
    rows = np.flatnonzero(np.ones(6) if penalise is None else penalise.numpy())
    penalty = np.sqrt(ridge * problem.data.gram.diagonal().numpy()[rows].mean())
    extra = penalty * np.eye(6)[rows]
    inputs = np.concatenate([problem.inputs.numpy(), extra])
    targets = np.concatenate([problem.targets.numpy(), extra @ (np.zeros((6, 3)) if prior is None else prior.numpy())])
    expected = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    np.testing.assert_allclose(solved.weights.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert solved.condition >= np.linalg.cond(inputs.T @ inputs) * (1 - 1e-6), "that of the 1-norm is no less"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_what_is_not_finite_is_refused(where: str, value: float) -> None:
    problem = random_problem(0)
    getattr(problem, where)[3, 1] = value
    with pytest.raises(ConfigurationError, match="not finite"):
        fit(problem.data)
