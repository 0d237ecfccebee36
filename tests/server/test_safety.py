"""Who may call a server, and how much of it one caller may take."""

from __future__ import annotations

import hmac
import json
import logging
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.requests import Request

from pyllm.config.serving import ServeOptions
from pyllm.errors import RequestError
from pyllm.server import safety
from pyllm.server.api import Access
from pyllm.server.problems import ProblemError
from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf

HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def rig(path: Path) -> Iterator[Rig]:
    with running(path, origins=("https://chat.example",), hosts=("box",), max_body=2000) as rig:
        yield rig


@pytest.fixture(scope="module")
def locked(path: Path) -> Iterator[Rig]:
    with running(path, api_keys=("first", "second")) as rig:
        yield rig


def raw(rig: Rig, data: bytes, more: bytes | None = None) -> bytes:
    """What comes for some bytes until the server closes; "" where it only does that."""
    with socket.create_connection(("127.0.0.1", rig.port), timeout=60) as connection:
        connection.sendall(data)
        if more is not None:
            connection.sendall(more)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


def request_of(host: str = "", client: str = "127.0.0.1", **headers: str) -> Request:
    sent = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    return Request({"type": "http", "headers": encoded, "client": (client, 1), "path": "/", "method": "GET"})


# Addresses, hosts and origins


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "LOCALHOST."])
def test_addresses_of_this_machine_need_no_key(host: str) -> None:
    safety.check_address(ServeOptions(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "box.example", "127.0.0.1.example"])
def test_other_addresses_need_a_key(host: str) -> None:
    with pytest.raises(RequestError, match="is reachable from other machines"):
        safety.check_address(ServeOptions(host=host))
    safety.check_address(ServeOptions(host=host, api_keys=("k",)))
    safety.check_address(ServeOptions(host=host, insecure=True))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil"])
@pytest.mark.parametrize("where", ["/v1/models", "/api/tags", "/health", "/", "/none"])
def test_pages_of_names_that_resolve_to_this_machine_are_refused(rig: Rig, host: str, where: str) -> None:
    found = raw(rig, f"GET {where} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
    assert found.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:80", "box", "BOX:9"])
def test_the_servers_own_names_are_served(rig: Rig, host: str) -> None:
    assert httpx2.get(rig.url + "/v1/models", headers={"host": host}).status_code == 200


def test_origins_are_those_that_were_named(rig: Rig) -> None:
    def asked(origin: str, method: str = "GET") -> httpx2.Response:
        headers = {"origin": origin, "access-control-request-headers": "x-stainless-os"}
        return httpx2.request(method, rig.url + "/v1/models", headers=headers)

    for method in ("GET", "OPTIONS"):
        assert asked("https://evil.example", method).status_code == 403
        assert asked("null", method).status_code == 403
        assert "access-control-allow-origin" not in asked("https://evil.example", method).headers
    own = asked(rig.url)
    assert own.status_code == 200
    named = asked("https://chat.example")
    assert (named.status_code, named.headers["access-control-allow-origin"]) == (200, "https://chat.example")
    before = asked("https://chat.example", "OPTIONS")
    assert before.status_code == 204
    assert before.headers["access-control-allow-headers"] == "x-stainless-os"


# Keys


@pytest.mark.parametrize(
    ("where", "form"),
    [
        ("/v1/models", lambda e: (e["error"]["code"], e["error"]["type"])),
        ("/v1/messages", lambda e: (e["type"], e["error"]["type"])),
        ("/api/tags", lambda e: e["error"].startswith("the key is missing or wrong")),
        ("/props", lambda e: (e["error"]["code"], e["error"]["type"])),
        ("/metrics", lambda e: e["error"]["code"]),
    ],
)
@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": "firs"}, {"authorization": "Basic first"}]
)
def test_a_wrong_key_is_refused_in_the_form_of_each_api(
    locked: Rig, where: str, form: Any, headers: dict[str, str]
) -> None:
    method = "POST" if where == "/v1/messages" else "GET"
    found = httpx2.request(method, locked.url + where, headers=headers)
    assert found.status_code == 401
    assert found.headers["www-authenticate"] == "Bearer"
    expected = {
        "/v1/models": ("invalid_api_key", "authentication_error"),
        "/v1/messages": ("error", "authentication_error"),
        "/api/tags": True,
        "/props": (401, "authentication_error"),
        "/metrics": "invalid_api_key",
    }
    assert form(found.json()) == expected[where]


def test_each_key_opens_and_health_needs_none(locked: Rig) -> None:
    for headers in ({"authorization": "Bearer first"}, {"authorization": "bearer second"}, {"x-api-key": "second"}):
        assert httpx2.get(locked.url + "/v1/models", headers=headers).status_code == 200
    assert httpx2.get(locked.url + "/health").status_code == 200
    # With keys, any name will do: a page of another name has no key.
    assert httpx2.get(locked.url + "/health", headers={"host": "any.example"}).status_code == 200


def test_all_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(sent: bytes, key: bytes) -> bool:
        compared.append((sent, key))
        return sent == key

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert safety.has_key(request_of(authorization="Bearer a"), ["a", "b"])
    assert compared == [(b"a", b"a"), (b"a", b"b")]


def test_models_are_managed_from_this_machine_or_with_a_key() -> None:
    for client in ("127.0.0.1", "::1"):
        safety.check_access(request_of(client=client), Access.OWNERS, ServeOptions())
    far = request_of(client="10.0.0.2", authorization="Bearer k")
    for options in (ServeOptions(), ServeOptions(insecure=True, host="0.0.0.0")):
        with pytest.raises(ProblemError) as raised:
            safety.check_access(far, Access.OWNERS, options)
        assert raised.value.problem.status == 403
        safety.check_access(far, Access.USERS, options)
    safety.check_access(far, Access.OWNERS, ServeOptions(api_keys=("k",)))
    with pytest.raises(ProblemError) as raised:
        safety.check_access(request_of(), Access.OWNERS, ServeOptions(api_keys=("k",)))
    assert raised.value.problem.status == 401


# Limits


def head(length: str, **more: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return "\r\n".join(["POST /v1/chat/completions HTTP/1.1", "host: localhost", length, *lines, "", ""]).encode()


def test_large_bodies_are_refused_whether_they_say_their_length_or_not(rig: Rig) -> None:
    declared = raw(rig, head("content-length: 2001"))
    assert declared.startswith(b"HTTP/1.1 413 ")
    body = json.loads(declared.partition(b"\r\n\r\n")[2])
    assert body["error"]["code"] == "too_large"
    assert body["error"]["message"] == "the body is larger than 2.0 KiB"
    chunk = b"400\r\n" + b"x" * 0x400 + b"\r\n"
    assert raw(rig, head("transfer-encoding: chunked"), chunk * 2).startswith(b"HTTP/1.1 413 ")


def test_slow_bodies_are_refused(path: Path) -> None:
    with running(path, body_timeout=0.3) as rig:
        found = raw(rig, head("content-length: 9", connection="close"), b"{")
    assert found.startswith(b"HTTP/1.1 408 ")
    assert b'"the body did not arrive within 0.3 s"' in found


def test_heads_are_limited_in_one_piece_and_in_many(rig: Rig) -> None:
    most = safety.MAX_HEAD
    bare = len(head("content-length: 0", x="", connection="close"))
    for size, status in ((most - bare - 100, b"400"), (most, b"431"), (3 * most, b"431")):
        data = head("content-length: 0", x="y" * size, connection="close")
        assert raw(rig, data).startswith(b"HTTP/1.1 " + status)  # 400: there is no JSON
    found = raw(rig, head("content-length: 0", x="y" * most)[:-4], b"z" * most)  # which does not end
    assert found.startswith(b"HTTP/1.1 431 ")
    assert b"the request's headers are larger than 64 KiB" in found
    assert not rig.house.busy


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02", b"GET\r\n\r\n", b"\0" * 99])
def test_what_is_not_http_is_refused(rig: Rig, data: bytes) -> None:
    found = raw(rig, data + b"\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 4")


def test_half_bodies_leave_nothing_behind(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", rig.port), timeout=60) as connection:
            connection.sendall(head("content-length: 99") + b'{"mess')
    assert httpx2.post(rig.url + "/v1/chat/completions", json=HELLO, timeout=60).status_code == 200
    until(lambda: not rig.house.busy)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_connections_without_a_request_are_closed(path: Path) -> None:
    with running(path, idle_timeout=0.3) as rig:

        def answer(data: bytes) -> bytes:
            """What comes; on a busy machine a connection may be closed before the request is sent."""
            found = b""

            def asked() -> bool:
                nonlocal found
                with suppress(ConnectionError):
                    found = raw(rig, data)
                return bool(found)

            until(asked)
            return found

        assert raw(rig, b"") == b""
        with suppress(ConnectionError):
            assert raw(rig, b"GET /health HTTP/1.1\r\nhost: loc") == b""
        assert answer(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        # A request that takes longer than that is no idle connection.
        body = json.dumps({**HELLO, "max_tokens": 400, "logit_bias": {"256": -100}}).encode()
        assert answer(head(f"content-length: {len(body)}") + body).startswith(b"HTTP/1.1 200 ")


def test_connections_are_limited(path: Path) -> None:
    with running(path, max_connections=2) as rig:
        held = [socket.create_connection(("127.0.0.1", rig.port), timeout=60) for _ in range(2)]
        for connection in held:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert raw(rig, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").startswith(b"HTTP/1.1 503 ")
        for connection in held:
            connection.close()
        until(lambda: httpx2.get(rig.url + "/health").status_code == 200)


def test_answers_are_limited_in_tokens_time_and_number(path: Path) -> None:
    with running(path, max_tokens=3, max_choices=2) as rig:
        for asked in ({}, {"max_tokens": 50}, {"max_completion_tokens": 9}):
            body = {"messages": HELLO["messages"], "logit_bias": {"256": -100}, **asked}
            found = httpx2.post(rig.url + "/v1/chat/completions", json=body, timeout=60).json()
            assert found["usage"]["completion_tokens"] == 3
        found = httpx2.post(rig.url + "/v1/chat/completions", json={**HELLO, "n": 3}, timeout=60)
        assert (found.status_code, found.json()["error"]["param"]) == (400, "n")


# Other sockets


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl makes a certificate")
def test_https(path: Path, tmp_path: Path) -> None:
    files = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", files[0], "-keyout", files[1]]
    subprocess.run([*made, *names], check=True, capture_output=True, timeout=60)
    with running(path, ssl_certfile=files[0], ssl_keyfile=files[1]) as rig:
        assert rig.url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=files[0])
        connection = HTTPSConnection("127.0.0.1", rig.port, context=trusted, timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps(HELLO), {"content-type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            HTTPSConnection("127.0.0.1", rig.port, context=ssl.create_default_context(), timeout=60).request("GET", "/")


@pytest.mark.skipif(sys.platform == "win32", reason="no unix sockets")
def test_unix_socket(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    left = socket.socket(socket.AF_UNIX)
    left.bind("s")
    left.close()  # as a server that was killed leaves it
    with running(path, uds="s"):
        assert Path("s").stat().st_mode & 0o777 == 0o600
        connection = HTTPConnection("any.name", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect("s")
        connection.request("POST", "/v1/chat/completions", json.dumps(HELLO), {"content-type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()
        with pytest.raises(RequestError, match="another server listens on s"), running(path, uds="s"):
            pass
    assert not Path("s").exists()
    Path("file").write_text("kept")
    with pytest.raises(RequestError, match="cannot listen on file"), running(path, uds="file"):
        pass
    assert Path("file").read_text() == "kept"
