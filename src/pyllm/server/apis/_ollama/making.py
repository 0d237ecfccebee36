"""Models that come: fetched by name, made from settings, files that clients send."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from pyllm import hub
from pyllm.errors import HubError, PyllmError
from pyllm.hub import blobs, catalog, parameters
from pyllm.hub import named as naming
from pyllm.hub.modelfile import ROLES, Modelfile, parse
from pyllm.llm.recipes import check
from pyllm.server.api import Access, Exchange
from pyllm.server.apis._ollama.form import API, ModelBody, lines
from pyllm.server.apis._ollama.models import base_name, base_of, checked_name, keep
from pyllm.server.known import remove_unused
from pyllm.server.problems import Problem, ProblemError, refuse

_PIECE = 1 << 20
"""Bytes that are written at a time."""


class PullBody(ModelBody):
    """A model to fetch."""

    stream: bool = True


class CreateBody(ModelBody):
    """A model to make. `modelfile` is what older clients send in place of the other fields."""

    stream: bool = True
    modelfile: str = ""
    files: dict[str, str] = {}  # noqa: RUF012 - msgspec copies it
    adapters: dict[str, str] = {}  # noqa: RUF012
    template: str = ""
    system: str = ""
    license: str | list[str] = ""
    parameters: dict[str, Any] = {}  # noqa: RUF012
    messages: list[dict[str, Any]] = []  # noqa: RUF012
    quantize: str = ""


class _Left(Exception):
    """The client has gone."""


@API.post("/api/pull", access=Access.OWNERS)
async def pull(exchange: Exchange) -> Response:
    """Fetch a model of the catalog or of Hugging Face, with progress."""
    body = exchange.read(PullBody)
    name = body.called.strip().removesuffix(":latest")
    own = hub.find_named(name) is not None
    if not (own or hub.is_remote(name) or catalog.load().find(name) is not None):
        raise refuse(
            f"pull model manifest: there is no model {name[:200]!r} to fetch; names are those of `pyllm list`, or "
            "hf.co/user/repo:quant",
            "model",
            status=404,
            code="model_not_found",
        )
    entry = None if own or hub.is_remote(name) else catalog.load().find(name)
    size = entry.size if entry is not None else None
    return await lines(exchange, body.stream, _pulling(exchange, name, size))


async def _pulling(exchange: Exchange, name: str, size: int | None) -> AsyncIterator[dict[str, Any]]:
    yield {"status": "pulling manifest"}
    async for text, share in _told(lambda progress: hub.pull(name, progress)):
        total = size or 100
        yield {"status": f"pulling {text}", "digest": text, "total": total, "completed": round(share * total)}
    await asyncio.to_thread(exchange.house.models.shelf.fetched, name)
    yield {"status": "success"}


async def _told(work: Callable[[Callable[[str, float], None]], Any]) -> AsyncIterator[tuple[str, float]]:
    """Reports of work in a thread, the newest alone; a client that goes away ends it at its next report."""
    loop, changed, left = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    newest: list[tuple[str, float]] = []

    def progress(text: str, share: float) -> None:
        if left.is_set():
            raise _Left
        newest[:] = [(text, share)]
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(changed.set)

    task = asyncio.ensure_future(asyncio.to_thread(work, progress))
    task.add_done_callback(lambda _: changed.set())
    try:
        while True:
            await changed.wait()
            changed.clear()
            if newest:
                yield newest.pop()
            if task.done():
                break
            await asyncio.sleep(0.1)  # a line for each report would be too many
        task.result()
    finally:
        left.set()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


@API.post("/api/push", access=Access.OWNERS)
async def push(exchange: Exchange) -> Response:
    """Refused: there is no place for models of pyllm's."""
    exchange.read(ModelBody)
    raise refuse("this server does not publish models; upload the file to Hugging Face", status=501, code="unsupported")


@API.post("/api/create", access=Access.OWNERS)
async def create(exchange: Exchange) -> Response:
    """Make a named model of one that is here, or of files that were sent. No path is read."""
    body = exchange.read(CreateBody)
    if body.quantize:
        raise refuse("this server does not quantize; `pyllm quantize` does", "quantize")
    name = checked_name(body.called, "model")
    given = _modelfile(exchange, body)
    check(given)
    base, given = _base(exchange, body, given)
    adapters = _adapters(body, given)
    return await lines(exchange, body.stream, _creating(exchange, name, given, base, adapters))


async def _creating(
    exchange: Exchange, name: str, given: Modelfile, base: hub.Named | list[Path], adapters: list[Path]
) -> AsyncIterator[dict[str, Any]]:
    made: list[hub.Named] = []

    def work(progress: Callable[[str, float], None]) -> None:
        made.append(naming.make(name, given, base, adapters, progress))

    async for text, _ in _told(work):
        yield {"status": text}
    for file in made[0].files:
        yield {"status": f"using existing layer sha256:{file.sha256}"}
    await keep(exchange, made[0])
    yield {"status": "writing manifest"}
    yield {"status": "success"}


def _modelfile(exchange: Exchange, body: CreateBody) -> Modelfile:
    """The request as a Modelfile. Raises ProblemError, RequestError."""
    if body.modelfile:
        try:
            return parse(body.modelfile)
        except HubError as error:
            raise refuse(str(error), "modelfile") from None
    source = exchange.fields.get("from") or ""
    if not isinstance(source, str):
        raise refuse("from must be a text", "from")
    messages = []
    for i, message in enumerate(body.messages):
        role, content = message.get("role"), message.get("content", "")
        if role not in ROLES or not isinstance(content, str):
            raise refuse(f"messages[{i}] must have a role of {', '.join(ROLES)} and a text", f"messages[{i}]")
        messages.append((role, content))
    licences = [body.license] if isinstance(body.license, str) else body.license
    return Modelfile(
        source,
        parameters=parameters.settle(body.parameters, "parameters."),
        template=body.template,
        system=body.system,
        messages=tuple(messages),
        licences=tuple(licence for licence in licences if licence),
    )


def _base(exchange: Exchange, body: CreateBody, given: Modelfile) -> tuple[hub.Named | list[Path], Modelfile]:
    """What it is made of. Raises ProblemError."""
    if given.base.startswith("@"):
        path = _blob(given.base[1:], "from")
    elif given.base:
        known = exchange.house.models.shelf.find(given.base)
        return base_of(known), replace(given, base=base_name(known))
    elif len(body.files) == 1:
        name, digest = next(iter(body.files.items()))
        if not name.lower().endswith(".gguf"):
            raise refuse(f"{name[:100]!r} is not a GGUF file; `pyllm convert` makes one of a folder", "files")
        path = _blob(digest, "files")
    elif body.files:
        raise refuse("files must hold one GGUF file; `pyllm merge` joins the parts of a model", "files")
    else:
        raise refuse("from must name a model, or files a GGUF file that was sent", "from", code="missing_field")
    _check_file(path, "model")
    return [path], replace(given, base=str(path))


def _adapters(body: CreateBody, given: Modelfile) -> list[Path]:
    digests = [*body.adapters.values(), *(adapter.removeprefix("@") for adapter in given.adapters)]
    paths = [_blob(digest, "adapters") for digest in digests]
    for path in paths:
        _check_file(path, "adapter")
    return paths


def _check_file(path: Path, kind: str) -> None:
    """Raise ProblemError where a file that was sent is not what it is to be."""
    from pyllm.gguf import open_gguf

    try:
        with open_gguf(path) as file:
            is_adapter = file.metadata.get("general.type") == "adapter"
    except PyllmError as error:
        reason = str(error).replace(str(path), "the file")
        raise refuse(f"what was sent as {path.name} cannot be used: {reason}", "files") from None
    if is_adapter != (kind == "adapter"):
        raise refuse(f"what was sent as {path.name} is {'an adapter' if is_adapter else 'no adapter'}", "files")


def _blob(text: str, param: str) -> Path:
    """A file that was sent, by its digest. Raises ProblemError."""
    try:
        path = blobs.find(blobs.digest_of(text))
    except HubError as error:
        raise refuse(f"{param}: {error}", param) from None
    if path is None:
        raise refuse(f"{param}: there is no blob {text}; POST /api/blobs/{text} sends it", param)
    return path


@API.route(("HEAD",), "/api/blobs/{digest}", access=Access.OWNERS)
async def has_blob(exchange: Exchange) -> Response:
    """Whether a file is here."""
    return Response(status_code=404 if blobs.find(_digest(exchange)) is None else 200)


@API.route(("POST",), "/api/blobs/{digest}", access=Access.OWNERS, streamed_body=True)
async def add_blob(exchange: Exchange) -> Response:
    """Take a file, written to disk as it comes."""
    sha256 = _digest(exchange)
    await asyncio.to_thread(remove_unused)
    options = exchange.house.options
    declared = exchange.request.headers.get("content-length", "")
    expected = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 19 else None
    if expected is not None and expected > options.max_blob:
        raise ProblemError(
            Problem(413, "too_large", "the file is larger than this server takes", headers=(("connection", "close"),))
        )
    try:
        with blobs.Upload(sha256, options.max_blob, expected) as upload:
            await _receive(exchange, upload)
            await asyncio.to_thread(upload.finish)
    except HubError as error:
        raise refuse(str(error), "digest") from None
    return Response(status_code=201)


async def _receive(exchange: Exchange, upload: blobs.Upload) -> None:
    """Write what comes. Raises ProblemError (408) where nothing does for a while."""
    waiting, n_waiting = [], 0
    pieces = exchange.request.stream()
    try:
        while True:
            async with asyncio.timeout(exchange.house.options.body_timeout):
                piece = await anext(pieces, None)
            if piece is None:
                break
            waiting.append(piece)
            n_waiting += len(piece)
            if n_waiting >= _PIECE:
                await asyncio.to_thread(upload.write, b"".join(waiting))
                waiting, n_waiting = [], 0
        await asyncio.to_thread(upload.write, b"".join(waiting))
    except TimeoutError:
        raise refuse("the file stopped coming", status=408, code="timeout") from None
    except ClientDisconnect:
        raise asyncio.CancelledError from None


def _digest(exchange: Exchange) -> str:
    try:
        return blobs.digest_of(exchange.path("digest"))
    except HubError as error:
        raise refuse(str(error), "digest") from None
