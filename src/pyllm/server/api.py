"""What an API is made of: routes with their access, its form of errors; and a request as handlers see it."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from pyllm.server import bodies
from pyllm.server.live import Framing, Live, encode
from pyllm.server.problems import Problem, problem_of

if TYPE_CHECKING:
    from pyllm.server.house import House

T = TypeVar("T", bound=bodies.Body)


class Access(enum.Enum):
    """Who may call a route."""

    ANYONE = enum.auto()
    """Health and the page, which say nothing of models or requests."""
    USERS = enum.auto()
    """Those with a key; everybody where the server has none."""
    OWNERS = enum.auto()
    """Those with a key; where the server has none, callers on this machine. For what changes models or files."""


class Exchange:
    """A request and what belongs to its answer."""

    def __init__(self, request: Request, house: House, api: Api, number: str) -> None:
        self.request = request
        self.house = house
        self.api = api
        self.id = number
        """The request's id, which the log and the header x-request-id have."""
        self.began = perf_counter()
        self.body = b""
        self.log: dict[str, Any] = {}
        """What the log's line on this request says further: model, tokens, …"""
        self._fields: dict[str, Any] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The body's fields. Raises ProblemError."""
        if self._fields is None:
            self._fields = bodies.decode(self.body)
        return self._fields

    def read(self, kind: type[T]) -> T:
        """The body as a struct. Raises ProblemError."""
        return bodies.convert(self.fields, kind)

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    async def live(self, frames: AsyncIterator[bytes], framing: Framing) -> Response:
        """A response that is streamed; what fails early is raised."""
        options = self.house.options
        live = Live(frames, framing, ping_every=options.ping_every, failed=self.failed)
        await live.begin(options.grace)
        return live

    async def whole(self, made: Awaitable[Any]) -> Response:
        """A JSON body that may take long: a client hears blanks meanwhile, which JSON permits before a value."""

        async def frames() -> AsyncIterator[bytes]:
            yield encode(await made)

        def error(problem: Problem) -> bytes:
            return encode(self.api.error(replace(problem, request_id=self.id)))

        options = self.house.options
        live = Live(
            frames(),
            Framing("application/json", lambda: b" ", error),
            ping_every=options.ping_every,
            failed=self.failed,
        )
        await live.begin(options.ping_every)
        return live

    def failed(self, error: BaseException) -> None:
        """Log and count what ended the request."""
        self.house.logs.failed(self, error)
        self.house.metrics.refused(problem_of(error).code)


Handler = Callable[[Exchange], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """A route of an API."""

    methods: tuple[str, ...]
    path: str
    handler: Handler
    access: Access = Access.USERS
    streamed_body: bool = False
    """The handler reads the body itself, which may be larger than others."""


@dataclass(slots=True)
class Api:
    """One of the APIs: a module of `pyllm.server.apis` has one as `API`."""

    name: str
    error: Callable[[Problem], Any]
    """A problem as the body that this API's clients understand."""
    routes: list[ApiRoute] = field(default_factory=list)

    def get(self, *paths: str, access: Access = Access.USERS) -> Callable[[Handler], Handler]:
        """Register a handler of GET (and HEAD)."""
        return self.route(("GET", "HEAD"), *paths, access=access)

    def post(self, *paths: str, access: Access = Access.USERS) -> Callable[[Handler], Handler]:
        """Register a handler of POST."""
        return self.route(("POST",), *paths, access=access)

    def route(
        self, methods: tuple[str, ...], *paths: str, access: Access = Access.USERS, streamed_body: bool = False
    ) -> Callable[[Handler], Handler]:
        """Register a handler of these methods and paths."""

        def register(handler: Handler) -> Handler:
            self.routes += [ApiRoute(methods, path, handler, access, streamed_body) for path in paths]
            return handler

        return register
