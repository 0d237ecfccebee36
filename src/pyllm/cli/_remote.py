"""Requests to a running server, for the commands that speak to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from pyllm.cli._types import TextType

if TYPE_CHECKING:
    import socket
    from http.client import HTTPConnection

F = TypeVar("F", bound=Callable[..., Any])

_TIMEOUT = 60.0
_DEFAULT = "http://127.0.0.1:11500"


def server_options(function: F) -> F:
    """--url and --api-key, as `url` and `api_key`: keywords of `ask`."""
    for option in (
        click.option(
            "--api-key",
            type=TextType(),
            multiple=True,
            metavar="KEY",
            help="The server's key. Other users see what is on a command line: PYLLM_API_KEY is safer.",
        ),
        click.option(
            "--url",
            default=_DEFAULT,
            show_default=True,
            metavar="URL",
            help="The server's address, as `pyllm serve` says it; unix:PATH for a unix socket.",
        ),
    ):
        function = option(function)
    return function


def ask(path: str, body: dict[str, Any] | None = None, *, url: str, api_key: tuple[str, ...] = ()) -> dict[str, Any]:
    """The server's answer to a GET, or to a POST with a body. Raises click.ClickException.

    Proxies of the environment are not used: they would not find this machine's own addresses.
    """
    from http.client import HTTPException

    headers = {"content-type": "application/json"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key[0]}"
    connection = _connection(url)
    try:
        connection.request("GET" if body is None else "POST", path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        data = response.read()
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.ClickException(f"no server answers at {url}: {reason}; `pyllm serve` starts one") from None
    finally:
        connection.close()
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise click.ClickException(f"what answers at {url} is not pyllm's server")
    if response.status != 200:
        raise click.ClickException(str(found.get("error", f"the server answers {response.status}")))
    return cast(dict[str, Any], found)


def _connection(url: str) -> HTTPConnection:
    from http.client import HTTPConnection, HTTPSConnection
    from urllib.parse import urlsplit

    if url.startswith("unix:"):
        connection = HTTPConnection("localhost", timeout=_TIMEOUT)
        # What `HTTPConnection.connect` sets, connected.
        connection.sock = _unix(url.removeprefix("unix:"), url)
        return connection
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in ("http", "https"):
        raise click.UsageError(f"{url!r} is not an address such as {_DEFAULT}")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    return kind(host, port, timeout=_TIMEOUT)


def _unix(path: str, url: str) -> socket.socket:
    import socket

    found = socket.socket(socket.AF_UNIX)
    found.settimeout(_TIMEOUT)
    try:
        found.connect(path)
    except OSError as error:
        found.close()
        raise click.ClickException(
            f"no server answers at {url}: {error.strerror or error}; `pyllm serve` starts one"
        ) from None
    return found
