"""Ray: starting it on this machine, or connecting to a cluster."""

import logging
import os

import ray

from agents.r2d2.logs import quiet


def start_ray(address: str | None = None) -> None:
    """Start Ray on this machine, or connect to a cluster; nothing where it runs already.

    Args:
        address: of the cluster; by default that of ``$RAY_ADDRESS`` (which ``ray job submit`` sets), if there is one.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Its C++ side reports how RLlib starts its actors as an error.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        quiet()
        # Without an address Ray would look for a cluster that runs here, and stumble over what a killed one has left.
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def gpu_share(tasks: int) -> dict[str, float]:
    """What Ray is told so that so many tasks share the cluster's GPUs; nothing where it has none."""
    gpus = ray.cluster_resources().get("GPU", 0)
    return {"num_gpus": min(1.0, gpus / tasks)} if gpus else {}
