"""The service on Ray Serve: one replica answers requests, prunings are Ray tasks."""

import signal
import threading
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from agents.cluster import gpu_share, start_ray
from agents.holding import hold
from agents.service.app import create_app
from agents.service.core import LETTING_GO, Service, check_tokens
from agents.service.logs import log_to
from agents.service.settings import ServiceSettings
from agents.service.supervisor import ProcessDiedError
from agents.service.work import Outcome, Work, perform
from recognizers.errors import ConfigurationError

APPLICATION = "zeroout"
LOG = "service.log"
REQUESTS = 512
"""Requests that are looked after at a time, event streams included."""


class RayExecutor:
    """A Ray task for each pruning.

    Args:
        workers: tasks that share the cluster's GPUs, where it has any.
    """

    def __init__(self, workers: int) -> None:
        self._perform = ray.remote(num_cpus=1, max_retries=0, **gpu_share(workers))(perform)

    def start(self, work: Work) -> Any:
        """Hand a pruning to Ray."""
        return self._perform.remote(work)

    def outcome(self, handle: Any) -> Outcome | None:
        """What came of it; None as long as it runs.

        Raises:
            ProcessDiedError: nothing did.
        """
        finished, _ = ray.wait([handle], timeout=0)
        if not finished:
            return None
        try:
            outcome: Outcome = ray.get(handle)
        except ray.exceptions.RayError as error:
            raise ProcessDiedError(str(error)) from error
        return outcome

    def end(self, handle: Any) -> None:
        """End its process."""
        ray.cancel(handle, force=True)


class Deployment:
    """What Ray Serve runs.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._service: Service | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        torch.set_num_threads(1)  # controllers are small, and the cores belong to the prunings
        log_to(self._settings.directory / LOG)
        self._service = Service(self._settings, RayExecutor(self._settings.workers))
        return create_app(self._service)

    def check_health(self) -> None:
        """Have Ray Serve replace a replica that no longer looks after its prunings."""
        if self._service is not None and not self._service.supervisor.alive:
            raise RuntimeError("the supervisor has stopped")


def application(settings: ServiceSettings) -> serve.Application:
    """The service as an application of Ray Serve, also for its configuration files (``import_path``).

    Args:
        settings: of the service; a configuration file gives them as ``args``.
    """
    replica = serve.deployment(
        name=APPLICATION,
        num_replicas=1,  # the record has one writer,
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},  # which stays where it is
        max_ongoing_requests=REQUESTS,
    )(serve.ingress()(Deployment))
    return replica.bind(settings)


def run(settings: ServiceSettings, address: str | None = None) -> None:
    """Serve until the process is told to end.

    Args:
        settings: of the service.
        address: of a Ray cluster; this machine by default.

    Raises:
        ConfigurationError: see :class:`~agents.service.core.Service`; or it does not come up.
    """
    check_tokens(settings)
    hold(settings.directory, LETTING_GO).release()
    start_ray(address)
    try:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=settings.host, port=settings.port),
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )
        try:
            serve.run(application(settings), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise ConfigurationError(
                f"the service does not come up, see {settings.directory / LOG}: {error}"
            ) from error
        _wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def _wait() -> None:
    """Until the process is told to end."""
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    while not over.wait(1.0):  # without a timeout no signal would be seen
        pass
