"""A warning when all runners have been gone for a while: what they need, and what the cluster has."""

import logging
import time
from collections.abc import Mapping

import ray

PATIENCE_S = 10.0
"""How long all runners may be gone before the warning."""

_LOG = logging.getLogger("zeroout.r2d2")


class Absence:
    """Warns once of each time that all runners are gone.

    Args:
        runners: how many there should be.
        needs: what Ray reserves for each, by the resource's name.
    """

    def __init__(self, runners: int, needs: Mapping[str, float]) -> None:
        self._runners = runners
        self._needs = {name: amount for name, amount in needs.items() if amount > 0}
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
            nodes = sum(node["Alive"] for node in ray.nodes())
            room = lack(self._needs, ray.cluster_resources(), ray.available_resources(), nodes)
            _LOG.warning(
                "all %d runners have been gone for %.0f s; the training waits for one to come back. %s",
                self._runners,
                now - self._since,
                room,
            )


def lack(needs: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float], nodes: int) -> str:
    """What a runner needs and what the cluster has of it.

    Args:
        needs: of each runner, by the resource's name.
        total: of all nodes together.
        free: of all nodes together.
        nodes: how many there are.
    """
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
    offered = " and ".join(f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}" for name in needs)
    there = "there is 1 node" if nodes == 1 else f"there are {nodes} nodes"
    return f"Each needs {wanted}; free are {offered} ({there}). `ray start` on another machine adds a node"
