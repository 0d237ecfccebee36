"""What Anthropic's client hears of refusals and failures; keys, pages, and clients that leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anthropic
import httpx2
import pytest
from anthropic_told import TEMPLATE, USER, WEATHER, saying, telling, text_of, told

from pyllm.errors import BackendError
from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with telling(tmp_path_factory.mktemp("models")) as rig:
        yield rig


@pytest.fixture
def client(rig: Rig) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=rig.url, api_key="any", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    yield
    told.clear()


def refused(client: anthropic.Anthropic, kind: type[anthropic.APIStatusError], **fields: Any) -> dict[str, Any]:
    with pytest.raises(kind) as caught:
        client.messages.create(**{**saying("x"), **fields})
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["request_id"] == caught.value.request_id is not None
    error: dict[str, Any] = body["error"]
    return error


def test_errors(client: anthropic.Anthropic) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    error = refused(client, anthropic.BadRequestError, messages=[{"role": "user", "content": [image]}])
    assert error["type"] == "invalid_request_error"
    assert "messages[0].content[0] is of type image" in error["message"]
    error = refused(client, anthropic.NotFoundError, model="claude-9")
    assert error["type"] == "not_found_error"
    assert "tiny" in error["message"]
    error = refused(client, anthropic.BadRequestError, messages=[{"role": "user", "content": "x" * 2000}])
    assert error["message"] == "prompt is too long: 2023 tokens > 1024 maximum"
    error = refused(client, anthropic.BadRequestError, tools=[WEATHER], tool_choice={"type": "tool", "name": "other"})
    assert "tool_choice.name" in error["message"]
    error = refused(client, anthropic.BadRequestError, thinking={"type": "much"})
    assert "thinking.type" in error["message"]
    error = refused(client, anthropic.BadRequestError, extra_body={"temperature": "hot"})
    assert "temperature" in error["message"]


def test_a_stream_is_refused_with_a_status(client: anthropic.Anthropic) -> None:
    with (
        pytest.raises(anthropic.BadRequestError, match="prompt is too long"),
        client.messages.stream(**saying("x", messages=[{"role": "user", "content": "x" * 2000}])),
    ):
        pass


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/messages"), ("POST", "/v1/messages/batches")])
def test_routes_that_are_not_there(rig: Rig, method: str, path: str) -> None:
    answer = httpx2.request(method, rig.url + path)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"
    assert answer.json()["request_id"] == answer.headers["request-id"]


def test_a_stream_that_fails_ends_with_an_error(rig: Rig, client: anthropic.Anthropic) -> None:
    executable = rig.house.models.loaded[0].llm.llm.engine.executable
    with (
        patch.object(executable, "run_stage", side_effect=BackendError("the device is gone")),
        client.messages.stream(**saying("Yes")) as stream,
    ):
        assert next(iter(stream)).type == "message_start"  # the headers said 200
        with pytest.raises(anthropic.APIStatusError) as caught:
            stream.until_done()
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"] == {"type": "api_error", "message": "the device is gone"}
    assert body["request_id"] == caught.value.request_id is not None
    assert text_of(client.messages.create(**saying("Yes"))) == "Yes"


def test_max_tokens_is_required(rig: Rig) -> None:
    answer = httpx2.post(rig.url + "/v1/messages", json={"model": "tiny", "messages": USER})
    assert answer.status_code == 400
    assert answer.json()["error"] == {"type": "invalid_request_error", "message": "max_tokens is missing"}


def test_keys(tmp_path: Path) -> None:
    with running(write_tiny_gguf(tmp_path / "tiny.gguf", TEMPLATE), api_keys=("right",)) as rig:
        for make in (
            lambda key: anthropic.Anthropic(base_url=rig.url, api_key=key, max_retries=0),
            lambda key: anthropic.Anthropic(base_url=rig.url, auth_token=key, max_retries=0),
        ):
            with make("right") as client:
                assert client.messages.create(**saying("Yes")).stop_reason == "end_turn"
            with make("wrong") as client:
                error = refused(client, anthropic.AuthenticationError)
                assert error["type"] == "authentication_error"


def test_a_client_that_leaves_ends_its_request(rig: Rig, client: anthropic.Anthropic) -> None:
    with client.messages.stream(**{**saying("y" * 900), "max_tokens": 900}) as stream:
        next(iter(stream.text_stream))
    (served,) = rig.house.models.loaded
    until(lambda: not rig.house.busy and not served.n_users and served.llm.llm.engine.load().n_running == 0)


def test_a_page_may_call_with_the_clients_headers(tmp_path: Path) -> None:
    with running(write_tiny_gguf(tmp_path / "tiny.gguf", TEMPLATE), origins=("https://a.example",)) as rig:
        wanted = "anthropic-dangerous-direct-browser-access,anthropic-version,x-api-key,x-stainless-os"
        headers = {"origin": "https://a.example", "access-control-request-headers": wanted}
        allowed = httpx2.options(rig.url + "/v1/messages", headers=headers).headers
        assert allowed["access-control-allow-headers"] == wanted
        assert allowed["access-control-allow-origin"] == "https://a.example"
        refused = httpx2.options(rig.url + "/v1/messages", headers={**headers, "origin": "https://b.example"})
        assert refused.status_code == 403
        assert "access-control-allow-headers" not in refused.headers
