"""The HTTP application. Its OpenAPI document is at ``/openapi.json``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from agents.service.core import Service
from agents.service.errors import ServiceError
from agents.service.gate import Gate, problem
from agents.service.routes import controllers, operation, prunings, weights
from agents.service.work import without_paths
from recognizers.errors import ZeroOutError, first_fault

DESCRIPTION = """
Prunes convolutional networks, and lets clients ask trained controllers for actions.

Where the service has tokens, every request under `/v1` carries one: `Authorization: Bearer TOKEN`. What one token has
made is unseen by others. Errors are JSON with a `detail`; every answer has an `x-request-id`.
"""


def create_app(service: Service) -> FastAPI:
    """The application around a service, which starts and stops with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.stop()

    app = FastAPI(
        title="zeroout",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # these pages load their scripts from the internet
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Gate, service=service)
    app.add_exception_handler(ZeroOutError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    for routes in (prunings, weights, controllers, operation):
        app.include_router(routes.router)
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """An error that a client can act on."""
    if not isinstance(error, ServiceError):
        error = ServiceError(without_paths(str(error)))
    status, content, headers = problem(error)
    return JSONResponse(content, status, headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """A request of the wrong form; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    return await _refused(request, ServiceError(first_fault(error)[:500]))
