"""Request bodies: read within limits, decoded into structs that ignore what they do not know."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from pyllm.server.problems import Problem, ProblemError, refuse
from pyllm.units import size

T = TypeVar("T")


class Body(msgspec.Struct, kw_only=True):
    """Base of all bodies. Fields that are null, or that a struct does not have, are as if they were not there."""


async def read(request: Request, most: int, seconds: float) -> bytes:
    """The whole body. Raises ProblemError where it is too large (413) or too slow (408), ClientDisconnect."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    pieces, total = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                total += len(piece)
                if total > most:
                    raise _too_large(most)
                pieces.append(piece)
    except TimeoutError:
        raise refuse(f"the body did not arrive within {seconds:g} s", status=408, code="timeout") from None
    return b"".join(pieces)


def value_of(data: bytes) -> Any:
    """A body of any form. Raises ProblemError (400)."""
    try:
        return msgspec.json.decode(data or b"{}")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise refuse(f"the body is not JSON: {error}", code="invalid_json") from None


def decode(data: bytes) -> dict[str, Any]:
    """A body's fields. Raises ProblemError (400)."""
    found = value_of(data)
    if not isinstance(found, dict):
        raise refuse("the body must be a JSON object", code="invalid_json")
    return found


def convert(found: dict[str, Any], kind: type[T]) -> T:
    """Fields as a struct. Raises ProblemError (400) that names the field."""
    try:
        return msgspec.convert({k: v for k, v in found.items() if v is not None}, kind, strict=True)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        name = place.rstrip("`").lstrip(".") or None
        if name is None and "missing required field" in text:
            name = text.split("`")[1]
            raise refuse(f"{name} is missing", name, code="missing_field") from None
        raise refuse(f"{name or 'the body'}: {text[:1].lower()}{text[1:]}", name) from None


def _too_large(most: int) -> ProblemError:
    text = f"the body is larger than {size(most)}"
    return ProblemError(Problem(413, "too_large", text, headers=(("connection", "close"),)))
