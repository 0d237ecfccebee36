"""Requests of all kinds to all routes: none fails inside, none is without an answer and a line in the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.server import apis
from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf

ROUTES = sorted(
    (method, route.path)
    for api in apis.all_apis()
    for route in api.routes
    for method in route.methods
    if route.path not in ("/api/pull", "/api/delete")  # these would go to the network, and remove the model
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        [
            "messages",
            "prompt",
            "input",
            "content",
            "tokens",
            "model",
            "stream",
            "n",
            "tools",
            "system",
            "options",
            "format",
            "suffix",
            "query",
            "documents",
            "name",
            "from",
            "files",
            "keep_alive",
            "stop",
            "seed",
            "temperature",
            "logit_bias",
            "response_format",
            "think",
            "raw",
            "context",
            "role",
        ]
    ),
    VALUES | st.just("tiny") | st.just([{"role": "user", "content": "hi"}]),
    max_size=6,
)
LIMITS = {"max_tokens": 2, "max_output_tokens": 2, "n_predict": 2, "num_predict": 2, "max_completion_tokens": 2}
BODIES = st.binary(max_size=40) | (FIELDS | VALUES).map(
    lambda found: json.dumps({**found, **LIMITS} if isinstance(found, dict) else found).encode("utf-8", "surrogatepass")
)
NAMES = [
    "accept",
    "authorization",
    "content-type",
    "cookie",
    "expect",
    "origin",
    "range",
    "x-api-key",
    "anthropic-version",
    "te",
    "upgrade",
    "x",
]
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20)
HEADERS = st.dictionaries(
    st.sampled_from(NAMES),
    TEXTS,
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running(write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf"), max_tokens=2, timeout=20.0) as rig:
        yield rig


class Ids(logging.Handler):
    """Ids of the requests that were logged, and what was logged as an error."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "fields", {})
        if record.getMessage() == "request":
            self.found.add(fields["id"])
        if record.levelno >= logging.ERROR:
            self.errors.append(f"{record.getMessage()} {fields}")


@pytest.fixture(scope="module")
def logged() -> Iterator[Ids]:
    handler = Ids()
    loggers = [logging.getLogger("pyllm.server"), logging.getLogger("uvicorn.error")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if logger.name == "pyllm.server" else logging.ERROR)
    yield handler
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


@settings(max_examples=300, deadline=None)
@given(
    route=st.sampled_from(ROUTES),
    part=st.sampled_from(["tiny", "0", "..", "%00", "a b"]),
    body=BODIES,
    headers=HEADERS,
)
def test_every_request_is_answered(
    rig: Rig, logged: Ids, route: tuple[str, str], part: str, body: bytes, headers: dict[str, Any]
) -> None:
    method, path = route
    where = "/".join(quote(part) if piece.startswith("{") else piece for piece in path.split("/"))
    connection = HTTPConnection("127.0.0.1", rig.port, timeout=60)
    try:
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        connection.request(method, where, body, encoded)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    assert answer.status < 500 or answer.status in (501, 503), (answer.status, text)
    number = answer.getheader("x-request-id")
    if number is not None and answer.status not in (403, 404):  # those may be refused before a route is found
        until(lambda: number in logged.found)
    assert logged.errors == []
