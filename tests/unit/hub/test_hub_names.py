"""Names to files: the catalog, paths, and Hugging Face's repositories."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import pytest
from downloads import DATA, SHA, Server, leftovers

from pyllm import hub
from pyllm.errors import HubError
from pyllm.hub import catalog, huggingface, sources

# The catalog that is shipped


def test_catalog_is_sound() -> None:
    found = catalog.load()
    assert found.default == "smollm2:135m" == hub.default_name()
    assert "qwen2.5-coder:1.5b" in found.entries
    for e in found.entries.values():
        assert re.fullmatch(r"[0-9a-f]{64}", e.sha256)
        assert e.licence
        assert e.description
        assert e.file.endswith(".gguf")
        for source in e.sources:
            assert sources.get(source["kind"])
            if source["kind"] == "pypi":
                assert sum(p["size"] for p in source["parts"]) == e.size
                assert all("==" in p["requirement"] for p in source["parts"])


@pytest.mark.parametrize("name", ["smollm2:135m", "SmolLM2:135M", "smollm2"])
def test_catalog_names(name: str) -> None:
    found = catalog.load().find(name)
    assert found is not None
    assert found.name == "smollm2:135m"


def test_catalog_file_is_the_one_in_models() -> None:
    path = catalog.catalog_path()
    assert json.loads(path.read_text())["default"] == "smollm2:135m"


def test_catalog_refuses_paths_out_of_the_folder() -> None:
    fields = {"file": "../x.gguf", "size": 1, "sha256": "0" * 64, "sources": [{"kind": "url"}]}
    with pytest.raises(ValueError, match="entry"):
        catalog.parse({"default": "x", "models": {"x": fields}})


# Names


def test_a_path_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "smollm2"
    file.write_bytes(b"x")
    assert hub.resolve(str(file)) == file
    assert hub.resolve(file) == file


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere/model.gguf", "no file"),
        ("smolm2:135m", r"did you mean smollm2:135m\?"),
        ("hf.co/onlyuser", "is not hf.co/user/repo"),
        ("hf.co/../..:x", "is not hf.co/user/repo"),
        (".", "folder"),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(HubError, match=words):
        hub.resolve(name)


# Hugging Face

FILES = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-IQ4_XS.gguf", "mmproj-f16.gguf"]
SHARDS = ["big-Q8_0-00001-of-00002.gguf", "big-Q8_0-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("files", "wanted", "chosen"),
    [
        (FILES, None, ["m-Q4_K_M.gguf"]),
        (FILES, "q8_0", ["m-Q8_0.gguf"]),
        (FILES, "m-IQ4_XS.gguf", ["m-IQ4_XS.gguf"]),
        (["only-F16.gguf"], None, ["only-F16.gguf"]),
        (SHARDS, None, SHARDS),
        ([*SHARDS, "big-Q4_0.gguf"], "Q8_0", SHARDS),
    ],
)
def test_choice_of_files(files: list[str], wanted: str | None, chosen: list[str]) -> None:
    assert huggingface.choose(files, wanted, "user/repo") == chosen


@pytest.mark.parametrize(
    ("files", "wanted"), [(["a.txt"], None), (FILES, "Q4_K"), (["a-F16.gguf", "b-F32.gguf"], None)]
)
def test_no_choice_of_files(files: list[str], wanted: str | None) -> None:
    with pytest.raises(HubError, match="user/repo"):
        huggingface.choose(files, wanted, "user/repo")


@pytest.fixture
def hub_of_ours(server: Server, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for huggingface_hub whose repository has one model, served by `server`."""
    lfs = types.SimpleNamespace(size=len(DATA), sha256=SHA)
    info = types.SimpleNamespace(sha="abc", siblings=[types.SimpleNamespace(rfilename="m-Q4_0.gguf", lfs=lfs)])
    fake = types.SimpleNamespace(
        HfApi=lambda: types.SimpleNamespace(model_info=lambda repo, files_metadata: info),
        get_token=lambda: "secret",
        hf_hub_url=lambda repo, name, revision: server.url,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)  # type: ignore[arg-type]
    return fake


def test_huggingface(hub_of_ours: types.SimpleNamespace, server: Server, folder: Path) -> None:
    path = hub.resolve("hf.co/user/repo:Q4_0")
    assert path == folder / "hf.co" / "user" / "repo" / "m-Q4_0.gguf"
    assert path.read_bytes() == DATA
    server.status = 500
    assert hub.resolve("hf.co/user/repo") == hub.pull("hf.co/user/repo:Q4_0") == path
    (local,) = [m for m in hub.models() if m.entry is None]
    assert hub.resolve(local.name) == path
    assert hub.remove(local.name) == [path]


def test_huggingface_checks_hashes(hub_of_ours: types.SimpleNamespace, server: Server, folder: Path) -> None:
    server.data = bytes(len(DATA))
    with pytest.raises(HubError, match="SHA-256"):
        hub.resolve("hf.co/user/repo:Q4_0")
    assert leftovers(folder / "hf.co" / "user" / "repo") == []


def test_huggingface_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # type: ignore[arg-type]
    with pytest.raises(HubError, match="extra `hub`"):
        hub.resolve("hf.co/user/repo:Q4_0")


def test_remove_touches_only_its_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"x")
    with pytest.raises(HubError, match="your own file"):
        hub.remove(str(mine))
    assert mine.exists()
