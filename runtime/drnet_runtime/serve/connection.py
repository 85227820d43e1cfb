"""Connections that neither ask nor listen are closed, and more than so many are not taken.

uvicorn waits without end for the first request of a connection, for the rest of a head, and for
what is left of a request that was refused; and for a client that does not read its answers. It
takes connections until the process has no file descriptors, of which asyncio then writes megabytes
into the log.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from drnet_runtime.serve.errors import RETRY_AFTER

_FULL = (
    "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n"
    f"Retry-After: {RETRY_AFTER}\r\n\r\n"
).encode()


class Connection(H11Protocol):
    """A connection of HTTP/1.1, closed after `seconds` without a request.

    Attributes:
      seconds: from its opening, or its last answer, to the next request's whole head; and for the
        client to take an answer.
      most: connections at a time.
    """

    seconds = 30.0
    most = 512
    _alarm: asyncio.TimerHandle | None = None

    # As uvicorn has it: a server's transports can be written to, which asyncio's type leaves open.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.most:
            transport.write(_FULL)
            transport.close()
            return
        super().connection_made(transport)
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._alarm is None:
            # It was not taken.
            return
        self._alarm.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._set_alarm()
        super().on_response_complete()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self.loop.call_later(self.seconds, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or self.flow.write_paused:
            if self.conn.our_state is not h11.ERROR:
                self.conn.send_failed()
            self.transport.abort()
        else:
            # Its answer is being made; whether the client then takes it is looked at again.
            self._set_alarm()


def connection_within(seconds: float, most: int) -> type[Connection]:
    """The class of such connections (uvicorn makes them without arguments)."""
    return type("BoundConnection", (Connection,), {"seconds": seconds, "most": most})
