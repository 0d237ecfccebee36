"""What an API is made of: routes with their access, its form of errors; and a request as handlers see it."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from pyllm.server import bodies
from pyllm.server.live import EVENT_STREAM, Framing, Live, Reply, data_frame, encode, event_frame, line_frame
from pyllm.server.problems import Problem, problem_of

if TYPE_CHECKING:
    from pyllm.server.house import House

T = TypeVar("T", bound=bodies.Body)
PROBES = frozenset({"/health", "/v1/health", "/healthz", "/livez", "/ready", "/readyz", "/metrics"})
"""Paths of requests that machines send all the time."""


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
        self.route: ApiRoute | None = None
        """The route that answers, if one does."""
        self.status: int | None = None
        """The answer's, once it began."""
        self.problem: Problem | None = None
        """What ended the request, if something did."""
        self.has_left = False
        """The client went away before the end."""
        self.streams = False
        """The answer is sent as it comes."""
        self.operation = ""
        """What is asked of a model, in OpenTelemetry's words: chat, text_completion, embeddings."""
        self.asked_model = ""
        """By the name that the request has."""
        self.options: Mapping[str, Any] = {}
        """Those of the answers."""
        self.finish_reasons: list[str] = []
        self.first_token: float | None = None
        """Seconds from the request's arrival."""
        self.texts: dict[str, list[Any]] = {}
        """What was asked and answered, where the user wants that to be logged."""
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

    @property
    def is_probe(self) -> bool:
        """Whether it is one of those that machines send all the time."""
        return self.request.scope["path"] in PROBES

    def asks(self, operation: str, model: str, options: Mapping[str, Any]) -> None:
        """Note what is asked of a model."""
        self.operation, self.asked_model, self.options = operation, model, options

    def said(self, what: str, text: Any) -> None:
        """Note what was asked or answered, where the user wants that."""
        if self.house.logs.prompts:
            self.house.logs.text(self, what, text)
            self.texts.setdefault(what, []).append(text)

    async def live(self, frames: AsyncIterator[bytes], framing: Framing) -> Response:
        """A response that is streamed; what fails early is raised."""
        self.streams = True
        options = self.house.options
        live = Live(frames, framing, ping_every=options.ping_every, failed=self.failed, cut=self._is_cut)
        await live.begin(options.grace)
        return live

    async def whole(self, made: Awaitable[Any]) -> Response:
        """A JSON body that may take long: a client hears blanks meanwhile, which JSON permits before a value."""

        async def frames() -> AsyncIterator[bytes]:
            yield encode(await made)

        def error(problem: Problem) -> bytes:
            return encode(self._told(problem))

        options = self.house.options
        live = Live(
            frames(),
            Framing("application/json", lambda: b" ", error),
            ping_every=options.ping_every,
            failed=self.failed,
            cut=self._is_cut,
        )
        await live.begin(options.ping_every)
        return live

    def failed(self, error: BaseException) -> None:
        """Log and count what ended the request."""
        self._end(problem_of(error))
        self.house.logs.failed(self, error)

    def refuse(self, problem: Problem) -> Response:
        """Count what keeps the request from being served; the response that says it."""
        self._end(problem)
        return self.refusal(problem)

    def refusal(self, problem: Problem) -> Response:
        """A problem as a response of the request's API."""
        headers = dict(problem.headers)
        if problem.retry_after is not None:
            headers["retry-after"] = str(max(1, round(problem.retry_after)))
        return Reply(self._told(problem), problem.status, headers)

    def _told(self, problem: Problem) -> Any:
        return self.api.error(replace(problem, request_id=self.id))

    def _end(self, problem: Problem) -> None:
        self.problem = problem
        self.log["error"] = problem.code
        self.house.metrics.refused(problem.code)

    def _is_cut(self) -> bool:
        return self.house.cutting


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
    named_events: bool = False
    """Events of its streams have names, and errors are the event "error"."""

    def last(self, problem: Problem, media_type: str) -> bytes:
        """The end of a body whose maker is gone, so that nobody knows how far it came."""
        body = self.error(problem)
        if not media_type.startswith(EVENT_STREAM):
            return line_frame(body)
        return event_frame("error", {"type": "error", **body}) if self.named_events else data_frame(body)

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
