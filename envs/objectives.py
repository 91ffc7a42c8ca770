"""Objectives: how reward and episode end follow from accuracy and reduction."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationInfo, model_validator

from recognizers.costs import CostModel, Measure, Reductions
from recognizers.errors import ConfigurationError, UnknownNameError
from recognizers.registry import Registry


@dataclass(frozen=True)
class Measurement:
    """A state of the recognizer as the objective sees it.

    Attributes:
        accuracy: on the reward split, in 0..1.
        parameter_reduction: fraction of parameters removed.
        macs_reduction: fraction of MACs removed.
        latency_reduction: fraction of the latency removed, which may be negative; None where there is no table of it.
    """

    accuracy: float
    parameter_reduction: float
    macs_reduction: float
    latency_reduction: float | None = None

    @classmethod
    def complete(cls, accuracy: float) -> "Measurement":
        """Of the complete network."""
        return cls(accuracy, 0.0, 0.0, 0.0)

    def reduction(self, measure: Measure) -> float:
        """The reduction in one measure.

        Raises:
            ConfigurationError: latency, and there is no table of it.
        """
        return Reductions(self.parameter_reduction, self.macs_reduction, self.latency_reduction).of(measure)


class Objective(BaseModel, ABC):
    """Base of the objectives. Subclasses have a literal field ``kind``, their registered name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    @abstractmethod
    def measure(self) -> Measure:
        """Which reduction counts, and is observed."""

    @abstractmethod
    def reward(self, before: Measurement, after: Measurement, baseline: float) -> float:
        """Reward of a step from ``before`` to ``after``; ``baseline`` is the accuracy of the base weights."""

    @abstractmethod
    def terminated(self, after: Measurement, baseline: float) -> bool:
        """Whether the episode ends with this state."""

    @abstractmethod
    def score(self, state: Measurement, baseline: float) -> float:
        """Worth of a finished mask, the higher the better; -inf where it does not meet the objective."""

    @abstractmethod
    def efficiency(self, before: Measurement, after: Measurement, baseline: float) -> float:
        """How good a single step looks: what a greedy policy maximises."""

    def trim(self, units: np.ndarray, mask: np.ndarray, costs: CostModel) -> np.ndarray:
        """The units that a step really removes: ``units`` or a leading part of them."""
        return units

    def check(self, reach: np.ndarray, costs: CostModel) -> None:
        """Refuse a recognizer on which the objective cannot be met.

        Raises:
            ConfigurationError: it counts latency, and there is no table of it; or with the reduction within reach.
        """
        costs.reductions(reach).of(self.measure)


_OBJECTIVES = Registry[type[Objective]]("objective")


def register_objective(kind: str) -> Callable[[type[Objective]], type[Objective]]:
    """Register a subclass of :class:`Objective`, so that ``objective: {kind: ...}`` finds it."""
    return _OBJECTIVES.register(kind)


@register_objective("tolerance")
class Tolerance(Objective):
    """As much reduction as possible while accuracy stays within ``drop`` of the baseline.

    Reward: the reduction gained by the step. The episode ends when accuracy falls more than ``drop`` below the
    baseline; that last step earns nothing. So the return is the reduction reached within tolerance.
    """

    kind: Literal["tolerance"] = "tolerance"
    drop: float = Field(0.015, ge=0, lt=1, description="accuracy that may be lost, as a fraction (0.015 = 1.5 points)")
    count: Measure = Field("parameters", description="which reduction is rewarded: parameters, macs or latency")

    @property
    def measure(self) -> Measure:
        """As configured."""
        return self.count

    def reward(self, before: Measurement, after: Measurement, baseline: float) -> float:
        """Reduction gained, 0 outside the tolerance."""
        if self.terminated(after, baseline):
            return 0.0
        return after.reduction(self.count) - before.reduction(self.count)

    def terminated(self, after: Measurement, baseline: float) -> bool:
        """Whether accuracy has left the tolerance."""
        # Accuracies are multiples of 1/images: the slack keeps rounding from deciding at the edge.
        return after.accuracy < baseline - self.drop - 1e-9

    def score(self, state: Measurement, baseline: float) -> float:
        """The reduction, within tolerance."""
        return -np.inf if self.terminated(state, baseline) else state.reduction(self.count)

    def efficiency(self, before: Measurement, after: Measurement, baseline: float) -> float:
        """Accuracy lost per reduction gained; a step that leaves the tolerance ranks below all others.

        A small constant is taken off the accuracy, so that of two steps that cost nothing the larger one is better.
        """
        gain = after.reduction(self.count) - before.reduction(self.count)
        return (after.accuracy - before.accuracy - 5e-4) / max(gain, 1e-12) - 1e12 * self.terminated(after, baseline)


@register_objective("budget")
class Budget(Objective):
    """As much accuracy as possible at a given size.

    The episode ends when the target is reached; the action that reaches it is trimmed to meet it within one unit.
    Reward: the change of accuracy. So the return is accuracy minus baseline accuracy.
    """

    kind: Literal["budget"] = "budget"
    macs: float | None = Field(None, gt=0, lt=1, description="share of the MACs that may remain")
    parameters: float | None = Field(None, gt=0, lt=1, description="share of the parameters that may remain")
    latency: float | None = Field(None, gt=0, lt=1, description="share of the latency that may remain")

    @model_validator(mode="after")
    def _one_target(self) -> "Budget":
        if sum(share is not None for share in self._shares.values()) != 1:
            raise ValueError("give exactly one target: macs, parameters or latency")
        return self

    @property
    def _shares(self) -> dict[Measure, float | None]:
        return {measure: getattr(self, measure) for measure in get_args(Measure)}

    @property
    def measure(self) -> Measure:
        """That of the target."""
        return next(measure for measure, share in self._shares.items() if share is not None)

    @property
    def target(self) -> float:
        """The reduction to reach."""
        return 1 - next(share for share in self._shares.values() if share is not None)

    def reward(self, before: Measurement, after: Measurement, baseline: float) -> float:
        """Change of accuracy."""
        return after.accuracy - before.accuracy

    def terminated(self, after: Measurement, baseline: float) -> bool:
        """Whether the target is reached."""
        return after.reduction(self.measure) >= self.target - 1e-12

    def score(self, state: Measurement, baseline: float) -> float:
        """The accuracy, at the target."""
        return state.accuracy if self.terminated(state, baseline) else -np.inf

    def efficiency(self, before: Measurement, after: Measurement, baseline: float) -> float:
        """Accuracy lost per reduction gained."""
        gain = after.reduction(self.measure) - before.reduction(self.measure)
        return (after.accuracy - before.accuracy) / max(gain, 1e-12)

    def trim(self, units: np.ndarray, mask: np.ndarray, costs: CostModel) -> np.ndarray:
        """The shortest leading part of ``units`` that reaches the target; all of them where they do not.

        Latency need not fall with every unit: of the leading parts that reach its target this is one, and without its
        last unit it would not.
        """

        def reached(count: int) -> bool:
            trial = mask.copy()
            trial[units[:count]] = 0
            return costs.reductions(trial).of(self.measure) >= self.target - 1e-12

        if not reached(len(units)):
            return units
        low, high = 0, len(units)  # reached(low) is false, reached(high) is true
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reached(middle) else (middle, high)
        return units[:high]

    def check(self, reach: np.ndarray, costs: CostModel) -> None:
        """Refuse a target beyond one unit per layer."""
        reduction = costs.reductions(reach).of(self.measure)
        if reduction < self.target:
            raise ConfigurationError(
                f"objective.{self.measure}={1 - self.target:.4g} is out of reach: with as little in every prunable "
                f"layer as the actions allow {1 - reduction:.4g} of the {self.measure} remain"
            )


def _objective(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, dict):
        return value
    try:
        objective = _OBJECTIVES[str(value.get("kind"))]
    except UnknownNameError as error:
        raise ValueError(str(error)) from error
    return objective.model_validate(value)


AnyObjective = Annotated[SerializeAsAny[Objective], BeforeValidator(_objective)]
"""A field of a configuration that holds any registered objective."""
