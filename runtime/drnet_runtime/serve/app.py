"""The addresses of the server: /classify, /model, /health, /metrics, and the page."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drnet_runtime.serve.answers import about
from drnet_runtime.serve.errors import RETRY_AFTER, RequestError
from drnet_runtime.serve.metrics import CLASSIFY
from drnet_runtime.serve.service import Service

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# The page is of these files alone, and shows pictures that the browser has.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
_CLOSE = (b"connection", b"close")


class _Json(JSONResponse):
    """In ASCII: the name of a class is that of a folder, which need not be Unicode."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def make_app(service: Service) -> ASGIApp:
    """The application around a service."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(service.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    async def classify(request: Request) -> Response:
        try:
            status, content = await service.classify(request)
        except ClientDisconnect:
            # Nobody reads it; it counts as what proxies call a closed request.
            return Response(status_code=499)
        return _Json(content, status)

    async def model(_: Request) -> Response:
        return _Json(about(service.model, service.default))

    async def health(_: Request) -> Response:
        if service.draining:
            headers = {"retry-after": str(RETRY_AFTER)}
            return _Json({"status": "draining"}, 503, headers)
        return _Json({"status": "ready"})

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    routes = [
        Route(CLASSIFY, classify, methods=["POST"]),
        Route("/model", model),
        Route("/health", health),
        Route("/metrics", metrics),
        *(_file(path, *file) for path, file in _PAGE.items()),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            RequestError: _refused,
            HTTPException: _not_found,
            Exception: _failed,
        },
    )
    return _Outside(app, service, {route.path for route in routes})


def _file(path: str, name: str, kind: str) -> Route:
    content = (files("drnet_runtime.serve") / "static" / name).read_bytes()

    async def serve(_: Request) -> Response:
        return Response(content, media_type=kind)

    return Route(path, serve)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 408:
        # What is left of the request is not read.
        headers["connection"] = "close"
    return _Json({"error": error.message}, error.status, headers)


async def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _Json({"error": error.detail}, error.status_code, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    return _Json({"error": "the server failed; its log says why"}, 500)


class _Outside:
    """Around the application: headers of every response, and its count.

    While the server drains every response closes its connection, so that the client opens the
    next one elsewhere.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: set[str]) -> None:
        self._app = app
        self._service = service
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._service.metrics.arrived(path)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += _HEADERS
                if self._service.draining and _CLOSE not in message["headers"]:
                    message["headers"].append(_CLOSE)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._service.metrics.responded(path, status, time.perf_counter() - start)
