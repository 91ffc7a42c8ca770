"""The routes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field

from agents.run_directory import RunDirectory
from agents.service.core import Service
from agents.service.errors import NotFoundError, ServiceError
from agents.service.metrics import CONTENT_TYPE
from agents.service.progress import follow
from agents.service.requests import PruningRequest
from agents.service.store import Job
from agents.service.views import Artifact, Pruning, Summary


def _problem(description: str) -> dict[str, Any]:
    """An error in the document; always JSON, whatever else the route gives."""
    schema = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_SCHEME = HTTPBearer(auto_error=False, description="made by `zeroout serve --create-token NAME`")  # for the document
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: _problem(description)
    for status, description in {
        400: "the body is no JSON",
        401: "no token, or a wrong one",
        404: "there is no such thing, or it is somebody else's",
        408: "it took too long",
        413: "the body is too large",
        422: "something about the request is wrong",
        429: "a limit of the token is reached",
    }.items()
}
_CONFLICT: dict[int | str, dict[str, Any]] = {409: _problem("not in the present state")}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _owner(request: Request) -> str:
    owner: str = request.state.owner
    return owner


ServiceOf = Annotated[Service, Depends(_service)]
Owner = Annotated[str, Depends(_owner)]
Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]

_common: dict[str, Any] = {"responses": _ERRORS, "dependencies": [Depends(_SCHEME)]}
prunings = APIRouter(prefix="/v1/prunings", tags=["prunings"], **_common)
weights = APIRouter(prefix="/v1/weights", tags=["weights"], **_common)
controllers = APIRouter(prefix="/v1/controllers", tags=["controllers"], **_common)
operation = APIRouter(tags=["operation"])


# --- prunings ---


@prunings.post("", status_code=202)
def submit(request: PruningRequest, service: ServiceOf, owner: Owner) -> Pruning:
    """Ask for a pruning. It waits in a queue until a worker is free."""
    return _whole(service.submit(request, owner), service)


@prunings.get("")
def listed(
    service: ServiceOf,
    owner: Owner,
    most: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[int | None, Query(ge=1, lt=2**62, description="number of the oldest one known")] = None,
) -> list[Summary]:
    """Your prunings, newest first."""
    return [Summary.of(job) for job in service.store.jobs_of(owner, most=most, before=before)]


def _job(id: Id, service: ServiceOf, owner: Owner) -> Job:
    return service.store.job(id, owner)


JobOf = Annotated[Job, Depends(_job)]


@prunings.get("/{id}")
def whole(job: JobOf, service: ServiceOf) -> Pruning:
    """One of them, with its result."""
    return _whole(job, service)


def _whole(job: Job, service: Service) -> Pruning:
    return Pruning.whole(job, service.directory(job.id))


@prunings.post("/{id}/cancel", responses=_CONFLICT)
def cancel(id: Id, service: ServiceOf, owner: Owner) -> Pruning:
    """End a pruning. One that runs is `cancelling` until its process is gone."""
    return _whole(service.store.cancel(id, owner), service)


def _place(job: JobOf, service: ServiceOf, owner: Owner) -> Iterator[None]:
    with service.streams.one(owner):
        yield


@prunings.get("/{id}/events", response_class=EventSourceResponse, dependencies=[Depends(_place)])
async def events(
    job: JobOf, service: ServiceOf, last_event_id: Annotated[str | None, Header(max_length=40)] = None
) -> AsyncIterator[ServerSentEvent]:
    """What happens, as server-sent events, until the pruning has ended.

    `state`: where it stands; `opened`: baseline accuracy and units per layer; `evaluations`: how many are spent;
    `step`: accuracy, reductions and kept units after a step; `finetuning`. Whoever comes back with `Last-Event-ID` goes
    on behind it.
    """
    async for event in follow(lambda: service.store.job(job.id), service.directory(job.id), last_event_id):
        yield ServerSentEvent(data=event.data, event=event.kind, id=event.id)


@prunings.get(
    "/{id}/{artifact}",
    response_class=FileResponse,
    responses=_CONFLICT | {200: {"content": {"application/octet-stream": {}, "text/html": {}}}},
)
def download(job: JobOf, artifact: Artifact, service: ServiceOf) -> FileResponse:
    """A file: the mask; the compact network (`model`), and fine-tuned; the base `weights`; the report."""
    path = artifact.file(RunDirectory(service.directory(job.id)))
    if job.state != "finished" or not path.is_file():
        raise NotFoundError(f"pruning {job.id} is {job.state}: there is no {artifact}")
    if artifact is Artifact.REPORT:
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
        return FileResponse(path, media_type="text/html", headers={"content-security-policy": policy})
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


# --- weights ---


class Uploaded(BaseModel):
    """Weights that were uploaded."""

    id: str = Field(description="for the field `weights` of a pruning")
    bytes: int
    sha256: str


_FILE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@weights.post("", status_code=201, openapi_extra=_FILE)
async def upload(request: Request, service: ServiceOf, owner: Owner) -> Uploaded:
    """Upload the weights of a network: a safetensors file, as the body."""
    received = await service.uploads.receive(owner, request.stream())
    return Uploaded(id=received.id, bytes=received.bytes, sha256=received.sha256)


@weights.delete("/{id}", status_code=204)
def remove(id: Id, service: ServiceOf, owner: Owner) -> None:
    """Delete uploaded weights."""
    service.uploads.remove(id, owner)


# --- controllers ---


class ControllerView(BaseModel):
    """A controller that can be asked for actions."""

    name: str
    actions: int = Field(description="A, the number of actions")
    observation: dict[str, list[int]] = Field(description="shapes of the entries of an observation")


class ActRequest(BaseModel):
    """What B episodes look like now."""

    model_config = ConfigDict(extra="forbid")
    observations: list[dict[str, Any]] = Field(min_length=1, description="of each episode, as the environment gives it")
    action_masks: list[list[int]] = Field(min_length=1, description="[B, A], 1 for valid actions")
    rewards: list[float] | None = Field(None, description="of the previous steps, [B]; leave out at the beginning")
    state: str | None = Field(None, description="as it came with the previous actions; leave out at the beginning")


class Acted(BaseModel):
    """What a controller does."""

    actions: list[int] = Field(description="of each episode")
    state: str = Field(description="to be sent with the next observations; opaque")


@controllers.get("")
def available(service: ServiceOf) -> list[ControllerView]:
    """The controllers that are served."""
    return [
        ControllerView(
            name=name,
            actions=controller.actions,
            observation={key: list(space.shape or ()) for key, space in controller.spaces.items()},
        )
        for name, controller in service.controllers.items()
    ]


@controllers.post("/{name}/act")
async def act(name: str, request: ActRequest, service: ServiceOf) -> Acted:
    """Actions of the highest value, for any number of episodes at once. The service keeps nothing of them."""
    if name not in service.controllers:
        raise NotFoundError(f"no such controller: {name}; there are {sorted(service.controllers)}")
    if len(request.observations) > service.settings.limits.batch:
        raise ServiceError(f"a request may hold {service.settings.limits.batch} observations")
    controller = service.controllers[name]
    batch = controller.batch(request.observations, request.action_masks, request.rewards, request.state)
    after = await service.gatherings[name](batch)
    return Acted(actions=after["actions"].tolist(), state=controller.encoded(after))


# --- operation ---


class Health(BaseModel):
    """Whether the service works."""

    status: str


@operation.get("/healthz", responses={503: {"model": Health, "description": "prunings are not looked after"}})
def health(service: ServiceOf, response: Response) -> Health:
    """Whether requests are answered and prunings looked after."""
    if not service.supervisor.alive:
        response.status_code = 503
        return Health(status="supervisor has stopped")
    return Health(status="ok")


@operation.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, 401: _ERRORS[401]},
    dependencies=[Depends(_SCHEME)],
)
async def metrics(service: ServiceOf) -> Response:
    """Counters for Prometheus."""
    return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE)


_PAGE = resources.files("agents.service") / "page"


@operation.get("/", include_in_schema=False)
def page() -> Response:
    """The web page."""
    return Response((_PAGE / "page.html").read_bytes(), media_type="text/html")


@operation.get("/page.js", include_in_schema=False)
def script() -> Response:
    """Its script."""
    return Response((_PAGE / "page.js").read_bytes(), media_type="text/javascript")


@operation.get("/page.css", include_in_schema=False)
def style() -> Response:
    """Its style."""
    return Response((_PAGE / "page.css").read_bytes(), media_type="text/css")
