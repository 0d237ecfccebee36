"""Servers as processes of their own, for comparisons: started, waited for with a limit, and ended."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_LIMIT = 180.0
"""Seconds that a server may take to be ready."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]


@contextmanager
def running(name: str, command: Sequence[str], ready: str = "/health") -> Iterator[Server]:
    """Run a server; `command` gets --port. Yields when GET `ready` is a 200. Ends it at the end.

    Raises SystemExit with what the server wrote where it ends early, or takes too long.
    """
    port = free_port()
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log) as process,
    ):
        try:
            end = time.monotonic() + _LIMIT
            while not is_ready(port, ready):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    sys.exit(f"{name} did not start:\n{log.read()[-4000:].decode(errors='replace')}")
                time.sleep(0.05)
            yield Server(name, port, process)
        finally:
            stop(process)


def pyllm_command(models: Sequence[str], *options: str) -> list[str]:
    """`pyllm serve` of this environment."""
    return [sys.executable, "-m", "pyllm", "serve", *models, *options]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(port: int, path: str) -> bool:
    try:
        return ask(port, path, limit=5)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def ask(port: int, path: str, body: Any = None, limit: float = 120) -> tuple[int, bytes]:
    """The status and the body of one request: a POST where there is a body. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
