"""Warnings of what a training waits for: room in the cluster, or the return of its runners."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray

PATIENCE_S = 10.0
"""How long all runners may be gone before the warning."""

_LOG = logging.getLogger("zeroout.r2d2")


def warn_of_lack(needs: Mapping[str, float]) -> None:
    """Warn if the cluster has less than a training reserves for its runners and learners, since it waits for more.

    Args:
        needs: of all of them together, by the resource's name.
    """
    total = ray.cluster_resources()
    if any(amount > total.get(name, 0.0) for name, amount in needs.items()):
        _LOG.warning(
            "the training reserves %s for its runners and learners, and waits until there is so much. %s",
            amounts(needs),
            supply(needs),
        )


class Absence:
    """Warns once of each time that all runners are gone.

    Args:
        runners: how many there should be.
        needs: what Ray reserves for each, by the resource's name.
    """

    def __init__(self, runners: int, needs: Mapping[str, float]) -> None:
        self._runners, self._needs = runners, needs
        self._since: float | None = None
        self._warned = False

    def watch(self, *, all_gone: bool) -> None:
        """Take note of how things are; to be called again and again."""
        if not all_gone:
            self._since, self._warned = None, False
            return
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if not self._warned and now - self._since >= PATIENCE_S:
            self._warned = True
            _LOG.warning(
                "all runners (%d) have been gone for %.0f s; the training waits for one to return. Each needs %s. %s",
                self._runners,
                now - self._since,
                amounts(self._needs),
                supply(self._needs),
            )


def needs_of(config: Any) -> dict[str, float]:
    """What Ray reserves for each remote runner of a configuration, by the resource's name."""
    return _positive(CPU=config.num_cpus_per_env_runner, GPU=config.num_gpus_per_env_runner)


def all_needs_of(config: Any) -> dict[str, float]:
    """What Ray reserves for all remote runners and learners of a configuration together."""
    runners, learners = config.num_env_runners, config.num_learners
    cpus, gpus = config.num_cpus_per_learner, config.num_gpus_per_learner
    if cpus == "auto":  # RLlib's default
        cpus = 0 if gpus else 1
    return _positive(
        CPU=runners * config.num_cpus_per_env_runner + learners * cpus,
        GPU=runners * config.num_gpus_per_env_runner + learners * gpus,
    )


def _positive(**reserved: float) -> dict[str, float]:
    return {name: amount for name, amount in reserved.items() if amount > 0}


def amounts(needs: Mapping[str, float]) -> str:
    """Resources in words."""
    return " and ".join(f"{amount:g} {name}" for name, amount in needs.items())


def supply(needs: Mapping[str, float]) -> str:
    """What the cluster has of such resources, in words; Ray takes a while to notice that a node is gone."""
    total, free = ray.cluster_resources(), ray.available_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    offered = " and ".join(f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}" for name in needs)
    known = "1 node" if nodes == 1 else f"{nodes} nodes"
    return f"Ray knows of {known} with {offered} free; `ray start` on another machine adds a node"
