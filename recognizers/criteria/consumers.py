"""Criteria that look at the layers which read a unit: REAP, CP, ThiNet, neuron unification.

All of them follow from second moments of the consumers' inputs and outputs in the original network, on a fixed seeded
subset of the training images. Each removes the units of a layer one after the other; a unit's score is the error that
its layer has reached once it is gone, relative to the energy of the outputs, so that scores grow along the removal.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recognizers.criteria.registry import register_criterion
from recognizers.recognizer import Recognizer
from recognizers.reconstruction.consumers import Consumer
from recognizers.reconstruction.least_squares import eliminate
from recognizers.reconstruction.recipe import Recipe
from recognizers.reconstruction.unification import behaviour, unify

RECIPE = Recipe(form="independent")

Removal = tuple[list[int], list[float]]
"""Units of a layer, counted from 0, in the order of their removal, and what each removal adds to the error."""


@dataclass(frozen=True)
class View:
    """A layer's units as one consumer sees them.

    Attributes:
        consumer: the consumer.
        groups: its inputs that belong to each unit, ``[q]`` int64 each.
        weight: of its squared error: 1 over the energy of its outputs about their means.
    """

    consumer: Consumer
    groups: list[Tensor]
    weight: float


@register_criterion("reap")
def reap(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """Least rise of the squared error of the consumers, all other weights being fitted anew (Kamma & Wada 2019)."""

    def remove(views: Sequence[View], units: int) -> Removal:
        starts = [view.consumer.solution for view in views]
        # Exact up to 128 units; in wider layers the few cheapest go at once.
        order, added, _ = eliminate(
            starts,
            [view.groups for view in views],
            weights=[view.weight for view in views],
            count=units,
            at_once=max(1, units // 128),
        )
        return order, added

    return _scores(recognizer, remove)


@register_criterion("cp")
def cp(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """The order in which LASSO drops the units' contributions to the consumers (He et al. 2017, "Channel pruning")."""

    def remove(views: Sequence[View], units: int) -> Removal:
        products, pulls = _contributions(views, units)
        return lasso_order(products.numpy(), pulls.numpy())

    return _scores(recognizer, remove)


@register_criterion("thinet")
def thinet(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """Least energy of the removed units' summed contributions to the consumers, grown greedily (Luo et al. 2017)."""

    def remove(views: Sequence[View], units: int) -> Removal:
        return grow(_contributions(views, units)[0].numpy())

    return _scores(recognizer, remove)


@register_criterion("unification")
def unification(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """Least error of handing a unit's weights to the one that behaves most like it (neuron unification)."""

    def remove(views: Sequence[View], units: int) -> Removal:
        known = [behaviour(view.consumer, torch.stack(view.groups)) for view in views]
        return unify(
            [seen.products * view.weight * view.consumer.data.samples for seen, view in zip(known, views, strict=True)],
            [torch.stack([view.consumer.weights[group] for group in view.groups]) for view in views],
        )

    return _scores(recognizer, remove)


def lasso_order(products: np.ndarray, pulls: np.ndarray) -> Removal:
    """The order in which the coefficients of ``min |Y - sum_i b_i Z_i|^2 / 2 + l |b|_1`` vanish as ``l`` grows.

    Args:
        products: ``<Z_i, Z_j>``, ``[n, n]``.
        pulls: ``<Z_i, Y>``, ``[n]``.

    Returns:
        The order of removal, and the rise of the least squared error as coefficients go in that order.
    """
    count = len(pulls)
    power = np.diagonal(products)
    highest = power.max()
    varies = power > 1e-6 * highest  # what is left of the others is rounding, of either sign
    power = np.where(varies, power, 1.0)
    coefficients, entry = np.zeros(count), np.zeros(count)
    strongest = np.abs(pulls).max()
    for penalty in strongest * np.geomspace(1, 1e-5, 100):
        for _ in range(100):  # coordinate descent
            largest = 0.0
            for index in np.flatnonzero(varies):
                rest = pulls[index] - products[index] @ coefficients + power[index] * coefficients[index]
                value = np.sign(rest) * max(abs(rest) - penalty, 0.0) / power[index]
                largest = max(largest, abs(value - coefficients[index]) * np.sqrt(power[index]))
                coefficients[index] = value
            if largest <= 1e-6 * np.sqrt(max(highest, 0.0)):
                break
        entry[(entry == 0) & (coefficients != 0)] = penalty
    # Those that never entered go first, the weakest of them before the others.
    order = [int(unit) for unit in np.lexsort((varies * np.abs(pulls) / np.sqrt(power), entry))]
    errors = []
    for removed in range(count + 1):
        kept = [unit for unit in order[removed:] if varies[unit]]
        best = np.linalg.lstsq(products[np.ix_(kept, kept)], pulls[kept], rcond=None)[0] if kept else np.zeros(0)
        errors.append(-float(best @ pulls[kept]))
    return order, [max(later - sooner, 0.0) for sooner, later in itertools.pairwise(errors)]


def grow(products: np.ndarray) -> Removal:
    """Grow a set greedily so that ``|sum_i Z_i|^2`` over it stays least; ``products``: ``<Z_i, Z_j>``, ``[n, n]``."""
    order: list[int] = []
    added: list[float] = []
    rest, pull = list(range(len(products))), np.zeros(len(products))
    while rest:
        rise = products[rest, rest] + 2 * pull[rest]
        best = int(rise.argmin())
        added.append(max(float(rise[best]), 0.0))
        order.append(rest.pop(best))
        pull += products[order[-1]]
    return order, added


def _contributions(views: Sequence[View], units: int) -> tuple[Tensor, Tensor]:
    """What the units contribute to the outputs ``Y``: ``Z_i = X_i W_i``; about the means where there is an offset.

    Returns:
        ``<Z_i, Z_j>``, ``[n, n]``, and ``<Z_i, Y>``, ``[n]``, summed over the consumers.
    """
    products, pulls = torch.zeros(units, units, dtype=torch.float64), torch.zeros(units, dtype=torch.float64)
    for view in views:
        data, weights = view.consumer.data, view.consumer.weights[:-1]
        gram, cross = data.gram[:-1, :-1], data.cross[:-1]
        if view.consumer.offset:
            sums = data.gram[-1, :-1]
            gram = gram - sums[:, None] * sums / data.samples
            cross = cross - sums[:, None] * data.cross[-1] / data.samples
        share = gram * (weights @ weights.T)  # [d, d]
        pull = (cross * weights).sum(1)  # [d]
        unit_of_input = torch.zeros(units, len(gram), dtype=torch.float64)
        for unit, group in enumerate(view.groups):
            unit_of_input[unit, group] = 1.0
        products += view.weight * (unit_of_input @ share @ unit_of_input.T)
        pulls += view.weight * (unit_of_input @ pull)
    return products, pulls


def _scores(recognizer: Recognizer, remove: Callable[[Sequence[View], int], Removal]) -> np.ndarray:
    """Scores of all units. Layers that nothing known reads come last."""
    consumers = recognizer.baseline.consumers(RECIPE)
    scores = np.full(recognizer.n_units, np.nan)
    for layer in recognizer.table.layers:
        views = []
        for consumer in consumers:
            groups = [consumer.inputs_of(unit) for unit in layer.units.tolist()]
            if all(len(group) for group in groups):
                views.append(View(consumer, groups, _weight(consumer)))
        if views:
            order, added = remove(views, len(layer))
            reached = np.cumsum(added)
            # Units that cost nothing still differ by when they went.
            scores[layer.start + np.array(order)] = reached + np.arange(len(order)) * 1e-12 * max(reached[-1], 1e-300)
    highest = np.nanmax(scores) if np.isfinite(scores).any() else 1.0
    return np.where(np.isnan(scores), highest, scores)


def _weight(consumer: Consumer) -> float:
    """1 over the squares of a consumer's outputs about their means; 0 where they never vary, but for rounding."""
    data = consumer.data
    energy = float(data.energy.sum())
    variation = energy - float((data.cross[-1] ** 2).sum()) / data.samples
    return 1 / variation if variation > 1e-5 * energy else 0.0
