"""A server in a thread of this process, for tests: real sockets, small models."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from pyllm.server import House, ServeOptions, make_house
from pyllm.server.process import Running


@dataclass(frozen=True)
class Rig:
    """A running server."""

    url: str
    house: House
    running: Running

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def running(*models: Any, **options: Any) -> Iterator[Rig]:
    """Serve models (paths) with `ServeOptions`; the reference backend unless `load` says otherwise."""
    options.setdefault("load", {"backend": "reference", "kv_dtype": "f32"})
    options.setdefault("grace", 60.0)  # what is wrong has its status on a busy machine, too
    options.setdefault("ping_every", 60.0)
    settings = ServeOptions(models=tuple(str(m) for m in models), port=0, **options)
    house = make_house(settings)
    server = Running(house)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.listens or not thread.is_alive())
        assert thread.is_alive(), "the server did not start"
        yield Rig(server.address, house, server)
    finally:
        server.end(at_once=True)
        thread.join(300)
        assert not thread.is_alive(), "the server did not end"


@contextmanager
def held(rig: Rig) -> Iterator[threading.Event]:
    """The engine computes nothing until the event is set."""
    engine = rig.house.models.loaded[0].llm.llm.engine
    go_on, holds = threading.Event(), threading.Event()

    def hold() -> None:
        holds.set()
        go_on.wait(60)

    thread = threading.Thread(target=lambda: engine.between_steps(hold))
    thread.start()
    try:
        assert holds.wait(60)
        yield go_on
    finally:
        go_on.set()
        thread.join()


def until(condition: Any, seconds: float = 300) -> None:
    """Wait for a condition. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.01)


def sent(
    rig: Rig, body: dict[str, Any], path: str = "/v1/chat/completions", buffer: int | None = None
) -> socket.socket:
    """A connection over which a body was sent. `buffer`: about the bytes that the system keeps for its client."""
    data = json.dumps(body).encode()
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(300)
    connection.connect(("127.0.0.1", rig.port))
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the lines on requests say."""
    return [getattr(record, "fields", {}) for record in caplog.records if record.getMessage() == "request"]


def noise(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What asyncio and uvicorn say of connections."""
    return [r.getMessage() for r in caplog.records if r.name in ("asyncio", "uvicorn.error") and r.levelno > 20]
