"""Silence while a long prompt is read, and clients that leave meanwhile, for every API's framing.

Where servers were silent, or went on without a client: llama.cpp#24013, #25241, #24496, vllm#47647, #54947, ds4#222,
ik_llama#1020. The engine is held between two steps for as long as a test needs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server_rig import Rig, held, running, until
from tiny_gguf import write_tiny_gguf

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
OLLAMA = {"model": "tiny", "options": {"num_predict": 4, "temperature": 0}}
TEXT = {"prompt": "Hello", "max_tokens": 4, "temperature": 0}


@dataclass(frozen=True)
class Wire:
    """A route, what it is asked, what a waiting client hears, and the last that it hears."""

    path: str
    body: dict[str, Any]
    ping: str
    last: str


WIRES = {
    "openai chat": Wire("/v1/chat/completions", CHAT, ": ping", "data: [DONE]"),
    "openai text": Wire("/v1/completions", TEXT, ": ping", "data: [DONE]"),
    "openai responses": Wire("/v1/responses", {"input": "Hello"}, ": ping", '"type":"response.'),
    "anthropic": Wire("/v1/messages", CHAT, "event: ping", 'data: {"type":"message_stop"}'),
    "ollama chat": Wire("/api/chat", {**OLLAMA, "messages": CHAT["messages"]}, '"content":""', '"done":true'),
    "ollama generate": Wire("/api/generate", {**OLLAMA, "prompt": "Hello"}, '"response":""', '"done":true'),
    "llama-server": Wire("/completion", TEXT, ": ping", '"stop_type":"limit"'),
}
WIRE = pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    path: Path = write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")
    with running(path, ping_every=0.02, grace=0.0) as rig:
        until(lambda: rig.house.models.loaded)
        yield rig


def is_quiet(rig: Rig) -> bool:
    (served,) = rig.house.models.loaded
    return not rig.house.busy and not served.n_users and served.llm.llm.engine.load().n_running == 0


@WIRE
def test_a_stream_has_headers_at_once_and_pings(rig: Rig, wire: Wire) -> None:
    with (
        held(rig) as go_on,
        httpx2.stream("POST", rig.url + wire.path, json={**wire.body, "stream": True}, timeout=60) as stream,
    ):
        assert stream.status_code == 200
        kind = "application/x-ndjson" if wire.path.startswith("/api/") else "text/event-stream"
        assert stream.headers["content-type"].startswith(kind)
        lines = stream.iter_lines()
        n_pings = 0
        while n_pings < 3:
            n_pings += wire.ping in next(lines)
        go_on.set()
        rest = [line for line in lines if line and line != wire.ping]
    assert wire.last in rest[-1]


@WIRE
def test_a_whole_body_begins_with_blanks(rig: Rig, wire: Wire) -> None:
    with (
        held(rig) as go_on,
        httpx2.stream("POST", rig.url + wire.path, json={**wire.body, "stream": False}, timeout=60) as answer,
    ):
        assert answer.status_code == 200
        pieces = answer.iter_raw()
        heard = b""
        while len(heard) < 3:
            heard += next(pieces)
        assert not heard.strip()
        go_on.set()
        found = json.loads(heard + b"".join(pieces))
    assert found.get("error") is None


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "whole"])
@WIRE
def test_a_client_that_leaves_while_it_waits_ends_its_request(rig: Rig, wire: Wire, streams: bool) -> None:
    generated = sum_of_tokens(rig)
    with held(rig) as go_on:
        with httpx2.stream("POST", rig.url + wire.path, json={**wire.body, "stream": streams}, timeout=60) as answer:
            next(answer.iter_raw())
        until(lambda: not rig.house.busy)
        go_on.set()
    until(lambda: is_quiet(rig))
    assert sum_of_tokens(rig) == generated


@WIRE
def test_what_fails_after_the_headers_is_the_last_frame(rig: Rig, wire: Wire) -> None:
    long = "x" * 600
    body = {key: long if key in ("prompt", "input") else value for key, value in wire.body.items()}
    if "messages" in body:
        body["messages"] = [{"role": "user", "content": long}]
    answer = httpx2.post(rig.url + wire.path, json={**body, "stream": True}, timeout=60)
    assert answer.status_code == 200  # without grace, headers come before a prompt's length is known
    (*_, frame) = [line for line in answer.text.split("\n") if line.startswith(("data: ", "{"))]
    last = json.loads(frame.removeprefix("data: "))
    error = last.get("response", last)["error"]
    assert "tokens" in (error if wire.path.startswith("/api/") else error["message"])


def sum_of_tokens(rig: Rig) -> float:
    """Tokens that were ever generated, as the metrics have it."""
    lines = httpx2.get(rig.url + "/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("pyllm:generation_tokens_total"))
