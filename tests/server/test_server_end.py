"""The server's end: what runs ends well, what waits for a model does not keep it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pyllm.config.serving import ServeOptions
from pyllm.server import loader
from pyllm.server.known import Shelf
from pyllm.server.problems import ProblemError
from server_rig import Rig, held, lines, noise, running, sent, until

CHAT = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "logit_bias": {"256": -100}}
"""An answer that goes on until a limit."""


@pytest.mark.parametrize(
    ("where", "body", "last"),
    [
        ("/v1/chat/completions", CHAT, b'"code":"shutting_down"}}'),
        ("/v1/completions", {**CHAT, "prompt": "hi"}, b'"code":"shutting_down"}}'),
        ("/v1/messages", {**CHAT, "max_tokens": 100_000}, b'"type":"overloaded_error"'),
        ("/api/chat", {**CHAT, "model": "tiny"}, b'{"error":"the server is ending"}'),
        ("/completion", {**CHAT, "prompt": "hi"}, b'"type":"unavailable_error"'),
    ],
)
def test_what_the_server_cuts_off_ends_with_an_error(
    cut: Rig, caplog: pytest.LogCaptureFixture, where: str, body: dict[str, Any], last: bytes
) -> None:
    with caplog.at_level("INFO"), held(cut):
        connection = sent(cut, body, where)
        found = connection.recv(65536)
        cut.running._server._loop.call_soon_threadsafe(cut.house.cut_off)
        while not found.endswith(b"\r\n0\r\n\r\n"):
            piece = connection.recv(65536)
            assert piece, found[-1000:]
            found += piece
        until(lambda: lines(caplog))
    connection.close()
    assert last in found[-400:]
    assert lines(caplog)[0]["error"] == "shutting_down"
    assert noise(caplog) == []


@pytest.fixture
def cut(path: Path) -> Iterator[Rig]:
    with running(path, grace=0.0) as rig:
        until(lambda: rig.house.models.loaded)
        yield rig


def test_a_loading_ends_when_it_is_cancelled(path: Path) -> None:
    options = ServeOptions(models=(str(path),), load={"backend": "cpu"})
    (known,) = Shelf(options).all()
    loads = loader.Loader(options)
    plan = loads.plan(known, loads.memory())
    loads.load(known, plan).close()
    loads.cancel()
    with pytest.raises(ProblemError, match="the server is ending"):
        loads.load(known, plan)


def test_the_end_waits_for_answers_and_not_for_a_loading(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(path.read_bytes())
    real, loading = loader.load, threading.Event()

    def load(file: Path, progress: Callable[[str, float], None], **options: Any) -> Any:
        while file == other:  # for ever, but for a progress that ends it
            progress("packing weights", 0.5)
            loading.set()
            time.sleep(0.001)
        return real(file, progress=progress, **options)

    monkeypatch.setattr(loader, "load", load)
    found: list[httpx2.Response] = []
    with running(path, other, grace=0.0) as rig:
        assert loading.wait(300)  # models that were named are loaded at the start

        def ask() -> None:
            body = {"model": "other", "prompt": "hi"}
            found.append(httpx2.post(rig.url + "/v1/completions", json=body, timeout=300))

        with held(rig):
            answering = sent(rig, {**CHAT, "model": path.stem, "max_tokens": 4})
            waiting = threading.Thread(target=ask)
            waiting.start()
            until(lambda: len(rig.house.busy) == 2)
            rig.running.end()
            waiting.join(300)
            assert (found[0].status_code, found[0].json()["error"]["code"]) == (503, "shutting_down")
            until(lambda: not rig.house.models.loading)
            assert len(rig.house.busy) == 1
        text = b""
        while piece := answering.recv(65536):
            text += piece
        answering.close()
        assert b"data: [DONE]" in text
        until(lambda: not rig.running._server._loop)
