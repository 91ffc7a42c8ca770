"""What routes share: who asks, of which service, and the errors that the document names."""

from typing import Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.security import HTTPBearer

from agents.service.core import Service


def problem_of(description: str) -> dict[str, Any]:
    """An error in the document; always JSON, whatever else the route gives."""
    schema = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


SCHEME = HTTPBearer(auto_error=False, description="made by `zeroout serve --create-token NAME`")  # for the document
ERRORS: dict[int | str, dict[str, Any]] = {
    status: problem_of(description)
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


# These are coroutines as FastAPI hands plain functions to threads, which takes longer than what they do.


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _owner(request: Request) -> str:
    owner: str = request.state.owner
    return owner


ServiceOf = Annotated[Service, Depends(_service)]
Owner = Annotated[str, Depends(_owner)]
Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]

PROTECTED: dict[str, Any] = {"responses": ERRORS, "dependencies": [Depends(SCHEME)]}
