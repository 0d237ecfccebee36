"""uvicorn's connection, with what a server of strangers needs besides."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pyllm.server.safety import HEAD_TOO_LARGE, MAX_HEAD

_LINGER = 1.0
"""Seconds for which a client that was refused may go on sending."""


def connection_of(seconds: float) -> type[H11Protocol]:
    """A connection that is closed where no whole head of a request comes within some seconds."""

    class Within(Connection):
        patience = seconds

    return Within


class Connection(H11Protocol):
    """A connection that is closed without a request, ends what a client has left, and says what heads may be."""

    patience: float
    """Seconds for the head of a request."""
    late: asyncio.TimerHandle | None = None
    refused = False
    """What comes is ignored."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.late is not None:
            self.late.cancel()

    def data_received(self, data: bytes) -> None:
        if not self.refused:
            super().data_received(data)

    def eof_received(self) -> None:
        # The transport closes, but tells its end only when all is written, which may take as long as the client likes.
        self._end_request()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self._end_request()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # the body is wrong, and an answer has begun
            self.transport.close()
            return
        if len(self.conn.trailing_data[0]) <= MAX_HEAD:
            super().send_400_response(msg)
            return
        headers = [("content-type", "text/plain; charset=utf-8"), ("connection", "close")]
        events = (
            h11.Response(status_code=HEAD_TOO_LARGE.status, headers=headers),
            h11.Data(data=HEAD_TOO_LARGE.message.encode()),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self._close_later()

    def _end_request(self) -> None:
        """Tell the request under way that nobody waits for its answer."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _close_later(self) -> None:
        """Close when the client has, or after a moment: with data unread, closing would lose what was written."""
        self.refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(_LINGER, self.transport.close)
        else:
            self.transport.close()

    def _watch(self) -> None:
        waits = self.conn.their_state is h11.IDLE
        if waits and self.late is None:
            self.late = self.loop.call_later(self.patience, self.transport.close)
        elif not waits and self.late is not None:
            self.late.cancel()
            self.late = None
