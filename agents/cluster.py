"""Ray: starting it on this machine, or connecting to a cluster."""

import logging
import os

import ray

from agents.r2d2.logs import quiet


def start_ray(address: str | None = None) -> None:
    """Start Ray on this machine, or connect to the cluster at ``address``; nothing where it runs already."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Its C++ side reports how RLlib starts its actors as an error.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        quiet()
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
