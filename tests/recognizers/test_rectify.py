"""Fits to what is behind a ReLU: better there than plain least squares, and never worse than their start."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem, normal, random_problem
from torch import Tensor

from recognizers.reconstruction.least_squares import fit, rectify


def _behind(problem: Problem, weights: Tensor, added: Tensor) -> float:
    outputs, targets = problem.inputs @ weights + added, problem.targets + added
    return float((outputs.relu() - targets.relu()).square().sum())


def _bound(problem: Problem, weights: Tensor, added: Tensor) -> float:
    """Outputs count where the target is positive, and where they are themselves."""
    outputs, targets = problem.inputs @ weights + added, problem.targets + added
    return float(torch.where(targets > 0, outputs - targets, outputs.clamp(min=0)).square().sum())


@given(seed=st.integers(0, 10**6), iterations=st.integers(1, 12), sums=st.booleans())
@settings(max_examples=40, deadline=None)
def test_it_never_ends_above_its_start(seed: int, iterations: int, sums: bool) -> None:
    problem = random_problem(seed, outputs=2)
    start = fit(problem.data, ridge=0)
    added = normal(seed + 5, 40, 2) * 3 if sums else torch.zeros(40, 2, dtype=torch.float64)
    arguments = (start, problem.inputs, problem.targets)
    weights = rectify(*arguments, added=added if sums else None, iterations=iterations)
    assert _bound(problem, weights, added) <= _bound(problem, start.weights, added) * (1 + 1e-9)
    # It lowers the bound; the error itself follows it but where an output that should be positive stays negative.
    assert _behind(problem, weights, added) <= _behind(problem, start.weights, added) * 1.02


@given(seed=st.integers(0, 10**6), iterations=st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_with_a_prior_the_penalised_bound_never_ends_above_its_start(seed: int, iterations: int) -> None:
    problem, prior = random_problem(seed, outputs=2), normal(seed + 6, 10, 2)
    gram, none = problem.data.gram, torch.zeros(40, 2, dtype=torch.float64)
    start = fit(problem.data, ridge=0.1, prior=prior)
    weights = rectify(start, problem.inputs, problem.targets, prior=prior, gram=gram, iterations=iterations)
    bounds = [
        _bound(problem, one, none) + 0.1 * float(gram.diagonal().mean() * (one - prior).square().sum())
        for one in (start.weights, weights)
    ]
    assert bounds[1] <= bounds[0] * (1 + 1e-9)
    stays = rectify(
        fit(problem.data, ridge=1e9, prior=prior),
        problem.inputs,
        problem.targets,
        prior=prior,
        gram=gram,
        iterations=iterations,
    )
    torch.testing.assert_close(stays, prior, rtol=1e-4, atol=1e-4)


def test_it_makes_use_of_the_relu() -> None:
    """The outputs are linear where they are positive alone: there a good fit is far from that of all targets."""
    inputs = torch.cat([normal(0, 400, 3), torch.ones(400, 1, dtype=torch.float64)], 1)
    true = torch.cat([normal(1, 3, 2), torch.tensor([[0.3, -0.2]])])
    linear = inputs @ true
    problem = Problem(inputs, torch.where(linear > 0, linear, 7 * linear), [])
    start, none = fit(problem.data, ridge=0), torch.zeros(400, 2, dtype=torch.float64)
    few, many = (rectify(start, inputs, problem.targets, iterations=number) for number in (3, 200))
    errors = [_behind(problem, weights, none) for weights in (start.weights, few, many)]
    assert errors[0] > 100 and errors[1] < 0.3 * errors[0] and errors[2] < 1e-6
    torch.testing.assert_close(many, true, rtol=0, atol=1e-4)


def test_no_iterations_are_least_squares() -> None:
    problem = random_problem(1)
    start = fit(problem.data)
    assert torch.equal(rectify(start, problem.inputs, problem.targets, iterations=0), start.weights)


def test_positive_targets_leave_nothing_to_do() -> None:
    problem = random_problem(2)
    start = fit(problem.data, ridge=0)
    positive = (100 - problem.targets.min()).expand(40, 3)
    weights = rectify(start, problem.inputs, problem.targets, added=positive, iterations=5)
    torch.testing.assert_close(weights, start.weights)
    assert not torch.allclose(rectify(start, problem.inputs, problem.targets, iterations=5), start.weights)
