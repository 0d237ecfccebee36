"""The application: routes of all APIs behind one set of checks."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyllm.server import apis, bodies, safety
from pyllm.server.api import Access, Api, ApiRoute, Exchange
from pyllm.server.house import House
from pyllm.server.live import Reply
from pyllm.server.problems import ENDING, Problem, ProblemError, problem_of


def create_app(house: House) -> ASGIApp:
    """The ASGI application of a server; its lifespan loads pinned models and unloads all."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await house.models.start()
        try:
            yield
        finally:
            await house.models.close()

    found = apis.all_apis()
    routes: list[BaseRoute] = [
        Route(route.path, endpoint=_Endpoint(house, api, route), methods=list(route.methods))
        for api in found
        for route in api.routes
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    return _Front(app, house, found)


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
        request = Request(scope, receive)
        number = "req_" + secrets.token_hex(12)
        scope["pyllm.id"] = number
        # OpenAI's and Anthropic's clients read an id by these names.
        headers = [(b"x-request-id", number.encode()), (b"request-id", number.encode())]
        options = self._house.options

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        try:
            safety.check_host(request, options)
            origin = safety.check_origin(request, options)
        except ProblemError as error:
            await self._refuse(error.problem, request)(scope, receive, sending)
            return
        if origin is not None:
            headers += [(b"access-control-allow-origin", origin.encode("latin-1", "replace")), (b"vary", b"origin")]
        if request.method == "OPTIONS":
            await self._preflight(request, origin)(scope, receive, sending)
            return
        if not _is_known(self._app, scope):
            problem = Problem(404, "not_found", f"there is nothing at {request.method} {request.url.path[:200]}")
            await self._refuse(problem, request)(scope, receive, sending)
            return
        await self._app(scope, receive, sending)

    def _preflight(self, request: Request, origin: str | None) -> Response:
        headers = {"access-control-max-age": "600"}
        if origin is not None:
            headers["access-control-allow-methods"] = "GET, POST, DELETE, HEAD"
            # Clients send many of their own (x-stainless-…); whoever may call may send any.
            wanted = request.headers.get("access-control-request-headers", "")
            headers["access-control-allow-headers"] = wanted or "authorization, content-type, x-api-key"
        return Response(status_code=204, headers=headers)

    def _refuse(self, problem: Problem, request: Request) -> Response:
        return refusal(_api_of(self._apis, request.url.path), problem, request.scope["pyllm.id"])


class _Endpoint:
    """A route: checks, the body, the handler, and an end where the client goes away."""

    def __init__(self, house: House, api: Api, route: ApiRoute) -> None:
        self._house = house
        self._api = api
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(Request(scope, receive), self._house, self._api, scope["pyllm.id"])
        status = 499

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        self._house.busy.add(task)
        try:
            response = await self._admitted(exchange)
            if response is None and self._route.streamed_body:
                await self._serve(exchange, sending)
            elif response is None:
                await _until_gone(self._serve(exchange, sending), receive)
            else:
                await response(scope, receive, sending)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            if not self._house.draining:
                raise
            task.uncancel()  # the server ends: what is under way is cut off
            if status == 499:
                await refusal(self._api, ENDING, exchange.id)(scope, receive, sending)
        finally:
            self._house.busy.discard(task)
            self._house.logs.served(exchange, status)

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
            house.metrics.refused(error.problem.code)
            return refusal(self._api, error.problem, exchange.id)
        return None

    async def _serve(self, exchange: Exchange, send: Send) -> None:
        try:
            response = await self._route.handler(exchange)
        except Exception as error:
            exchange.failed(error)
            response = refusal(self._api, problem_of(error), exchange.id)
        await response(exchange.request.scope, _nothing, send)


def refusal(api: Api, problem: Problem, number: str) -> Response:
    """A problem as a response of an API, to the request of this id."""
    headers = dict(problem.headers)
    if problem.retry_after is not None:
        headers["retry-after"] = str(max(1, round(problem.retry_after)))
    return Reply(api.error(replace(problem, request_id=number)), problem.status, headers)


async def _until_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do the work; a client that goes away ends it."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


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
