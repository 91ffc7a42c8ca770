"""PRO, pruning ratio optimisation: how much each layer can lose is measured, then shared out."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict

from agents.baselines.allocations import Allocation, meets, removal_mask
from agents.policy import register_allocation
from envs.objectives import Budget
from envs.pruning import PruningEnv
from recognizers.criteria import Criterion
from recognizers.errors import ConfigurationError
from recognizers.recognizer import Recognizer

COST_POINTS = 17
"""Counts of a layer at which a cost that is not linear in them is looked up."""
FRACTIONS = (1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 15 / 16)


class Polyline(BaseModel):
    """What removing units of one layer does to the logits.

    Attributes:
        layer: name of the layer.
        units: that it had when this was measured.
        removed: units removed, ascending.
        errors: squared error of the logits, summed over the classes, mean over the images, that each removal adds.
        macs: fraction of the original network's MACs that each removal saves.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layer: str
    units: int
    removed: tuple[int, ...]
    errors: tuple[float, ...]
    macs: tuple[float, ...]


class Plan(BaseModel):
    """A round of PRO.

    Attributes:
        polylines: of all layers.
        chosen: units that each layer loses in it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    polylines: tuple[Polyline, ...]
    chosen: tuple[int, ...]


@register_allocation("pro")
class ProAllocation(Allocation):
    """Measures each layer alone at several fractions, and shares the target out so that the summed error is least.

    The error is that of the logits on reward images, after the task's recovery (of reconstruction, its cheap form). Its
    logarithm is interpolated. The sum of the layers' errors ranks allocations; it does not predict the joint error
    (Kamma & Wada 2021, "REAP: a method for pruning convolutional neural networks with performance preservation").

    Args:
        criterion: which units of a layer go first.
        seed: of what the criterion draws.
        images: reward images that errors are measured on.
        rounds: measure anew after each of so many equal parts of the reduction, from where the previous one has led.

    Attributes:
        plans: what was measured and planned in the last episode, round by round.
    """

    actions = "mask"

    def __init__(self, criterion: Criterion, seed: int = 0, images: int = 500, rounds: int = 1) -> None:
        super().__init__(criterion, seed)
        if images < 1 or rounds < 1:
            raise ConfigurationError(f"pro: images and rounds must be at least 1, got {images} and {rounds}")
        self._images, self._rounds = images, rounds
        self._goal: np.ndarray | None = None
        self.plans: list[Plan] = []

    def reset(self, env: PruningEnv) -> None:
        """Score the units, and plan."""
        self._goal = None
        super().reset(env)

    def counts(self, env: PruningEnv, target: Budget) -> np.ndarray:
        """Measure and share out, round by round."""
        order = self._order(env)
        counts = np.zeros(len(order), dtype=np.int64)
        recognizer = Recognizer(
            env.recognizer.baseline.sample(self._images),
            recovery=env.recognizer.recovery.layerwise,
            cache_megabytes=env.task.recognizer.cache_megabytes,
        )
        self.plans = []
        for number in range(1, self._rounds + 1):
            part = target.target * number / self._rounds
            aim = Budget(**{target.measure: 1 - part})
            polylines, measured = measure(recognizer, order, counts)
            env.evaluations += measured
            tables = [
                _interpolated(line, len(units) - int(count))
                for line, units, count in zip(polylines, order, counts, strict=True)
            ]
            cost = partial(_cost, env, target, order)
            shared = share_out(tables, counts, cost, 1 - part, linear=target.measure != "latency")
            after = _trimmed(env, aim, tables, counts, shared)
            self.plans.append(Plan(polylines=tuple(polylines), chosen=tuple((after - counts).tolist())))
            counts = after
        return counts

    def _next(self, mask: np.ndarray, valid: np.ndarray) -> int:
        """Toward the plan: an action of the layer that is farthest from it."""
        if not isinstance(self._env.objective, Budget):
            raise ConfigurationError("pro plans for a budget: set --target-macs, or objective.kind=budget")
        if self._goal is None:
            self._goal = self.counts(self._env, self._env.objective)
        return self._toward(self._goal, mask, valid)


def measure(recognizer: Recognizer, order: Sequence[np.ndarray], counts: np.ndarray) -> tuple[list[Polyline], int]:
    """The polylines of all layers, each pruned alone beyond what ``counts`` have taken already.

    Returns:
        The polylines, and how many masks were measured.
    """
    start = removal_mask(list(order), counts)
    recognizer.reset()
    reference = recognizer.logits()
    if counts.any():
        recognizer.load_mask(start)
    base = float((recognizer.logits() - reference).square().sum(1).mean())
    trials: list[tuple[int, int]] = []
    for layer, (units, count) in enumerate(zip(order, counts, strict=True)):
        left = len(units) - int(count)
        numbers = {1, *(round(left * fraction) for fraction in FRACTIONS)}
        trials += [(layer, number) for number in sorted(numbers) if 1 <= number < left]
    masks = []
    for layer, number in trials:
        mask = start.copy()
        mask[order[layer][: counts[layer] + number]] = 0
        masks.append(mask)
    errors = [float((logits - reference).square().sum(1).mean()) - base for logits in recognizer.probe_logits(masks)]
    full = recognizer.costs.reductions(start).macs
    polylines = []
    for layer, units in enumerate(order):
        mine = [index for index, (of_layer, _) in enumerate(trials) if of_layer == layer]
        polylines.append(
            Polyline(
                layer=recognizer.table.layers[layer].name,
                units=len(units) - int(counts[layer]),
                removed=tuple(trials[index][1] for index in mine),
                errors=tuple(errors[index] for index in mine),
                macs=tuple(recognizer.costs.reductions(masks[index]).macs - full for index in mine),
            )
        )
    return polylines, len(masks) + 1


def _interpolated(line: Polyline, left: int) -> np.ndarray:
    """The error of removing 0, 1, ... units, ``[left]`` (one stays), its logarithm interpolated; never falling."""
    if not line.removed:
        return np.zeros(1)
    errors = np.log(np.maximum(line.errors, 1e-9))
    table = np.exp(np.interp(np.arange(1, left), line.removed, errors))
    result: np.ndarray = np.maximum.accumulate(np.concatenate([[0.0], table]))
    return result


def share_out(
    tables: Sequence[np.ndarray],
    start: np.ndarray,
    cost: Callable[[np.ndarray], float],
    remaining: float,
    *,
    linear: bool = True,
) -> np.ndarray:
    """Counts whose summed error is least among those that a price on the cost leads to.

    With a price per unit of cost, each layer takes the count that is best for it, given the others, until nothing
    changes; the price is bisected.

    Args:
        tables: error of removing 0, 1, ... more units of each layer.
        start: units that each layer has lost, ``[layers]``.
        cost: from lost units to the cost that remains, as a fraction.
        remaining: what may remain.
        linear: whether the cost is linear in each layer's count, the others fixed; else it is looked up at a few
            counts, and interpolated.

    Returns:
        Lost units, ``[layers]``, the fewest that the search has found to meet the target.
    """

    def saved(layer: int, extra: np.ndarray) -> np.ndarray:
        """What removing 0, 1, ... more units of a layer saves."""
        counts = np.arange(len(tables[layer]))
        points = counts[:2] if linear else np.unique(np.linspace(0, counts[-1], COST_POINTS).round().astype(np.int64))
        costs = []
        for point in points:
            trial = start + extra
            trial[layer] = start[layer] + point
            costs.append(cost(trial))
        savings: np.ndarray = (costs[0] - costs[1]) * counts
        return savings if linear else np.interp(counts, points, costs[0] - np.array(costs))

    def respond(price: float, extra: np.ndarray) -> np.ndarray:
        extra = extra.copy()
        for _ in range(20):
            before = extra.copy()
            for layer, table in enumerate(tables):
                if len(table) < 2:
                    continue
                extra[layer] = int(np.argmin(table - price * saved(layer, extra)))
            if (extra == before).all():
                break
        return extra

    none = np.zeros(len(tables), dtype=np.int64)
    low, high = 0.0, 1.0
    best = respond(high, none)
    while cost(start + best) > remaining:
        high *= 4
        best = respond(high, none)
        if high > 1e30:
            raise ConfigurationError(f"pro: {remaining:.4g} of the cost is out of reach")
    for _ in range(60):
        middle = (low + high) / 2 if low else high / 4
        trial = respond(middle, none)
        if cost(start + trial) > remaining:
            low = middle
        else:
            high, best = middle, trial
        if low and high / low < 1 + 1e-6:
            break
    counts: np.ndarray = start + best
    return counts


def _trimmed(
    env: PruningEnv, target: Budget, tables: Sequence[np.ndarray], start: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Give units back that the target does not need, those that cost the most error first."""
    counts = counts.copy()
    while True:
        gains = []
        for layer, table in enumerate(tables):
            extra = counts[layer] - start[layer]
            trial = counts.copy()
            trial[layer] -= 1
            if extra and meets(env, target, trial):
                gains.append((table[extra] - table[extra - 1], layer))
        if not gains:
            return counts
        counts[max(gains)[1]] -= 1


def _cost(env: PruningEnv, target: Budget, order: Sequence[np.ndarray], counts: np.ndarray) -> float:
    return 1 - env.recognizer.costs.reductions(removal_mask(list(order), counts)).of(target.measure)
