"""What a client may ask a pruning for, and the task that follows from it. No field names a file of the server."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.policy import policies
from envs.tasks import TaskConfig
from recognizers.errors import ConfigurationError, UnknownNameError
from recognizers.settings import read_yaml, shipped, validate

Data = Literal["digits", "fashion_mnist", "cifar10", "cifar100"]
OBJECTIVES = ("tolerance", "budget")

_UNSERVED = "r2d2"  # reads files of the server; controllers are named by another field


class PruningRequest(BaseModel):
    """A pruning: which network, who selects the units, how the network recovers, and to what end."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: str | None = Field(None, max_length=200, description="name of a task that zeroout ships")
    architecture: str | None = Field(
        None, max_length=200, description="in place of a task: name in the zoo, or of a torchvision model"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the architecture")
    data: Data | None = Field(None, description="data set that the architecture was trained on")
    weights: str | None = Field(
        None, pattern="^[0-9a-f]{32}$", description="identifier of uploaded weights; an architecture needs them"
    )
    policy: str | None = Field(None, max_length=200, description="who selects, e.g. lookahead, uniform:l1")
    controller: str | None = Field(None, max_length=200, description="in place of a policy: a controller served here")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the policy, e.g. candidates of lookahead")
    recovery: dict[str, Any] | None = Field(None, description="kind (none, bn, finetune, reconstruct, unify), settings")
    objective: dict[str, Any] | None = Field(None, description="kind (tolerance, budget), settings")
    actions: dict[str, Any] | None = Field(None, description="kind (unit, block, layer, mask), settings")
    seed: int = Field(0, ge=0, lt=2**31, description="of everything random")
    finetune: bool = Field(False, description="fine-tune the pruned network as the task says")
    seconds: float | None = Field(None, gt=0, allow_inf_nan=False, description="that it may take, within the limits")

    @model_validator(mode="after")
    def _whole(self) -> "PruningRequest":
        if (self.task is None) == (self.architecture is None):
            raise ValueError("give a task or an architecture")
        if self.architecture is not None and (self.data is None or self.weights is None):
            raise ValueError("an architecture needs data and weights")
        if self.task is not None and (self.data is not None or self.arguments):
            raise ValueError("a task has its data and arguments")
        if (self.policy is None) == (self.controller is None):
            raise ValueError("give a policy or a controller")
        return self

    @property
    def selector(self) -> str:
        """Who selects, as results name it."""
        return self.policy or f"controller:{self.controller}"


def offered_policies() -> list[str]:
    """Policies that a client may name."""
    return [name for name in policies() if name != _UNSERVED]


def task_of(request: PruningRequest, weights: Path | None = None) -> TaskConfig:
    """The task that a request describes.

    Args:
        request: what is asked for.
        weights: the uploaded file, where there is one.

    Raises:
        UnknownNameError: no such task, policy or objective.
        ConfigurationError: a setting is unknown or unusable.
    """
    _check_policy(request)
    tree = _tree(request)
    for section in ("recovery", "objective", "actions"):
        given = getattr(request, section)
        if given is None:
            continue
        before = tree.get(section) or {}
        # The settings of another kind mean nothing to this one.
        tree[section] = given if given.get("kind", before.get("kind")) != before.get("kind") else {**before, **given}
    kind = (request.objective or {}).get("kind")
    if kind is not None and kind not in OBJECTIVES:  # others may read files
        raise UnknownNameError("objective", str(kind), OBJECTIVES)
    if weights is not None:
        tree["recognizer"] = {**tree["recognizer"], "weights": str(weights)}
    return validate(TaskConfig, tree, "request")


def _tree(request: PruningRequest) -> dict[str, Any]:
    if request.task is None:
        return {
            "name": f"{request.data}/{request.architecture}",
            "recognizer": {"architecture": request.architecture, "arguments": request.arguments},
            "data": {"spec": request.data},
        }
    known = shipped("tasks")
    if request.task not in known:  # a path would be read otherwise
        raise UnknownNameError("task", request.task, known)
    return read_yaml(known[request.task])


def _check_policy(request: PruningRequest) -> None:
    """Refuse names that make a process of the server import or read something."""
    offered = offered_policies()
    if request.policy is not None and request.policy not in offered:
        raise UnknownNameError("policy", request.policy, offered)
    for text in _texts(request.settings):
        if not re.fullmatch(r"[\w-]*", text) and text not in offered:
            raise ConfigurationError(f"settings: {text[:100]!r} is neither a plain word nor the name of a policy")


def _texts(value: Any) -> list[str]:
    """All texts in a JSON value, keys aside."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []
