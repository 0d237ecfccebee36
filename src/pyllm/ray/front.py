"""`Front`: what clients connect to. It checks requests as the server does, and passes them on to replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pyllm.config.serving import ServeOptions
from pyllm.ray.prefixes import blocks_of
from pyllm.ray.sent import Head, Sent, of_front, shared
from pyllm.server import create_app, make_house
from pyllm.server.api import Access, ApiRoute, Exchange
from pyllm.server.apis import operations
from pyllm.server.live import Reply
from pyllm.server.logs import to_stream
from pyllm.server.problems import Problem, ProblemError
from pyllm.server.safety import is_loopback

_UNSENT = frozenset({b"authorization", b"x-api-key", b"origin", b"cookie", b"host"})
"""Headers that replicas have no use for."""
_PATIENCE = 5.0
"""Seconds in which replicas say how they are."""

LOST = Problem(503, "replica_lost", "the replica that computed this answer is gone; ask again", retry_after=1)


class Front:
    """Answers clients, by replicas."""

    def __init__(self, options: ServeOptions, replicas: Any) -> None:
        """`replicas`: handle of `Replica`'s deployment."""
        self._log = ExitStack()
        self._log.enter_context(to_stream(options.log_json))
        self._options = options
        self._house = make_house(of_front(options))
        self._replicas = replicas.options(stream=True)
        self._own = {operations.ready: self._ready, operations.metrics: self._metrics}

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._house, self._answer)

    async def _answer(self, route: ApiRoute, exchange: Exchange) -> Response:
        """The response to a request. Raises ProblemError."""
        if route.access is not Access.ANYONE:
            self._check_caller(exchange)
        if (own := self._own.get(route.handler)) is not None:
            return await own()
        if route.access is Access.ANYONE:
            return await route.handler(exchange)
        if route.access is Access.OWNERS:
            text = "models are not managed through replicas; put their files where the replicas run"
            raise ProblemError(Problem(403, "not_permitted", text))
        return await self._passed_on(exchange)

    def _check_caller(self, exchange: Exchange) -> None:
        """Raise ProblemError (403) where another machine calls and there is no key, as such a server does not start."""
        options, client = self._options, exchange.request.client
        if not (options.api_keys or options.insecure or client is None or is_loopback(client.host)):
            text = "there is no key, so only this machine may call; set api_keys, or insecure where everybody may"
            raise ProblemError(Problem(403, "no_key", text))

    async def _passed_on(self, exchange: Exchange) -> Response:
        pieces = _pieces(self._replicas.answer.remote(_sent(exchange)))
        try:
            head = await anext(pieces)
        except BaseException:
            await pieces.aclose()
            raise
        assert isinstance(head, Head)
        return _Passed(head, pieces, exchange)

    async def _ready(self) -> Response:
        """Whether a replica answers."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._replicas.options(stream=False).metrics.remote()
        except (TimeoutError, RayError, RayServeException):
            return Reply({"status": "loading"}, 503, {"retry-after": "1"})
        return Reply({"status": "ready"})

    async def _metrics(self) -> Response:
        """The metrics of all replicas that answer, each sample with its replica's name."""
        asked = self._replicas.broadcast("metrics")
        found = await asked.results_async(timeout_s=_PATIENCE, return_exceptions=True)
        pages = dict(one for one in found if not isinstance(one, BaseException))
        text = generate_latest(_Pages({"front": self._house.metrics.text(), **pages}))
        return Response(text, media_type="text/plain; version=1.0.0; charset=utf-8")

    def __del__(self) -> None:
        self._log.close()


class _Passed(Response):
    """A response as a replica writes it. Where the replica is lost, the end says so in the API's way."""

    def __init__(self, head: Head, pieces: AsyncGenerator[Head | bytes, None], exchange: Exchange) -> None:
        self.status_code = head.status
        self.raw_headers = head.headers
        self.background = None
        self._head = head
        self._pieces = pieces
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if self._head.body:
                await send({"type": "http.response.body", "body": self._head.body, "more_body": True})
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except ProblemError as error:
            self._exchange.failed(error)
            last = self._exchange.api.last(error.problem, self.headers.get("content-type", ""))
            await send({"type": "http.response.body", "body": last, "more_body": True})
        finally:
            await self._pieces.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Pages:
    """Prometheus's pages of several replicas as one."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for replica, page in self._pages.items():
            for family in text_string_to_metric_families(page.decode()):
                whole = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
        yield from merged.values()


async def _pieces(answer: Any) -> AsyncGenerator[Head | bytes, None]:
    """What a replica sends. Raises ProblemError where it fails; its work ends when this is closed."""
    try:
        async for piece in answer:
            yield piece
    except BackPressureError as error:
        raise ProblemError(Problem(429, "queue_full", "too many requests wait", retry_after=1)) from error
    except RayActorError as error:
        raise ProblemError(LOST) from error
    except (RayError, RayServeException) as error:
        raise ProblemError(Problem(503, "replica_failed", "the replica failed; ask again", retry_after=1)) from error
    finally:
        answer.cancel()


def _sent(exchange: Exchange) -> Sent:
    """The request as replicas take it."""
    request = exchange.request
    fields: dict[str, Any] = {}
    if exchange.body:
        with suppress(ProblemError):  # the replica says what is wrong
            fields = exchange.fields
    model = fields.get("model")
    return Sent(
        id=exchange.id,
        method=request.method,
        path=request.scope["path"].removeprefix(request.scope.get("root_path", "")),
        query=request.scope["query_string"],
        headers=list(_needed(request.headers.raw)),
        body=exchange.body,
        model=shared(model) if isinstance(model, str) else "",
        blocks=blocks_of(fields),
    )


def _needed(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    return ((name, value) for name, value in headers if name not in _UNSENT)
