"""Prunings: asking for them, following them, and their files."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from agents.run_directory import RunDirectory
from agents.service.core import Service
from agents.service.errors import NotFoundError
from agents.service.progress import follow
from agents.service.requests import PruningRequest
from agents.service.routes.common import PROTECTED, Id, Owner, ServiceOf, problem_of
from agents.service.store import Job
from agents.service.views import Artifact, Pruning, Summary

router = APIRouter(prefix="/v1/prunings", tags=["prunings"], **PROTECTED)

_CONFLICT: dict[int | str, dict[str, Any]] = {409: problem_of("not in the present state")}


@router.post("", status_code=202)
def submit(request: PruningRequest, service: ServiceOf, owner: Owner) -> Pruning:
    """Ask for a pruning. It waits in a queue until a worker is free."""
    return _whole(service.submit(request, owner), service)


@router.get("")
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


@router.get("/{id}")
def whole(job: JobOf, service: ServiceOf) -> Pruning:
    """One of them, with its result."""
    return _whole(job, service)


def _whole(job: Job, service: Service) -> Pruning:
    return Pruning.whole(job, service.directory(job.id))


@router.post("/{id}/cancel", responses=_CONFLICT)
def cancel(id: Id, service: ServiceOf, owner: Owner) -> Pruning:
    """End a pruning. One that runs is `cancelling` until its process is gone."""
    return _whole(service.store.cancel(id, owner), service)


def _place(job: JobOf, service: ServiceOf, owner: Owner) -> Iterator[None]:
    with service.streams.one(owner):
        yield


@router.get("/{id}/events", response_class=EventSourceResponse, dependencies=[Depends(_place)])
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


@router.get(
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
