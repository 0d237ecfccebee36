"""What is remembered of prompts' beginnings, and what a front does by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

pytest.importorskip("ray.serve")

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from pyllm.config.serving import ServeOptions
from pyllm.ray.front import Front
from pyllm.ray.prefixes import BLOCK, Prefixes, blocks_of
from pyllm.ray.sent import Head, Sent

pytestmark = pytest.mark.ray

SYSTEM = {"role": "system", "content": "You are brief. " * 40}


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text} for text in texts]
    return {"model": "m", "messages": [SYSTEM, *messages], **more}


def n_common(a: dict[str, Any], b: dict[str, Any]) -> int:
    """The first blocks that two requests have in common; all others differ."""
    pairs = list(zip(blocks_of(a), blocks_of(b), strict=False))
    n = next((n for n, (x, y) in enumerate(pairs) if x != y), len(pairs))
    assert all(x != y for x, y in pairs[n:])
    return n


def test_a_conversation_begins_as_its_earlier_turns() -> None:
    turns = ["And then? " * 60] * 3
    assert n_common(chat(turns[0]), chat(*turns)) == len(blocks_of(chat(turns[0])))


def test_prompts_have_the_blocks_in_common_that_they_share() -> None:
    shared = len('"m"' + '[{"role":"system","content":"') + len(SYSTEM["content"])
    assert n_common(chat("x" * 500), chat("y" * 500)) in (shared // BLOCK, shared // BLOCK + 1)
    assert n_common(chat("x"), chat("x", model="n")) == 0
    assert n_common(chat("x"), chat("x", tools=[{"name": "t" * 200}])) == 0
    assert blocks_of(chat("x")) == blocks_of(chat("x", temperature=0.5, stream=True))
    assert blocks_of({"prompt": "short"}) == ()


def test_other_apis_have_their_own_places_for_the_beginning() -> None:
    long = "word " * 100
    for a, b in (
        ({"system": long, "messages": [1]}, {"messages": [1], "system": long, "max_tokens": 3}),
        ({"instructions": long, "input": "x"}, {"input": "x", "instructions": long}),
        ({"prompt": list(range(200))}, {"prompt": list(range(200)), "n": 1}),
    ):
        assert blocks_of(a) == blocks_of(b) != ()


def test_a_header_that_changes_with_each_request_does_not_count() -> None:
    def claude(number: int) -> dict[str, Any]:
        header = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={number};"}
        return {"system": [header, {"type": "text", "text": "You are brief. " * 20}], "messages": []}

    assert blocks_of(claude(1)) == blocks_of(claude(2)) != ()


def test_the_blocks_of_a_prompt_are_limited() -> None:
    assert len(blocks_of({"prompt": "x" * 10_000_000})) == 512


def test_what_a_replica_has_read_is_found_again() -> None:
    prefixes, first, longer = Prefixes(), blocks_of(chat("x" * 200)), blocks_of(chat("x" * 200, "y" * 400))
    prefixes.note("a", first)
    assert (prefixes.n_known("a", longer), prefixes.n_known("b", longer)) == (len(first), 0)
    prefixes.note("b", longer)
    assert prefixes.n_known("b", longer) == prefixes.n_read("b") == len(longer)
    prefixes.keep({"b"})
    assert (prefixes.n_known("a", longer), prefixes.n_known("b", longer)) == (0, len(longer))


def test_what_was_used_longest_ago_is_forgotten_from_its_end() -> None:
    blocks = [bytes([n]) for n in range(8)]
    prefixes = Prefixes(most=6)
    prefixes.note("a", tuple(blocks[:4]))
    prefixes.note("a", tuple(blocks[4:]))
    assert prefixes.n_read("a") == 6
    assert prefixes.n_known("a", tuple(blocks[:4])) == 2
    assert prefixes.n_known("a", tuple(blocks[4:])) == 4


class Handle:
    """Stands for Ray's handle of the replicas: answers as it is told."""

    def __init__(self, *pieces: Head | bytes | Exception) -> None:
        self.pieces = pieces
        self.sent: list[Sent] = []
        self.ended = 0

    @property
    def answer(self) -> Handle:
        return self

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, sent: Sent) -> Handle:
        self.sent.append(sent)
        return self

    def cancel(self) -> None:
        self.ended += 1

    async def __aiter__(self) -> AsyncIterator[Head | bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


def ask(handle: Handle, path: str, body: Any = None, caller: str = "127.0.0.1", **options: Any) -> httpx2.Response:
    """A request to a front with these replicas."""
    front = Front(ServeOptions(**options), handle)
    app = front.__serve_build_asgi_app__()

    async def asked() -> httpx2.Response:
        transport = httpx2.ASGITransport(app, client=(caller, 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            if body is None:
                return await client.get(path, headers={"authorization": "Bearer key"})
            return await client.post(path, json=body, headers={"authorization": "Bearer key", "x-mine": "kept"})

    return asyncio.run(asked())


JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


def test_a_response_is_passed_on() -> None:
    handle = Handle(Head(201, [*JSON, (b"x-own", b"1")], b'{"a":'), b"1}")
    found = ask(handle, "/v1/chat/completions", {"model": " Tiny", "messages": []}, api_keys=("key",))
    assert (found.status_code, found.json(), found.headers["x-own"]) == (201, {"a": 1}, "1")
    (sent,) = handle.sent
    assert (sent.method, sent.path, sent.model) == ("POST", "/v1/chat/completions", "tiny")
    assert found.headers["x-request-id"] == sent.id
    names = [name for name, _ in sent.headers]
    assert b"x-mine" in names
    assert b"authorization" not in names
    assert handle.ended == 1


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/chat/completions", {"messages": []}, 'data: {"error":{"message":"the replica that'),
        ("/v1/responses", {"input": "a"}, 'event: error\ndata: {"type":"error","error":{"message":"the replica that'),
        ("/v1/messages", {"messages": []}, 'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"'),
    ],
)
def test_a_stream_that_breaks_ends_with_an_event(path: str, body: dict[str, Any], last: str) -> None:
    found = ask(Handle(Head(200, EVENTS, b""), b"data: 1\n\n", RayActorError()), path, body)
    assert found.status_code == 200
    assert found.text.startswith("data: 1\n\n" + last)


def test_what_fails_before_its_beginning_has_a_status() -> None:
    for error, status, code in (
        (RayActorError(), 503, "replica_lost"),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), 429, "queue_full"),
    ):
        found = ask(Handle(error), "/v1/completions", {"prompt": "a"})
        assert (found.status_code, found.json()["error"]["code"]) == (status, code)
        assert found.headers["retry-after"] == "1"


def test_callers_are_checked_before_anything_is_passed_on() -> None:
    handle = Handle()
    assert ask(handle, "/v1/models", api_keys=("other",)).status_code == 401
    assert ask(handle, "/v1/models", caller="192.0.2.7").json()["error"]["code"] == "no_key"
    assert ask(handle, "/metrics", caller="192.0.2.7").status_code == 403
    assert ask(handle, "/api/create", {"model": "m"}).status_code == 403
    assert ask(handle, "/nowhere").status_code == 404
    assert not handle.sent
    listed = Head(200, JSON, b"[]")
    assert ask(Handle(listed), "/v1/models", caller="192.0.2.7", insecure=True).json() == []
    assert ask(Handle(listed), "/v1/models", caller="192.0.2.7", api_keys=("key",)).json() == []
