"""The chat page, and what stands at `/` for clients that look for Ollama."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.responses import PlainTextResponse, Response

from pyllm.server.api import Access, Api, Exchange
from pyllm.server.problems import Problem, ProblemError

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_POLICY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    # A browser asks whether its copy is still right, so that a page never runs with files of another version.
    "cache-control": "no-cache",
}


def _error(problem: Problem) -> object:
    return {"error": {"code": problem.code, "message": problem.message}}


API = Api("page", _error)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


@cache
def _files() -> dict[str, _File]:
    found = {}
    for file in files("pyllm.server").joinpath("page").iterdir():
        ending = "." + file.name.rpartition(".")[2]
        if ending in _TYPES:
            content = file.read_bytes()
            found[file.name] = _File(content, _TYPES[ending], f'"{sha256(content).hexdigest()[:32]}"')
    return found


@API.get("/", access=Access.ANYONE)
async def root(exchange: Exchange) -> Response:
    """The page for browsers; for others what Ollama says, by which its clients know that a server is there."""
    if exchange.house.options.page and "text/html" in exchange.request.headers.get("accept", ""):
        response = _response(exchange, _files()["index.html"])
    else:
        response = PlainTextResponse("Ollama is running")
    response.headers["vary"] = "accept"
    return response


@API.get("/page/{name}", access=Access.ANYONE)
async def file(exchange: Exchange) -> Response:
    """A file of the page."""
    name = exchange.path("name")
    found = _files().get(name) if exchange.house.options.page else None
    if found is None:
        raise ProblemError(Problem(404, "not_found", f"the page has no file {name[:100]}"))
    return _response(exchange, found)


def _response(exchange: Exchange, found: _File) -> Response:
    headers = {**_POLICY, "etag": found.etag}
    known = exchange.request.headers.get("if-none-match", "")
    if found.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
