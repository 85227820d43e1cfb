"""Connections that neither ask nor listen are closed.

uvicorn waits without end for the first request of a connection, for the rest of a head, and for
what is left of a request that was refused; and for a client that does not read its answers.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# From the opening of a connection, or its last answer, to the next request's whole head.
HEAD_SECONDS = 15.0


class Connection(H11Protocol):
    """A connection of HTTP/1.1 that has `HEAD_SECONDS` for each head."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._wait()
        super().on_response_complete()

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(HEAD_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or self.flow.write_paused:
            if self.conn.our_state is not h11.ERROR:
                self.conn.send_failed()
            self.transport.abort()
        else:
            # Its answer is being made; a client that then does not read it is looked for.
            self._wait()
