"""What every request passes: who asks, how often, how much, how long; and what is noted of it."""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agents.service.core import LOCAL, Service
from agents.service.errors import ServiceError, TooLargeError, TooManyError, UnauthorizedError
from agents.service.settings import LOOPBACK

PUBLIC = {"/", "/page.js", "/page.css", "/healthz", "/openapi.json"}
"""Paths that hold nothing of anybody's."""
UPLOAD = "/v1/weights"
SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
}

_LOG = logging.getLogger("zeroout.service.requests")


class RequestTimeoutError(ServiceError):
    """A request took too long."""

    status = 408


@dataclass
class _Passing:
    """A request on its way."""

    id: str
    owner: str = "-"
    status: int = 0
    inside: bool = False
    started: float = field(default_factory=time.perf_counter)


class Gate:
    """ASGI middleware around everything.

    Args:
        app: what is inside.
        service: knows tokens and limits, and takes the counts.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        passing = _Passing(_request_id(headers))
        timeout = asyncio.timeout(self._service.settings.limits.request_seconds)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                passing.status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = passing.id
                for name, value in SECURITY.items():
                    answer.setdefault(name, value)
                if passing.inside:
                    timeout.reschedule(None)  # downloads and event streams may take their time
            await send(message)

        try:
            async with timeout:
                passing.inside = True
                try:
                    await self._pass(scope, headers, receive, watched, passing)
                finally:
                    passing.inside = False
        except Exception as error:
            if not isinstance(error, ServiceError | TimeoutError):
                _LOG.exception("request failed", extra={"request": passing.id})
            if not passing.status:
                await _refuse(watched, error)
        finally:
            self._note(scope, passing)

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, send: Send, passing: _Passing) -> None:
        passing.owner = self._admit(scope["path"], headers)
        scope.setdefault("state", {})["owner"] = passing.owner
        upload = scope["path"] == UPLOAD and scope["method"] == "POST"
        limits = self._service.settings.limits
        most = limits.upload_bytes if upload else limits.body_bytes
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > most:
            raise TooLargeError(f"the body has {int(length):,} bytes, {most:,} are allowed")
        await self._app(scope, receive if upload else _replay(await _body(receive, most), receive), send)

    def _admit(self, path: str, headers: Headers) -> str:
        """The owner of what is asked for."""
        if path in PUBLIC:
            return LOCAL
        service = self._service
        if len(service.tokens):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            owner = service.tokens.owner(token.strip()) if scheme.lower() == "bearer" else None
            if owner is None:
                raise UnauthorizedError("this needs a token: Authorization: Bearer TOKEN")
        else:
            # Without tokens a page on the internet must not reach this service through a name of its own.
            if not service.settings.local or _host(headers) not in LOOPBACK:
                raise UnauthorizedError("without a token this service answers under its local names only")
            owner = LOCAL
        if wait := service.rate.take(owner):
            raise TooManyError(f"too many requests: try again in {wait:.1f} seconds")
        return owner

    def _note(self, scope: Scope, passing: _Passing) -> None:
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.perf_counter() - passing.started
        self._service.metrics.requests.labels(scope["method"], route, str(passing.status)).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)
        _LOG.info(
            "request",
            extra={
                "request": passing.id,
                "owner": passing.owner,
                "method": scope["method"],
                "route": route,
                "status": passing.status,
                "milliseconds": round(1000 * seconds, 2),
            },
        )


def problem(error: Exception) -> tuple[int, dict[str, str], dict[str, str]]:
    """Status, body and headers of the answer to an error."""
    if isinstance(error, TimeoutError):
        error = RequestTimeoutError("the request took too long")
    if not isinstance(error, ServiceError):
        return 500, {"detail": "internal error"}, {}
    headers = {
        401: {"www-authenticate": "Bearer"},
        413: {"connection": "close"},
        429: {"retry-after": "1"},
    }.get(error.status, {})
    # JSON lets half of a surrogate pair in, UTF-8 does not let it out.
    return error.status, {"detail": str(error).encode("utf-8", "replace").decode()}, headers


async def _refuse(send: Send, error: Exception) -> None:
    status, content, headers = problem(error)
    body = json.dumps(content).encode()
    fields: Mapping[str, str] = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive, most: int) -> bytes:
    """The whole body, as far as it is no larger than ``most``."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise TooLargeError(f"the body has more than {most:,} bytes")
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read already, then what comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _request_id(headers: Headers) -> str:
    """The client's, where it is harmless."""
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", given) else secrets.token_hex(8)


def _host(headers: Headers) -> str:
    """The name under which the client knows the service, without its port."""
    host = headers.get("host", "")
    return host[1 : host.find("]")] if host.startswith("[") else host.rpartition(":")[0] or host
