"""OpenAI's client raises its own classes of errors: what a server answers has the status and the form for it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from server_rig import running, until
from tiny_gguf import write_tiny_gguf

HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


def test_a_wrong_key_and_a_wrong_model(path: Path) -> None:
    with running(path, api_keys=("right",)) as rig:
        wrong = openai.OpenAI(base_url=rig.url + "/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as caught:
            wrong.models.list()
        assert caught.value.type == "authentication_error"
        right = openai.OpenAI(base_url=rig.url + "/v1", api_key="right", max_retries=0)
        assert [model.id for model in right.models.list()] == ["tiny"]
        with pytest.raises(openai.NotFoundError) as missing:
            right.chat.completions.create(model="gpt-9", messages=HELLO)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        assert missing.value.request_id
        assert "tiny" in missing.value.message


def test_a_full_queue_is_a_rate_limit_with_a_time_to_come_again(path: Path) -> None:
    async def ask_many(url: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
            asked = [client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2) for _ in range(8)]
            tasks = [asyncio.create_task(one) for one in asked]  # type: ignore[arg-type]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            go_on.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    go_on = threading.Event()
    with running(path, max_seqs=1, max_waiting=2) as rig:
        until(lambda: rig.house.models.loaded)
        engine = rig.house.models.loaded[0].llm.llm.engine
        held = threading.Thread(target=lambda: engine.between_steps(lambda: go_on.wait(60)))
        held.start()
        try:
            found = asyncio.run(ask_many(rig.url))
        finally:
            go_on.set()
            held.join()
    refused = [one for one in found if isinstance(one, openai.RateLimitError)]
    answered = [one for one in found if not isinstance(one, Exception)]
    assert len(refused) + len(answered) == 8
    assert refused
    assert answered
    assert int(refused[0].response.headers["retry-after"]) >= 1
    assert refused[0].code == "queue_full"


def test_what_fails_after_the_headers_is_raised_while_it_is_read(path: Path) -> None:
    with running(path, grace=0.0) as rig:
        client = openai.OpenAI(base_url=rig.url + "/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a b" * 400}], stream=True
        )
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "context_length_exceeded"
        assert not isinstance(caught.value, openai.APIStatusError)
