"""Health, counters, and the web page."""

import asyncio
from importlib import resources

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from agents.service.metrics import CONTENT_TYPE
from agents.service.routes.common import ERRORS, SCHEME, ServiceOf

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    """Whether the service works."""

    status: str


@router.get("/healthz", responses={503: {"model": Health, "description": "prunings are not looked after"}})
def health(service: ServiceOf, response: Response) -> Health:
    """Whether requests are answered and prunings looked after."""
    if not service.supervisor.alive:
        response.status_code = 503
        return Health(status="supervisor has stopped")
    return Health(status="ok")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, 401: ERRORS[401]},
    dependencies=[Depends(SCHEME)],
)
async def metrics(service: ServiceOf) -> Response:
    """Counters for Prometheus."""
    return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE)


_PAGE = resources.files("agents.service") / "page"


@router.get("/", include_in_schema=False)
def page() -> Response:
    """The web page."""
    return Response((_PAGE / "page.html").read_bytes(), media_type="text/html")


@router.get("/page.js", include_in_schema=False)
def script() -> Response:
    """Its script."""
    return Response((_PAGE / "page.js").read_bytes(), media_type="text/javascript")


@router.get("/page.css", include_in_schema=False)
def style() -> Response:
    """Its style."""
    return Response((_PAGE / "page.css").read_bytes(), media_type="text/css")
