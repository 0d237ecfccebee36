"""The application: routes of all APIs behind one set of checks."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyllm.server import apis, bodies, known, safety, tracing
from pyllm.server.api import Access, Api, ApiRoute, Exchange
from pyllm.server.house import House
from pyllm.server.problems import ENDING, Problem, ProblemError, problem_of

Answer = Callable[[ApiRoute, Exchange], Awaitable[Response]]
"""Makes the response to a request of a route."""


def create_app(house: House, answer: Answer | None = None) -> ASGIApp:
    """The ASGI application of a server; its lifespan loads pinned models and unloads all.

    `answer`: makes the responses in place of the routes' handlers. A scope's "pyllm.id" is the request's id.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await house.models.start()
        await asyncio.to_thread(known.remove_unused)
        try:
            yield
        finally:
            await house.models.close()

    found = apis.all_apis()
    routes: list[BaseRoute] = [
        Route(route.path, endpoint=_Endpoint(house, api, route, answer or _handled), methods=list(route.methods))
        for api in found
        for route in api.routes
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    return _Front(app, house, found)


async def _handled(route: ApiRoute, exchange: Exchange) -> Response:
    return await route.handler(exchange)


class _Front:
    """Checks that come before routing, and what no route answers."""

    def __init__(self, app: ASGIApp, house: House, found: Sequence[Api]) -> None:
        self._app = app
        self._house = house
        self._apis = found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        number = scope.get("pyllm.id") or "req_" + secrets.token_hex(12)
        exchange = Exchange(Request(scope, receive), self._house, _api_of(self._apis, scope["path"]), number)
        scope["pyllm.exchange"] = exchange
        # OpenAI's and Anthropic's clients read an id by these names.
        headers = [(b"x-request-id", number.encode()), (b"request-id", number.encode())]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        with tracing.traced(exchange):
            try:
                await self._answer(exchange, headers, scope, receive, sending)
            finally:
                del scope["pyllm.exchange"]  # which has the scope itself
                self._house.logs.served(exchange)

    async def _answer(
        self, exchange: Exchange, headers: list[tuple[bytes, bytes]], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request, or refuse it; the answer's `headers` grow by those that its origin needs."""
        request, options = exchange.request, self._house.options
        try:
            safety.check_head(scope)
            safety.check_host(request, options)
            origin = safety.check_origin(request, options)
            if origin is not None:
                headers += [(b"access-control-allow-origin", origin.encode("latin-1", "replace")), (b"vary", b"origin")]
            if request.method != "OPTIONS" and not _is_known(self._app, scope):
                text = f"there is nothing at {request.method[:20]} {scope['path'][:200]}"
                raise ProblemError(Problem(404, "not_found", text))
        except ProblemError as error:
            await exchange.refuse(error.problem)(scope, receive, send)
            return
        if request.method == "OPTIONS":
            await _preflight(request, origin)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _preflight(request: Request, origin: str | None) -> Response:
    headers = {"access-control-max-age": "600"}
    if origin is not None:
        headers["access-control-allow-methods"] = "GET, POST, DELETE, HEAD"
        # Clients send many of their own (x-stainless-…); whoever may call may send any.
        wanted = request.headers.get("access-control-request-headers", "")
        headers["access-control-allow-headers"] = wanted or "authorization, content-type, x-api-key"
    return Response(status_code=204, headers=headers)


class _Endpoint:
    """A route: checks, the body, the handler, and an end where the client goes away."""

    def __init__(self, house: House, api: Api, route: ApiRoute, answer: Answer) -> None:
        self._house = house
        self._api = api
        self._route = route
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["pyllm.exchange"]
        exchange.api, exchange.route = self._api, self._route
        task = asyncio.current_task()
        assert task is not None
        self._house.busy.add(task)
        try:
            response = await self._admitted(exchange)
            if response is None and self._route.streamed_body:
                await self._serve(exchange, send)
            elif response is None:
                exchange.has_left = await _until_gone(self._serve(exchange, send), receive)
            else:
                await response(scope, receive, send)
        except ClientDisconnect:
            exchange.has_left = True
        except asyncio.CancelledError:
            if not self._house.cutting:
                raise
            task.uncancel()  # the server ends: what is under way is cut off
            if exchange.status is None:
                await exchange.refuse(ENDING)(scope, receive, send)
        finally:
            self._house.busy.discard(task)

    async def _admitted(self, exchange: Exchange) -> Response | None:
        """Check the request and read its body; the refusal, or None."""
        house, route = self._house, self._route
        try:
            safety.check_access(exchange.request, route.access, house.options)
            if house.draining and route.access is not Access.ANYONE:
                raise ProblemError(ENDING)
            if exchange.request.method in ("POST", "DELETE") and not route.streamed_body:
                exchange.body = await bodies.read(exchange.request, house.options.max_body, house.options.body_timeout)
        except ProblemError as error:
            return exchange.refuse(error.problem)
        return None

    async def _serve(self, exchange: Exchange, send: Send) -> None:
        try:
            response = await self._answer(self._route, exchange)
        except Exception as error:
            exchange.failed(error)
            response = exchange.refusal(problem_of(error))
        await response(exchange.request.scope, _nothing, send)


async def _until_gone(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Do the work; a client that goes away ends it. Whether one did."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        left = not task.done()
        if left:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return left


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _is_known(app: ASGIApp, scope: Scope) -> bool:
    """Whether a route has this path and method; what has the path alone is an error of the same kind."""
    from starlette.routing import Match

    assert isinstance(app, Starlette)
    return any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)


def _api_of(found: Sequence[Api], path: str) -> Api:
    """The API whose clients call a path: the one whose routes begin as it does, else the first."""
    start = "/" + path.lstrip("/").partition("/")[0]
    if path.startswith("/v1/messages"):
        return next(api for api in found if api.name == "anthropic")
    for api in found:
        if any(route.path == path or (start != "/v1" and route.path.startswith(start + "/")) for route in api.routes):
            return api
    return found[0]
