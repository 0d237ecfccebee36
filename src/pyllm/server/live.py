"""Responses that are written as they come: framings, pings while nothing comes, errors after the beginning."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pyllm.server.begun import Begun
from pyllm.server.problems import ENDING, Problem, ProblemError, problem_of

encode = msgspec.json.Encoder().encode


def data_frame(value: Any) -> bytes:
    """A server-sent event without a name, as OpenAI sends them."""
    return b"data: " + encode(value) + b"\n\n"


def event_frame(name: str, value: Any) -> bytes:
    """A server-sent event with a name, as Anthropic and OpenAI's Responses send them."""
    return b"event: " + name.encode() + b"\ndata: " + encode(value) + b"\n\n"


def line_frame(value: Any) -> bytes:
    """A line of JSON, as Ollama sends them."""
    return encode(value) + b"\n"


@dataclass(frozen=True, slots=True)
class Framing:
    """How an API writes a stream."""

    media_type: str
    ping: Callable[[], bytes]
    """What says that the server is still there."""
    error: Callable[[Problem], bytes]
    """The last frame of a stream that fails after its beginning."""


EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"
COMMENT = b": ping\n\n"
"""A server-sent event that clients ignore."""
_MOST = 64 << 10
"""Bytes that are written at once, about."""


class Live(Response):
    """A stream of frames. Its headers are sent when the first frame is there, or after `grace` seconds.

    What fails before that is an error of its own (`begin`), with its status; what fails later is the stream's last
    frame.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        framing: Framing,
        *,
        ping_every: float,
        failed: Callable[[BaseException], None],
        cut: Callable[[], bool],
    ) -> None:
        """`failed`: told of what ended the stream early. `cut`: whether the server ends a stream that is
        cancelled, not the client."""
        self.status_code = 200
        self.media_type = framing.media_type
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._frames = frames
        self._framing = framing
        self._ping_every = ping_every
        self._failed = failed
        self._cut = cut
        self._first: asyncio.Future[bytes | None] | None = None
        self._sent_at = 0.0

    async def begin(self, grace: float) -> None:
        """Wait for the first frame, up to `grace` seconds. Raises what fails in that time."""
        self._first = asyncio.ensure_future(anext(self._frames, None))
        try:
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with its result.
            async with asyncio.timeout(grace):
                await asyncio.shield(self._first)
        except TimeoutError:
            pass
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End the stream, and with it what makes its frames."""
        if self._first is not None and not self._first.done():
            self._first.cancel()
            with contextlib.suppress(BaseException):
                await self._first
        if (close := getattr(self._frames, "aclose", None)) is not None:
            await close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pings = asyncio.ensure_future(self._keep_alive(send))
        try:
            await self._write(send)
        except asyncio.CancelledError:
            if not self._cut():
                raise
            await self._fail(send, ProblemError(ENDING))
        finally:
            pings.cancel()
            await self.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        """Write the frames; those that are there already are one write, for a client that is slower than they come."""
        waiting: list[bytes] = []
        following: Begun[bytes] | None = None
        size = 0
        try:
            if self._first is not None and (frame := await self._first) is not None:
                await self._send(send, frame)
            while True:
                following = Begun(anext(self._frames))
                if waiting and (size >= _MOST or not following.done):
                    joined = b"".join(waiting)
                    waiting, size = [], 0
                    await self._send(send, joined)
                try:
                    frame = await following
                except StopAsyncIteration:
                    break
                waiting.append(frame)
                size += len(frame)
            if waiting:
                await self._send(send, b"".join(waiting))
        except Exception as error:
            await self._fail(send, error, b"".join(waiting))
        finally:
            if following is not None:
                await following.stop()

    async def _fail(self, send: Send, error: Exception, before: bytes = b"") -> None:
        self._failed(error)
        await self._send(send, before + self._framing.error(problem_of(error)))

    async def _send(self, send: Send, frame: bytes) -> None:
        self._sent_at = time.monotonic()
        await send({"type": "http.response.body", "body": frame, "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        self._sent_at = time.monotonic()
        while True:
            silent = time.monotonic() - self._sent_at
            if silent >= self._ping_every:
                await self._send(send, self._framing.ping())
                silent = 0.0
            await asyncio.sleep(self._ping_every - silent)


class Reply(Response):
    """A whole JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)
