"""A server in a thread of this process, for tests: real sockets, small models."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"


def until(condition: Any, seconds: float = 60) -> None:
    """Wait for a condition. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.01)
