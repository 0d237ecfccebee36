"""Who may call: keys, the Host header against DNS rebinding, origins of web pages, addresses to listen on."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Scope

from pyllm.config.serving import ServeOptions
from pyllm.errors import RequestError
from pyllm.server.api import Access
from pyllm.server.problems import Problem, ProblemError

_LOCAL_NAMES = ("localhost", "ip6-localhost")
MAX_HEAD = 64 << 10
"""Bytes of a request's first line and headers."""
HEAD_TOO_LARGE = Problem(
    431, "head_too_large", "the request's headers are larger than 64 KiB", headers=(("connection", "close"),)
)


def check_address(options: ServeOptions) -> None:
    """Raise RequestError where the server would be open to a network without keys."""
    if options.uds is not None or options.api_keys or options.insecure or is_loopback(options.host):
        return
    raise RequestError(
        f"{options.host} is reachable from other machines, and there is no key; give --api-key or --api-key-file, or "
        "--insecure where everybody may use it"
    )


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    if host.lower().rstrip(".") in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def check_head(scope: Scope) -> None:
    """Raise ProblemError (431) where a request's first line and headers are too large, however they came."""
    size = len(scope["raw_path"]) + len(scope["query_string"])
    size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size > MAX_HEAD:
        raise ProblemError(HEAD_TOO_LARGE)


def check_host(request: Request, options: ServeOptions) -> None:
    """Raise ProblemError (403) where a page of another name, which resolves to this machine, calls."""
    if options.api_keys or options.uds is not None:
        return
    name = _host_name(request.headers.get("host", ""))
    own = {options.host.lower(), *(host.lower() for host in options.hosts)}
    if not name or not own.isdisjoint((name, "*")) or is_loopback(name) or (options.insecure and _is_address(name)):
        return
    raise ProblemError(
        Problem(403, "host_not_allowed", f"this server is not called {name[:100]}; start it with --allow-host NAME")
    )


def check_origin(request: Request, options: ServeOptions) -> str | None:
    """The origin of a web page that may call, for the answer's header; None without one.

    Raises ProblemError (403) for a page of another origin: browsers send its requests even where it may not read the
    answers.
    """
    origin = request.headers.get("origin")
    if origin is None:
        return None
    if origin in options.origins or "*" in options.origins:
        return origin
    with suppress(ValueError):  # it is no URL
        if origin != "null" and urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower():
            return origin
    raise ProblemError(
        Problem(
            403,
            "origin_not_allowed",
            f"pages of {origin[:100]} may not call; start the server with --origin URL",
        )
    )


def check_access(request: Request, access: Access, options: ServeOptions) -> None:
    """Raise ProblemError (401, 403) where a caller may not use a route."""
    if access is Access.ANYONE:
        return
    if options.api_keys:
        if not has_key(request, options.api_keys):
            raise ProblemError(
                Problem(
                    401,
                    "invalid_api_key",
                    "the key is missing or wrong; send it as Authorization: Bearer KEY, or as x-api-key",
                    headers=(("www-authenticate", "Bearer"),),
                )
            )
        return
    if access is Access.OWNERS and options.uds is None and not (request.client and is_loopback(request.client.host)):
        raise ProblemError(
            Problem(403, "not_permitted", "models are managed from this machine, or with a key; the server has no key")
        )


def has_key(request: Request, keys: Sequence[str]) -> bool:
    """Whether a request brings one of the keys; the time that this takes tells nothing of them."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    sent = given.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    found = False
    for key in keys:
        found |= hmac.compare_digest(sent.encode(), key.encode())
    return found


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
