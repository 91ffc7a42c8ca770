"""Least squares of a layer's weights when some of its inputs are removed: the mathematics of REAP.

A layer has inputs in groups (all the inputs that one unit feeds), outputs, and perhaps a bias, the weight of a constant
input that is never removed. Everything follows from second moments of inputs and targets, summed in float64:
``X^T X`` and ``X^T Y`` for inputs ``X [N, d]`` and targets ``Y [N, m]``.

Kamma & Wada (2019), "Reconstruction error aware pruning", state it by biorthogonal systems. With ``H = (X^T X)^-1`` it
is: removing the inputs ``R`` raises the least squared error by ``tr(W_R^T (H_RR)^-1 W_R)``, and the best weights of the
others become ``W - H_:R (H_RR)^-1 W_R``. What removals add to the error adds up exactly, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recognizers.errors import ConfigurationError

RIDGE = 1e-6
"""Default ridge, as a fraction of the mean second moment of an input."""

WEAK = 1e-7
"""What the Gram matrix counts as in directions in which it is singular, as a fraction of its largest eigenvalue."""


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs and targets, summed over samples, float64.

    Attributes:
        gram: ``X^T X``, ``[d, d]``.
        cross: ``X^T Y``, ``[d, m]``.
        energy: ``Y^T Y``'s diagonal, ``[m]``.
        samples: how many.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    samples: int

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of samples."""
        return Moments(
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
            self.samples + other.samples,
        )

    def keep(self, inputs: Tensor) -> Moments:
        """Moments of some of the inputs, given by their indices, ``[k]`` int64."""
        return Moments(self.gram[inputs][:, inputs], self.cross[inputs], self.energy, self.samples)

    def error(self, weights: Tensor) -> Tensor:
        """Squared error of weights, ``[d, m]``, summed over the samples, for each output, ``[m]``."""
        return self.energy + (weights * (self.gram @ weights - 2 * self.cross)).sum(0)


def moments(inputs: Tensor, targets: Tensor) -> Moments:
    """Moments of samples, ``[N, d]`` and ``[N, m]``; summed in their own precision, so call it chunk by chunk."""
    return Moments(
        (inputs.T @ inputs).double(), (inputs.T @ targets).double(), targets.square().sum(0).double(), len(inputs)
    )


@dataclass(frozen=True)
class Fit:
    """The best weights of a layer, and what removing inputs would cost.

    Attributes:
        inverse: ``H``, inverse of the regularised Gram matrix, ``[d, d]``.
        weights: ``W``, ``[d, m]``.
        condition: condition number of the regularised Gram matrix.
    """

    inverse: Tensor
    weights: Tensor
    condition: float

    def removal_errors(self, groups: Sequence[Tensor]) -> Tensor:
        """By how much the summed squared error rises when the inputs of each group (and no other) go, ``[groups]``.

        Args:
            groups: indices of inputs, each ``[q]`` int64.
        """
        errors = self.weights.new_zeros(len(groups))
        sizes = torch.tensor([len(group) for group in groups])
        for size in sizes.unique().tolist():
            chosen = (sizes == size).nonzero().flatten()
            index = torch.stack([groups[position] for position in chosen.tolist()])  # [g, q]
            blocks = self.inverse[index[:, :, None], index[:, None, :]]  # [g, q, q]
            weights = self.weights[index]  # [g, q, m]
            errors[chosen] = _inverse_root(blocks, weights).square().sum((1, 2))
        return errors

    def weights_without(self, inputs: Tensor) -> Tensor:
        """The weights of :meth:`remove`, ``[d, m]``, alone: with many inputs removed far cheaper."""
        columns = self.inverse[:, inputs]  # [d, k]
        removed = self.weights[inputs]  # [k, m]
        factor, failed = torch.linalg.cholesky_ex(columns[inputs])
        diagonal = factor.diagonal()
        if not len(inputs) or failed or bool(diagonal.amin() <= 1e-7 * diagonal.amax()):
            return self.remove(inputs).weights
        weights = self.weights - columns @ torch.cholesky_solve(removed, factor)
        weights[inputs] = 0.0
        return weights

    def remove(self, inputs: Tensor) -> Fit:
        """The best weights without some inputs, ``[k]`` int64, whose weights and rows become 0: one downdate."""
        result = Fit(self.inverse.clone(), self.weights.clone(), self.condition)
        if len(inputs):
            _remove_in_place(result, inputs)
        return result


def fit(data: Moments, *, ridge: float = RIDGE, prior: Tensor | None = None, penalise: Tensor | None = None) -> Fit:
    """The weights of least squared error.

    They minimise ``|X W - Y|^2 + r |W - prior|^2`` with ``r`` the given fraction of the mean second moment. Where the
    Gram matrix is not positive definite in spite of the ridge (dead or duplicated inputs, fewer samples than inputs),
    directions without any signal get the prior's weights.

    Args:
        data: moments.
        ridge: relative to the mean second moment of the penalised inputs.
        prior: weights to stay close to, ``[d, m]``; 0 by default.
        penalise: which inputs the ridge applies to, ``[d]`` bool; all by default.

    Raises:
        ConfigurationError: moments that are not finite.
    """
    if not (data.gram.isfinite().all() and data.cross.isfinite().all()):
        raise ConfigurationError("least squares: inputs or targets are not finite; are the network's weights?")
    diagonal = data.gram.diagonal()
    penalised = torch.ones_like(diagonal, dtype=torch.bool) if penalise is None else penalise
    scale = diagonal[penalised].mean() if penalised.any() else diagonal.new_zeros(())
    penalty = torch.where(penalised, ridge * scale, 0.0)
    gram = data.gram + torch.diag(penalty)
    cross = data.cross if prior is None else data.cross - data.gram @ prior
    inverse, condition = _inverse(gram)
    weights = inverse @ cross
    return Fit(inverse, weights if prior is None else prior + weights, condition)


def fit_affine(data: Moments, *, ridge: float, prior: Tensor | None, offset: bool) -> Fit:
    """The fit of an affine map, whose offset has no penalty.

    Args:
        data: moments; the last input is constant.
        ridge: as in :func:`fit`.
        prior: likewise, ``[d, m]``.
        offset: whether the map can have any; if not, the constant input is left out of the fit, ``d - 1`` inputs.
    """
    used = torch.arange(len(data.gram) - (0 if offset else 1))
    penalised = torch.ones(len(used), dtype=torch.bool)
    if offset:
        penalised[-1] = False
    return fit(data.keep(used), ridge=ridge, prior=None if prior is None else prior[used], penalise=penalised)


def eliminate(
    starts: Sequence[Fit],
    groups: Sequence[Sequence[Tensor]],
    *,
    count: int,
    weights: Sequence[float] | None = None,
    at_once: int = 1,
) -> tuple[list[int], list[float], list[Fit]]:
    """Remove units one after the other, always the one that costs least: REAP's selection.

    Args:
        starts: the layers that read the units, with all of them.
        groups: for each layer the inputs that belong to each unit, ``[q]`` int64.
        count: how many units to remove.
        weights: of the layers' squared errors; 1 by default.
        at_once: how many of the cheapest to remove before errors are computed anew.

    Returns:
        The units in the order of their removal, what each removal adds to the error (what several removed at once add
        together is divided evenly), and the fits without them.
    """
    weights = weights or [1.0] * len(starts)
    states = [Fit(start.inverse.clone(), start.weights.clone(), start.condition) for start in starts]
    order: list[int] = []
    added: list[float] = []
    rest = list(range(len(groups[0])))
    while len(order) < count:
        errors = sum(
            weight * state.removal_errors([of_units[unit] for unit in rest])
            for weight, state, of_units in zip(weights, states, groups, strict=True)
        )
        assert isinstance(errors, Tensor)
        number = min(at_once, count - len(order))
        chosen = [rest[index] for index in errors.argsort(stable=True)[:number].tolist()]
        rise = 0.0
        for weight, state, of_units in zip(weights, states, groups, strict=True):
            rise += weight * _remove_in_place(state, torch.cat([of_units[unit] for unit in chosen]))
        order += chosen
        added += [rise / number] * number
        rest = [unit for unit in rest if unit not in chosen]
    return order, added, states


def _remove_in_place(state: Fit, inputs: Tensor) -> float:
    """What :meth:`Fit.remove` does, without a copy; returns by how much the error rises."""
    columns = state.inverse[:, inputs]  # [d, k]
    removed = state.weights[inputs]  # [k, m]
    # With the block's inverse as R R^T, everything is a product of R^T with something, and the downdate is symmetric.
    scaled = _inverse_root(columns[inputs], torch.cat([removed, columns.T], 1))  # [k, m + d]
    drop, pull = scaled[:, : removed.shape[1]], scaled[:, removed.shape[1] :]
    state.inverse.addmm_(pull.T, pull, alpha=-1)  # in one pass over what may be hundreds of megabytes
    state.weights.addmm_(pull.T, drop, alpha=-1)
    state.inverse[inputs], state.inverse[:, inputs], state.weights[inputs] = 0.0, 0.0, 0.0
    return float(drop.square().sum())


def rectify(
    start: Fit,
    inputs: Tensor,
    targets: Tensor,
    *,
    added: Tensor | None = None,
    prior: Tensor | None = None,
    gram: Tensor | None = None,
    iterations: int,
) -> Tensor:
    """Weights that bring ``relu(X W + added)`` close to ``relu(Y + added)``, in place of ``X W`` close to ``Y``.

    Where a target is negative, all that counts is that the output is negative, too. So there the target is replaced
    by the output itself, or 0, whichever is less, and the weights are fitted again: each round lowers a bound of the
    error that touches it, and needs no new inverse. Nesterov's momentum speeds it up.

    Args:
        start: the least-squares fit.
        inputs: ``X``, ``[N, d]``.
        targets: ``Y``, ``[N, m]``.
        added: to both before the ReLU, ``[N, m]``; 0 by default.
        prior: that the fit was made with, ``[d, m]``.
        gram: ``X^T X``, ``[d, d]``; needed with a prior.
        iterations: rounds.

    Returns:
        ``W``, ``[d, m]``.
    """
    weights = start.weights
    if not iterations:
        return weights
    active = (targets if added is None else targets + added) > 0
    pull = None if prior is None or gram is None else gram @ prior
    outputs = before = inputs @ weights.to(inputs.dtype)
    step = 1.0
    for iteration in range(iterations):
        following = (1 + (1 + 4 * step * step) ** 0.5) / 2
        ahead = outputs + (step - 1) / following * (outputs - before) if iteration else outputs
        step, before = following, outputs
        negative = ahead.clamp(max=0) if added is None else (ahead + added).clamp(max=0) - added
        cross = (inputs.T @ torch.where(active, targets, negative)).double()
        weights = start.inverse @ (cross if pull is None else cross - pull)
        weights = weights if prior is None else weights + prior
        outputs = inputs @ weights.to(inputs.dtype)
    return weights


def _inverse(gram: Tensor) -> tuple[Tensor, float]:
    """Inverse of a symmetric positive semidefinite matrix, and its condition number.

    Directions in which it is singular count as weak ones, not as none: what lies in them can be moved to other inputs
    at no cost, so removing a dead or duplicated input must look free.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed:
        diagonal = factor.diagonal()
        inverse = torch.cholesky_inverse(factor)
        # 1-norm condition number: exact for the computed inverse.
        condition = float(torch.linalg.matrix_norm(gram, 1) * torch.linalg.matrix_norm(inverse, 1))
        if diagonal.min() > 0 and condition < 1e13:
            return (inverse + inverse.T) / 2, condition
    values, vectors = torch.linalg.eigh(gram)
    largest = float(values[-1].clamp(min=0))
    used = values > max(largest * len(values) * torch.finfo(gram.dtype).eps * 10, torch.finfo(gram.dtype).tiny)
    inverted = 1 / torch.where(used, values, WEAK * largest) if largest else torch.zeros_like(values)
    return (vectors * inverted) @ vectors.T, float("inf") if not used.all() else largest / float(values[0])


def _inverse_root(blocks: Tensor, right: Tensor) -> Tensor:
    """``R^T right`` with ``R R^T`` the inverse of symmetric positive semidefinite blocks, ``[..., q, q]``.

    Where a block is singular, the inverse is that on its range.
    """
    factor, failed = torch.linalg.cholesky_ex(blocks)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    if not failed.any() and bool((diagonal.amin(-1) > 1e-7 * diagonal.amax(-1)).all()):
        solution: Tensor = torch.linalg.solve_triangular(factor, right, upper=False)
        return solution
    values, vectors = torch.linalg.eigh(blocks)
    largest = values[..., -1:].clamp(min=0)
    used = values > largest * values.shape[-1] * torch.finfo(blocks.dtype).eps * 10
    root = torch.where(used, torch.where(used, values, 1.0).rsqrt(), 0.0)
    scaled: Tensor = root[..., None] * (vectors.mT @ right)
    return scaled
