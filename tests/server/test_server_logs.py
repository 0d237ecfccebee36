"""The server's log: a line for each request, whatever became of it; and nothing of clients that leave."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from server_rig import Rig, lines, noise, running, sent, until

CHAT = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "logit_bias": {"256": -100}}
"""An answer that goes on until a limit."""


@pytest.fixture(scope="module")
def rig(path: Path) -> Iterator[Rig]:
    with running(path, api_keys=("secret",), hosts=("box",)) as rig:
        yield rig


@pytest.fixture(scope="module")
def unlocked(path: Path) -> Iterator[Rig]:
    with running(path) as rig:
        yield rig


@pytest.mark.parametrize(
    ("method", "where", "headers", "status", "error"),
    [
        ("GET", "/v1/models", {}, 401, "invalid_api_key"),
        ("GET", "/v1/models", {"authorization": "Bearer secret"}, 200, None),
        ("GET", "/nothing", {}, 404, "not_found"),
        ("PUT", "/v1/models", {}, 404, "not_found"),
        ("GET", "/v1/models", {"origin": "http://evil.example"}, 403, "origin_not_allowed"),
        ("GET", "/v1/models", {"origin": "http://[evil"}, 403, "origin_not_allowed"),
        ("OPTIONS", "/v1/models", {}, 204, None),
        ("GET", "/v1/models", {"x-long": "y" * 70_000}, 431, "head_too_large"),
    ],
)
def test_each_request_has_a_line_whatever_becomes_of_it(
    rig: Rig,
    caplog: pytest.LogCaptureFixture,
    method: str,
    where: str,
    headers: dict[str, str],
    status: int,
    error: str | None,
) -> None:
    with caplog.at_level("INFO", "pyllm.server"):
        found = httpx2.request(method, rig.url + where, headers=headers)
        until(lambda: lines(caplog))
    (line,) = lines(caplog)
    assert (found.status_code, line["status"], line.get("error")) == (status, status, error)
    assert (line["method"], line["path"]) == (method, where)
    assert found.headers["x-request-id"] == line["id"]


def test_probes_have_no_line_unless_they_are_refused(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pyllm.server"):
        until(lambda: not rig.house.models.starting)
        for starting, status in ((False, 200), (True, 503)):
            rig.house.models.starting = starting
            assert httpx2.get(rig.url + "/ready").status_code == status
        rig.house.models.starting = False
        assert httpx2.get(rig.url + "/metrics").status_code == 401
        until(lambda: lines(caplog))
    assert [(line["path"], line["status"]) for line in lines(caplog)] == [("/metrics", 401)]


@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("[::1", 200), ("localhost/x?y#", 403)])
def test_a_request_has_a_line_with_its_own_path_whatever_its_host_says(
    unlocked: Rig, caplog: pytest.LogCaptureFixture, host: str, status: int
) -> None:
    with caplog.at_level("INFO", "pyllm.server"):
        assert httpx2.get(unlocked.url + "/v1/models", headers={"host": host}).status_code == status
        until(lambda: lines(caplog))
    (line,) = lines(caplog)
    assert (line["path"], line["status"]) == ("/v1/models", status)


def test_clients_that_leave_in_the_middle_end_their_requests_and_make_no_noise(
    unlocked: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    # Much stays in the server's memory, as the clients read nothing, and the system holds little.
    unlocked.running._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = {**CHAT, "max_tokens": 400, "n": 8}
    with caplog.at_level("INFO"):
        left = [sent(unlocked, body, buffer=4096) for _ in range(4)]
        connections = unlocked.running._server.server_state.connections
        until(lambda: [c.transport.get_write_buffer_size() > 50_000 for c in list(connections)] == [True] * 4)
        for connection in left:
            connection.shutdown(socket.SHUT_WR)
        until(lambda: len(lines(caplog)) == 4)
        assert not unlocked.house.busy
        for connection in left:
            connection.close()
    assert noise(caplog) == []


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"1" * 200_000])
@pytest.mark.parametrize("began", [False, True])
def test_bodies_that_are_no_http_are_refused_without_a_fault(
    unlocked: Rig, caplog: pytest.LogCaptureFixture, chunk: bytes, began: bool
) -> None:
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with caplog.at_level("INFO"), socket.create_connection(("127.0.0.1", unlocked.port), timeout=300) as connection:
        # What is not there has its answer before the body.
        connection.sendall(head % (b"/none" if began else b"/v1/completions"))
        if began:
            assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
        with suppress(ConnectionError):
            connection.sendall(chunk)
            while connection.recv(65536):
                pass
        until(lambda: lines(caplog))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_lines_of_a_stream_say_what_was_asked_and_answered_where_the_user_wants_it(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(path, log_prompts=True) as rig, caplog.at_level("INFO", "pyllm.server"):
        for stream in (True, False):
            body = {**CHAT, "max_tokens": 3, "stream": stream, "temperature": 0}
            assert httpx2.post(rig.url + "/v1/chat/completions", json=body, timeout=300).status_code == 200
        texts = [getattr(record, "fields", {}) for record in caplog.records if record.getMessage() == "text"]
    assert [text["asked"] for text in texts if "asked" in text] == [CHAT["messages"]] * 2
    streamed, whole = [text["answered"] for text in texts if "answered" in text]
    assert streamed == whole
    assert streamed["role"] == "assistant"


def test_prompts_and_answers_are_in_no_line_else(unlocked: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        body = {"messages": [{"role": "user", "content": "a secret thing"}], "max_tokens": 3}
        assert httpx2.post(unlocked.url + "/v1/chat/completions", json=body, timeout=300).status_code == 200
    assert "secret thing" not in caplog.text
