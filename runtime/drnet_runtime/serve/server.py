"""The process: loads the export, listens, and ends when it is told to."""

import asyncio
import logging
import signal
import socket
import sys
import types
from collections.abc import Callable
from typing import NoReturn

import uvicorn

from drnet_runtime import AdaptiveModel, ExportDirectoryError
from drnet_runtime.serve.app import make_app
from drnet_runtime.serve.connection import connection_within
from drnet_runtime.serve.errors import RequestError
from drnet_runtime.serve.service import Service
from drnet_runtime.serve.settings import Settings
from drnet_runtime.terminal import printable

# That connections may still ask in, once nothing is accepted any more: a request may be on its way.
_LAST_SECONDS = 0.5
_TICK = 0.05
# Connections that the system keeps until they are taken.
_BACKLOG = 1024


class Server(uvicorn.Server):
    """uvicorn's, which drains before it closes connections.

    Attributes:
      service: that is told so.
      drain_seconds: in which new connections are still taken.
    """

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self.service = service
        self.drain_seconds = drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.draining = True
        await self._sleep(self.drain_seconds)
        for server in self.servers:
            server.close()
        for given in sockets or []:
            given.close()
        await self._sleep(_LAST_SECONDS)
        await super().shutdown(sockets)

    async def _sleep(self, seconds: float) -> None:
        """Until then, or until a second signal asks for haste."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end and not self.force_exit:
            await asyncio.sleep(_TICK)


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; the exit code."""
    _on_signals(_leave)
    try:
        listening = _listen(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host}, port {settings.port}"
        return _error(f"cannot listen at {where}: {error.strerror or error}; choose another one")
    with listening:
        try:
            model = AdaptiveModel.load(
                settings.directory, threads=settings.threads, int8=settings.int8
            )
            service = Service(model, settings)
        except ExportDirectoryError as error:
            return _error(str(error))
        except RequestError as error:
            return _error(f"the default budget: {error.message}")
        _serve(service, settings, listening)
    return 0


def _serve(service: Service, settings: Settings, listening: socket.socket) -> None:
    config = uvicorn.Config(
        make_app(service),
        http=connection_within(settings.client_seconds, settings.max_connections),
        ws="none",
        loop="asyncio",
        # Its warnings are of what clients send, any number of times.
        log_level="error",
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
    )
    # The client is told of a form that cannot be read; the log has no need of it.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    server = Server(config, service, settings.drain_seconds)

    def end(number: int, frame: types.FrameType | None) -> None:
        server.should_exit = True

    # Until uvicorn takes the signals over; the one that ended it, it raises once more at its end.
    _on_signals(end)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {settings.directory} at http://{shown}:{port}/", flush=True)
    server.run([listening])
    print(f"ended: {service.metrics.summary()}", flush=True)


def _listen(host: str, port: int) -> socket.socket:
    """A socket at the first address of the host."""
    kind = socket.SOCK_STREAM
    found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    # Only of sockets that name TCP does asyncio take Nagle's delay, 40 ms of an answer.
    listening = socket.socket(family, kind, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _on_signals(handler: Callable[[int, types.FrameType | None], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _leave(number: int, frame: types.FrameType | None) -> NoReturn:
    """Nothing is served yet. (As a container's first process it would outlive the default.)"""
    sys.exit(0)


def _error(message: str) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return 2
