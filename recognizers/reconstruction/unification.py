"""Neuron unification: a removed unit's weights go to the unit that behaves most like it.

Wada, Kamma et al., "Neuro-Coding" and "Neuro-Unification" (Wakayama University). With the behaviour ``v_i`` of unit
``i`` (its values over samples), replacing ``v_i`` by ``alpha v_j`` with ``alpha = <v_i, v_j> / |v_j|^2`` costs
``|v_i|^2 (1 - cos^2) |w_i|^2``, ``w_i`` being the weights that read ``i``. The offset takes over the difference of the
means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recognizers.reconstruction.consumers import Consumer
from recognizers.reconstruction.walk import removed


@dataclass(frozen=True)
class Behaviour:
    """How the units that a consumer reads behave.

    Attributes:
        units: the units, ``[n]`` int64.
        products: ``<v_i, v_j>`` per sample, of the values less their means where the consumer has an offset,
            ``[n, n]`` float64.
        groups: the inputs of each unit, ``[n, q]`` int64.
    """

    units: Tensor
    products: Tensor
    groups: Tensor


def behaviour(consumer: Consumer, groups: Tensor) -> Behaviour:
    """The behaviour of some of a consumer's units, given by their inputs, ``[n, q]``, at all places of a sample."""
    gram = consumer.data.gram / consumer.data.samples
    if consumer.offset:
        mean = gram[-1]
        gram = gram - mean[:, None] * mean
    # Averaged over the places, so that the same factor serves all of a unit's inputs.
    at_places = [gram[groups[:, place][:, None], groups[:, place]] for place in range(groups.shape[1])]
    products = torch.stack(at_places).mean(0)
    # What is left of a unit that never varies is rounding, of either sign.
    power = consumer.data.gram.diagonal()[groups].mean(1) / consumer.data.samples
    varies = products.diagonal() > 1e-4 * power
    return Behaviour(consumer.units[groups[:, 0]], products * varies * varies[:, None], groups)


def alike(consumer: Consumer) -> list[Behaviour]:
    """The behaviour of a consumer's units; a concatenation may hand on some more often than others, each for itself."""
    by_size: dict[int, list[Tensor]] = {}
    for unit in consumer.units[consumer.units >= 0].unique():
        group = consumer.inputs_of(int(unit))
        by_size.setdefault(len(group), []).append(group)
    return [behaviour(consumer, torch.stack(groups)) for groups in by_size.values()]


def unify(products: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[list[int], list[float]]:
    """Replace units one after the other by the one that behaves most like it, always the pair that costs least.

    Args:
        products: for each layer that reads the units, ``<v_i, v_j>``, ``[n, n]``.
        weights: for each layer, the weights that read each unit, ``[n, q, m]``.

    Returns:
        The units in the order of their removal, and what each adds to the error. The last one has nobody to take its
        weights and costs all of its energy.
    """
    held = [weight.clone() for weight in weights]
    rest = list(range(len(held[0])))
    order: list[int] = []
    added: list[float] = []
    while len(rest) > 1:
        table = sum(
            costs(seen[rest][:, rest], weight[rest].square().sum((1, 2)))
            for seen, weight in zip(products, held, strict=True)
        )
        assert isinstance(table, Tensor)
        best = int(table.argmin())
        leaver, taker = rest[best // len(rest)], rest[best % len(rest)]
        added.append(float(table.flatten()[best]))
        for seen, weight in zip(products, held, strict=True):
            power = seen[taker, taker]
            weight[taker] += (seen[leaver, taker] / power if power > 0 else 0.0) * weight[leaver]
        order.append(leaver)
        rest.remove(leaver)
    (last,) = rest
    added.append(
        sum(float(seen[last, last] * weight[last].square().sum()) for seen, weight in zip(products, held, strict=True))
    )
    return [*order, last], added


def costs(products: Tensor, strength: Tensor) -> Tensor:
    """Error of replacing each unit by each other one, ``[n, n]``; infinite on the diagonal.

    Args:
        products: ``<v_i, v_j>``, ``[n, n]``.
        strength: ``|w_i|^2``, ``[n]``.
    """
    power = products.diagonal().clamp(min=torch.finfo(products.dtype).tiny)
    lost = (power[:, None] - products.square() / power).clamp(min=0) * strength[:, None]
    return lost + torch.diag(torch.full_like(power, torch.inf))


def merge(consumer: Consumer, mask: np.ndarray) -> Tensor:
    """A consumer's weights, ``[d + 1, m]``, once each unit removed by ``mask`` is replaced by its nearest kept one."""
    weights = consumer.weights.clone()
    for known in alike(consumer):
        _merge(consumer, known, mask, weights)
    return weights


def _merge(consumer: Consumer, known: Behaviour, mask: np.ndarray, weights: Tensor) -> None:
    gone = removed(known.units, mask)
    kept = (~gone).nonzero().flatten()
    mean = consumer.data.gram[-1] / consumer.data.samples
    distances = costs(known.products, torch.ones(len(known.units), dtype=torch.float64))
    for unit in gone.nonzero().flatten().tolist():
        lost = known.groups[unit]
        if len(kept):
            donor = int(kept[distances[unit, kept].argmin()])
            power = known.products[donor, donor]
            factor = float(known.products[unit, donor] / power) if power > 0 else 0.0
            taken = known.groups[donor]
            weights[taken] += factor * consumer.weights[lost]
        else:
            factor, taken = 0.0, lost
        if consumer.offset:
            weights[-1] += (mean[lost] - factor * mean[taken]) @ consumer.weights[lost]
        weights[lost] = 0.0
