"""Weights that clients upload."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from agents.service.routes.common import PROTECTED, Id, Owner, ServiceOf

router = APIRouter(prefix="/v1/weights", tags=["weights"], **PROTECTED)


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


@router.post("", status_code=201, openapi_extra=_FILE)
async def upload(request: Request, service: ServiceOf, owner: Owner) -> Uploaded:
    """Upload the weights of a network: a safetensors file, as the body."""
    received = await service.uploads.receive(owner, request.stream())
    return Uploaded(id=received.id, bytes=received.bytes, sha256=received.sha256)


@router.delete("/{id}", status_code=204)
def remove(id: Id, service: ServiceOf, owner: Owner) -> None:
    """Delete uploaded weights."""
    service.uploads.remove(id, owner)
