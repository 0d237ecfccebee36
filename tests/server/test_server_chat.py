"""A chat over HTTP: whole, streamed, refused, left."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest

from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running(write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")) as rig:
        yield rig


def post(rig: Rig, path: str, **body: object) -> httpx2.Response:
    return httpx2.post(rig.url + path, json=body, timeout=60)


def test_streamed_is_as_whole(rig: Rig) -> None:
    whole = post(rig, "/v1/chat/completions", **CHAT).json()["choices"][0]
    lines = post(rig, "/v1/chat/completions", **CHAT, stream=True).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == whole["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused(rig: Rig, stream: bool) -> None:
    answer = post(rig, "/v1/chat/completions", messages=[{"role": "user", "content": "a b" * 400}], stream=stream)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["message"].endswith("shorten it, or start the server with a larger --ctx")


def test_an_unknown_model_is_404_and_names_those_that_there_are(rig: Rig) -> None:
    answer = post(rig, "/v1/chat/completions", **CHAT, model="gpt-9")
    assert answer.status_code == 404
    assert "tiny" in answer.json()["error"]["message"]


def test_a_client_that_leaves_ends_its_request(rig: Rig) -> None:
    with httpx2.stream("POST", rig.url + "/v1/chat/completions", json={**CHAT, "max_tokens": 400, "stream": True}) as s:
        next(s.iter_lines())
    (served,) = rig.house.models.loaded
    until(lambda: not rig.house.busy and not served.n_users)
    served.llm.llm.engine.check()
    assert served.llm.llm.engine.load().n_running == 0
