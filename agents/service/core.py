"""The service without its HTTP: what the routes work with."""

import secrets
from pathlib import Path

from agents.holding import hold
from agents.service.controllers import Controller, Gathering
from agents.service.errors import ServiceError
from agents.service.metrics import Metrics
from agents.service.rates import Places, Rate
from agents.service.requests import PruningRequest, task_of
from agents.service.settings import ServiceSettings
from agents.service.store import Job, Store
from agents.service.supervisor import Executor, Supervisor, directory_of
from agents.service.tokens import Tokens
from agents.service.uploads import Uploads
from agents.service.work import Work
from recognizers.errors import ConfigurationError, UnknownNameError

TOKENS = "tokens.json"
LOCAL = "local"
"""Owner of everything where no tokens are needed."""
LETTING_GO = 30.0
"""Seconds in which a service that is told to end lets go of its directory."""


class Service:
    """Everything that the routes need, on one directory.

    Args:
        settings: of the service.
        executor: runs prunings.

    Raises:
        ConfigurationError: another service holds the directory, or there is no token though others can connect.
        FileError: a controller cannot be read.
    """

    def __init__(self, settings: ServiceSettings, executor: Executor) -> None:
        check_tokens(settings)
        self.settings, limits = settings, settings.limits
        root = settings.directory
        self._lock = hold(root, LETTING_GO)
        self.tokens = Tokens(root / TOKENS)
        self.store = Store(root / "service.sqlite")
        self.uploads = Uploads(root / "uploads", self.store, most=limits.stored_uploads, most_bytes=limits.upload_bytes)
        self.rate = Rate(limits.requests_per_minute)
        self.streams = Places(limits.streams, "event streams")
        self.metrics = Metrics(self.store.counts)
        self.controllers = {name: Controller(path) for name, path in settings.controllers.items()}
        self.gatherings = {
            name: Gathering(
                controller.act, most=limits.batch, on_batch=self.metrics.batches.labels(controller=name).observe
            )
            for name, controller in self.controllers.items()
        }
        self.supervisor = Supervisor(self.store, executor, self.plan, workers=settings.workers)

    def start(self) -> None:
        """Take up the work."""
        self.supervisor.start()

    def stop(self) -> None:
        """Leave everything so that another service can go on."""
        self.supervisor.stop()
        self.store.close()
        self._lock.release()

    def submit(self, request: PruningRequest, owner: str) -> Job:
        """Put a pruning into the queue.

        Raises:
            ZeroOutError: it cannot be run, or not now.
        """
        if request.controller is not None and request.controller not in self.controllers:
            raise UnknownNameError("controller", request.controller, self.controllers)
        weights = self.uploads.path(request.weights, owner) if request.weights is not None else None
        task_of(request, weights)
        if request.seconds is not None and request.seconds > self.settings.limits.job_seconds:
            raise ServiceError(f"a pruning may take {self.settings.limits.job_seconds:g} seconds here")
        return self.store.add(
            secrets.token_hex(16), owner, request.model_dump_json(), most=self.settings.limits.concurrent_jobs
        )

    def plan(self, job: Job) -> Work:
        """What the process of a job needs to know."""
        request, root = PruningRequest.model_validate_json(job.request), self.settings.directory
        return Work(
            id=job.id,
            request=request,
            directory=self.directory(job.id),
            weights=root / "uploads" / f"{request.weights}.safetensors" if request.weights else None,
            controller=self.settings.controllers.get(request.controller) if request.controller else None,
            seconds=request.seconds or self.settings.limits.job_seconds,
            home=self.settings.home,
        )

    def directory(self, id_: str) -> Path:
        """Where the files of a pruning lie."""
        return directory_of(self.settings.directory, id_)


def check_tokens(settings: ServiceSettings) -> None:
    """Refuse to let other machines in without a token.

    Raises:
        ConfigurationError: that would happen.
    """
    if not settings.local and not len(Tokens(settings.directory / TOKENS)):
        raise ConfigurationError(
            f"{settings.host} can be reached from other machines: create a token first (zeroout serve --create-token "
            f"NAME --out {settings.directory}), or leave --host out"
        )
