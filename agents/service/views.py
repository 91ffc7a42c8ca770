"""What clients see of a pruning."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from agents.run_directory import RunDirectory
from agents.service.requests import PruningRequest
from agents.service.store import Job, State


class Artifact(StrEnum):
    """A file of a finished pruning."""

    MASK = "mask"
    MODEL = "model"
    FINETUNED = "finetuned"
    WEIGHTS = "weights"
    REPORT = "report"

    def file(self, run: RunDirectory) -> Path:
        """Where it lies, or would lie."""
        return {
            Artifact.MASK: run.mask,
            Artifact.MODEL: run.compact,
            Artifact.FINETUNED: run.finetuned,
            Artifact.WEIGHTS: run.recognizer,
            Artifact.REPORT: run.report,
        }[self]


class Summary(BaseModel):
    """A pruning in a list."""

    id: str
    number: int = Field(description="order of arrival; for the parameter `before` of the list")
    state: State
    network: str = Field(description="the task, or data and architecture")
    selector: str = Field(description="policy or controller")
    created: datetime
    started: datetime | None = Field(description="of the latest attempt")
    ended: datetime | None
    attempts: int = Field(description="more than one where its process died")
    failure: str | None = Field(description="why it failed")

    @classmethod
    def of(cls, job: Job) -> "Summary":
        """From the record."""
        return cls(**_summary(job))


class Pruning(Summary):
    """All of a pruning."""

    request: PruningRequest
    result: dict[str, Any] | None = Field(description="figures, as in summary.json of `zeroout prune`")
    artifacts: list[Artifact] = Field(description="files that can be had")

    @classmethod
    def whole(cls, job: Job, directory: Path) -> "Pruning":
        """From the record and the files."""
        finished = job.state == "finished"
        run = RunDirectory(directory)
        return cls(
            **_summary(job),
            request=PruningRequest.model_validate_json(job.request),
            result=json.loads(job.result) if job.result else None,
            artifacts=[artifact for artifact in Artifact if finished and artifact.file(run).is_file()],
        )


def _summary(job: Job) -> dict[str, Any]:
    request = PruningRequest.model_validate_json(job.request)
    return {
        "id": job.id,
        "number": job.number,
        "state": job.state,
        "network": request.task or f"{request.data}/{request.architecture}",
        "selector": request.selector,
        "created": _time(job.created),
        "started": _time(job.started),
        "ended": _time(job.ended),
        "attempts": job.attempts,
        "failure": job.failure,
    }


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
