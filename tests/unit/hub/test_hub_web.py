"""Downloads from a web server made here: broken, interrupted, wrong, by several processes, onto full disks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from downloads import DATA, SHA, Server, Use, entry, leftovers

from pyllm import hub
from pyllm.errors import HubError
from pyllm.hub import sources, store
from pyllm.hub.sources import url


def test_url(server: Server, folder: Path, use: Use) -> None:
    use(entry({"kind": "url", "url": server.url}))
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == [None]
    assert leftovers(folder) == ["tiny.gguf"]


def test_url_continues_after_a_break(server: Server, use: Use) -> None:
    server.drop = 120_000
    use(entry({"kind": "url", "url": server.url}))
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == [None, "bytes=120000-", "bytes=240000-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_url_continues_in_a_later_run(server: Server, folder: Path, use: Use, ranges: bool) -> None:
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
def test_url_refusals(server: Server, folder: Path, use: Use, change: dict[str, Any], words: str) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    use(entry({"kind": "url", "url": server.url}))
    with pytest.raises(HubError, match=words) as caught:
        hub.resolve("tiny")
    assert "\n" not in str(caught.value)
    assert not (folder / "tiny.gguf").exists()


def test_a_damaged_beginning_is_fetched_again(server: Server, folder: Path, use: Use) -> None:
    use(entry({"kind": "url", "url": server.url}))
    folder.mkdir()
    (folder / "tiny.gguf.part").write_bytes(bytes(150_000))
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == ["bytes=150000-", None]


def test_wrong_content_leaves_nothing(server: Server, folder: Path, use: Use) -> None:
    use(entry({"kind": "url", "url": server.url}, sha256="0" * 64))
    with pytest.raises(HubError, match="SHA-256"):
        hub.resolve("tiny")
    assert leftovers(folder) == []


def test_pull_repairs_and_resolve_replaces(server: Server, use: Use) -> None:
    use(entry({"kind": "url", "url": server.url}))
    path = hub.pull("tiny:1")
    path.write_bytes(bytes(len(DATA)))
    assert hub.pull("tiny:1").read_bytes() == DATA
    path.write_bytes(DATA[:10])
    assert hub.resolve("tiny:1").read_bytes() == DATA


def test_nobody_answers(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url, "_PAUSE", 0.001)
    use(entry({"kind": "url", "url": "http://127.0.0.1:9/model.gguf"}))
    with pytest.raises(HubError, match=r"127\.0\.0\.1 cannot be reached"):
        hub.resolve("tiny")


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
def test_an_interrupted_download_continues(server: Server, folder: Path, use: Use, how: str) -> None:
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


def test_too_little_room(server: Server, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage._replace(free=len(DATA) - 1))
    use(entry({"kind": "url", "url": server.url}))
    with pytest.raises(HubError, match="not enough room"):
        hub.resolve("tiny")
    assert server.asked == []


def test_disk_full(folder: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(source: Any, part: Any, size: int, report: Any) -> None:
        part.write(DATA[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sources, "get", lambda kind: fetch)
    use(entry({"kind": "url"}))
    with pytest.raises(HubError, match="is full"):
        hub.resolve("tiny")
    assert leftovers(folder) == ["tiny.gguf.part"]
    assert [p.name for p in hub.remove("tiny:1")] == ["tiny.gguf.part"]


def test_folder_cannot_be_made(tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYLLM_MODELS", str(tmp_path / "file" / "models"))
    use(entry({"kind": "url", "url": "http://127.0.0.1:9/"}))
    with pytest.raises(HubError, match="cannot be stored"):
        hub.resolve("tiny")
