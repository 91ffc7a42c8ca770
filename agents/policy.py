"""The policy protocol, and the registry that finds a policy by its name."""

import importlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agents.foreign import foreign_file, import_policy, is_foreign
from envs.actions import Action, Stop
from envs.episodes import Episode
from envs.pruning import Observation, PruningEnv
from envs.tasks import TaskConfig
from recognizers.criteria import criteria, criterion
from recognizers.errors import ConfigurationError, FileError, UnknownNameError
from recognizers.registry import Registry


class Policy(Protocol):
    """Anything that maps an observation to an action.

    A black-box policy uses observation and info alone; a white-box one may keep the environment that :meth:`reset`
    hands it and look at ``env.recognizer``, or measure candidates with ``env.probe``.
    """

    def reset(self, env: PruningEnv) -> None:
        """Prepare for an episode of ``env``, which is reset afterwards. A search may play episodes of its own here."""

    def act(self, observation: Observation, info: dict[str, Any]) -> Action | Stop:
        """Choose an action among the valid ones, ``info["action_mask"]``, or stop here."""


@runtime_checkable
class Search(Policy, Protocol):
    """A policy that plays episodes of its own before it acts; their masks are candidates for the final one, too."""

    episodes: list[Episode]


PolicyFactory = Callable[..., Policy]
"""From ``seed`` and settings of the policy's own to a policy."""

_POLICIES = Registry[PolicyFactory]("policy")
_ALLOCATIONS = Registry[PolicyFactory]("allocation")


def register_policy(name: str) -> Callable[[PolicyFactory], PolicyFactory]:
    """Register a policy class (or function) under ``name``."""
    return _POLICIES.register(name)


def register_allocation(name: str) -> Callable[[PolicyFactory], PolicyFactory]:
    """Register an allocation: a policy class that takes a ``criterion``; with each one it makes NAME:CRITERION."""
    return _ALLOCATIONS.register(name)


def _import_own() -> None:
    """Import the policies that zeroout brings; they register themselves."""
    for module in ("agents.baselines", "agents.learned"):
        importlib.import_module(module)


def policies() -> list[str]:
    """Names of all policies, those of the form ALLOCATION:CRITERION included."""
    _import_own()
    combined = [f"{allocation}:{name}" for allocation in _ALLOCATIONS for name in criteria()]
    return sorted([*_POLICIES, *combined])


def check_policy(name: str) -> None:
    """Refuse a name that :func:`make_policy` does not know; what a user's own file holds is not looked at.

    Raises:
        UnknownNameError: no such policy.
        FileError: a user's own file does not exist.
    """
    _import_own()
    head, _, tail = name.partition(":")
    if name in _POLICIES or (head in _POLICIES and tail):
        return
    if head in _ALLOCATIONS and tail:
        criterion(tail)
    elif not is_foreign(name):
        raise UnknownNameError("policy", name, policies())
    elif (path := foreign_file(name)) is not None and not path.is_file():
        raise FileError(f"no such file: {path}")


def make_policy(name: str, *, seed: int = 0, **settings: Any) -> Policy:
    """Make a policy by name.

    Args:
        name: a registered name, ``ALLOCATION:CRITERION``, ``r2d2:CHECKPOINT``, or that of a class of the user's own,
            ``path/to/file.py:Class`` or ``module:Class``.
        seed: of everything that the policy draws.
        settings: of the policy's own, e.g. ``candidates=8`` for ``lookahead``.

    Raises:
        UnknownNameError: no such policy.
        ConfigurationError: a setting that the policy does not have, or a class that is no policy.
    """
    check_policy(name)
    head, _, tail = name.partition(":")
    factory: PolicyFactory
    if name in _POLICIES:
        factory = _POLICIES[name]
    elif head in _ALLOCATIONS:
        factory, settings = _ALLOCATIONS[head], {"criterion": criterion(tail), **settings}
    elif head in _POLICIES:
        factory, settings = _POLICIES[head], {"source": tail, **settings}
    else:
        factory = import_policy(name)
    try:
        return factory(seed=seed, **settings)
    except TypeError as error:
        raise ConfigurationError(f"policy {name!r}: {error}") from error


def suited(task: TaskConfig, policy: Policy) -> TaskConfig:
    """The task with the kind of actions that the policy says it is made for (its attribute ``actions``), if it does."""
    kind = getattr(policy, "actions", task.actions.kind)
    return task.model_copy(update={"actions": task.actions.model_copy(update={"kind": kind})})


def argmin_valid(scores: np.ndarray, valid: np.ndarray) -> int:
    """Index of the least score, ``[A]``, among the valid actions, ``[A]``; the first of equals."""
    return int(np.argmin(np.where(valid != 0, scores, np.inf)))
