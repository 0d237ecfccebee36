"""`Replica`: the server, with models of its own, as an actor that fronts call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, suppress

from ray import serve
from starlette.types import Message, Receive, Scope

from pyllm.config.serving import ServeOptions
from pyllm.ray.sent import Head, Headers, Sent, shared
from pyllm.server import create_app, make_house
from pyllm.server.known import Known
from pyllm.server.logs import to_stream
from pyllm.server.problems import ProblemError

_QUEUED = 64
"""Pieces of a response that wait to be sent on; the answer waits then, too."""
_EVERY, _EVERY_OF_EACH = 0.03, 0.02
"""Seconds between pieces that are sent on, at least, and for each answer under way: a piece costs all processes on its
way a millisecond, whatever it holds."""
_OF_FRONT = frozenset({b"x-request-id", b"request-id"})
"""Headers of answers that the front adds itself."""
_MOST_NAMES = 256
"""Of models, that are remembered."""


class Replica:
    """Computes answers. Models that were named are loaded before it is ready."""

    async def __init__(self, options: ServeOptions) -> None:  # type: ignore[misc]  # Ray awaits it
        """Raises HubError where a model that is to be served is not there."""
        self._log = ExitStack()
        self._log.enter_context(to_stream(options.log_json))
        self._house = make_house(options)
        self._app = create_app(self._house)
        self._n_answers = 0
        """Answers under way."""
        self._names: dict[str, None] = {}
        """By which models were asked for."""
        await self._house.models.start()
        await self._house.models.started()

    async def answer(self, sent: Sent) -> AsyncGenerator[Head | bytes, None]:
        """The response to a request: its head, then pieces of its body, joined where the reader is slower."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue(_QUEUED)
        task = asyncio.create_task(self._respond(sent, messages))
        self._n_answers += 1
        try:
            start = await messages.get()
            if start is not None:
                headers: Headers = [pair for pair in start["headers"] if pair[0] not in _OF_FRONT]
                whole = any(name == b"content-length" for name, _ in headers)
                body, goes_on = await _ready(messages) if whole else (b"", True)
                if start["status"] == 200:
                    self._note(sent.model)
                yield Head(start["status"], headers, body)
                while goes_on:
                    body, goes_on = await _ready(messages)
                    if body:
                        yield body
                        await asyncio.sleep(max(_EVERY, self._n_answers * _EVERY_OF_EACH) if goes_on else 0)
            await task
        finally:
            self._n_answers -= 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _note(self, model: str) -> None:
        """A model was asked for by a name."""
        self._names[model] = None
        if len(self._names) > _MOST_NAMES:
            del self._names[next(iter(self._names))]

    async def _respond(self, sent: Sent, messages: asyncio.Queue[Message | None]) -> None:
        try:
            await self._app(_scope(sent), _receive(sent.body), messages.put)
        except Exception:
            await messages.put(None)
            raise
        await messages.put(None)  # not after a cancellation: nobody reads then

    async def metrics(self) -> tuple[str, bytes]:
        """The replica's name, and Prometheus's page."""
        return serve.get_replica_context().replica_id.unique_id, self._house.metrics.text()

    async def record_routing_stats(self) -> dict[str, list[str]]:
        """The names by which clients may mean a model that is loaded, for routers."""
        models = self._house.models
        loaded = [*models.loading, *(served.known for served in models.loaded)]
        names = dict.fromkeys(self._names)
        names |= dict.fromkeys(shared(known.name) for known in models.shelf.given)
        names |= dict.fromkeys(shared(alias) for alias, _ in models.shelf.aliases())
        if models.shelf.given:
            names[""] = None
        return {"models": [name for name in names if self._means(name, loaded)]}

    def _means(self, name: str, loaded: Sequence[Known]) -> bool:
        shelf = self._house.models.shelf
        with suppress(ProblemError):
            return shelf.weights(shelf.find(name)) in loaded
        return False

    async def __del__(self) -> None:
        """Unload all."""
        await self._house.models.close()
        self._log.close()


async def _ready(messages: asyncio.Queue[Message | None]) -> tuple[bytes, bool]:
    """What is there of a body, at least one message; and whether more comes."""
    pieces = []
    message = await messages.get()
    while message is not None:
        pieces.append(message.get("body", b""))
        if messages.empty():
            return b"".join(pieces), True
        message = messages.get_nowait()
    return b"".join(pieces), False


def _scope(sent: Sent) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": sent.method,
        "scheme": "http",
        "path": sent.path,
        "raw_path": sent.path.encode(),
        "root_path": "",
        "query_string": sent.query,
        "headers": sent.headers,
        "client": None,
        "server": None,
        "pyllm.id": sent.id,
    }


def _receive(body: bytes) -> Receive:
    """ASGI's receive of a body; a client that goes away cancels the call instead."""
    left = [body]

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return receive
