"""Results: what a policy reached on a task, as written to ``summary.json`` and shown in reports."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from envs.objectives import Measurement
from recognizers.costs import Measure, Reductions


class Curve(BaseModel):
    """The path of an episode, from the complete network (first entry) to the final mask (last entry)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    accuracy: tuple[float, ...] = Field(description="on the reward split")
    parameter_reduction: tuple[float, ...] = Field(description="fraction of parameters removed")
    macs_reduction: tuple[float, ...] = Field(description="fraction of MACs removed")
    latency_reduction: tuple[float, ...] | None = Field(
        None, description="fraction of the latency removed, by a table; None without one"
    )

    def reduction(self, measure: Measure) -> tuple[float, ...] | None:
        """The reductions in one measure; None where it was not counted."""
        return {
            "parameters": self.parameter_reduction,
            "macs": self.macs_reduction,
            "latency": self.latency_reduction,
        }[measure]


class Finetuned(BaseModel):
    """The final network after fine-tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: int
    validation_accuracy: float = Field(description="on the reward split")
    selection_accuracy: float = Field(description="on the selection split, which chose the epoch")
    test_accuracy: float
    seconds: float


class Result(BaseModel):
    """One run of one policy on one task. Accuracies and reductions are fractions; validation is the reward split."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: str
    policy: str
    seed: int
    recovery: dict[str, Any]
    objective: dict[str, Any]
    baseline_validation_accuracy: float
    baseline_selection_accuracy: float
    baseline_test_accuracy: float
    validation_accuracy: float
    selection_accuracy: float
    test_accuracy: float = Field(description="measured once, on the final mask")
    parameter_reduction: float
    macs_reduction: float
    latency_reduction: float | None = Field(None, description="by a latency table; None without one")
    original_parameter_reduction: float | None = Field(
        None, description="as parameter_reduction, of the network before a preparation narrowed it; None in old files"
    )
    original_macs_reduction: float | None = Field(None, description="as macs_reduction, of that network")
    episode_return: float = Field(description="of the policy's own (last) episode, before the choice of a mask")
    kept_units: dict[str, int] = Field(description="kept units per layer")
    units: dict[str, int] = Field(description="units per layer")
    environment_steps: int = Field(description="spent by the policy, searches and training included")
    evaluations: int = Field(description="spent by the policy: environment steps and probes")
    seconds: dict[str, float] = Field(description="per phase: policy (all of it), zero_out, recover, measure, choose")
    curve: Curve
    scores: tuple[tuple[int, float], ...] | None = Field(
        None,
        description="best objective score so far on the reward split: evaluations spent and score, at every rise; None "
        "in old files",
    )
    finetuned: Finetuned | None = None

    @property
    def measurement(self) -> Measurement:
        """Of the final mask, on the reward split."""
        return Measurement(
            self.validation_accuracy, self.parameter_reduction, self.macs_reduction, self.latency_reduction
        )

    @property
    def final_test_accuracy(self) -> float:
        """Test accuracy after fine-tuning, where there was any."""
        return self.finetuned.test_accuracy if self.finetuned else self.test_accuracy

    @property
    def removed(self) -> Reductions:
        """What is gone of the unprepared network, so that all runs compare; latency is that of the prepared one."""
        if self.original_parameter_reduction is None or self.original_macs_reduction is None:
            return Reductions(self.parameter_reduction, self.macs_reduction, self.latency_reduction)
        return Reductions(self.original_parameter_reduction, self.original_macs_reduction, self.latency_reduction)
