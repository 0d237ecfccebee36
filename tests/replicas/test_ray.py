"""Replicas on Ray: answers are a single server's, a lost one costs its own requests, prompts find their prefixes."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import ollama
import openai
import pytest
from ray_rig import Deploy, Rig, engines, slow_until

from server_rig import running
from tiny_gguf import write_tiny_gguf

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LONG = 3000
"""Tokens of an answer that is still written when the test does something."""


def chat_of(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def openai_at(url: str, retries: int = 0, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=retries, timeout=120)


def answers(url: str) -> Iterator[Any]:
    """What the clients of all APIs get."""
    for text in ("Hello", "What is a river? " * 8):
        client = openai_at(url)
        yield client.chat.completions.create(**chat_of(text, max_tokens=12)).choices[0].message.content
        chunks = list(client.chat.completions.create(**chat_of(text, max_tokens=12, stream=True)))
        yield "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1].choices[0].finish_reason
        yield client.responses.create(model="tiny", input=text, temperature=0, max_output_tokens=16).output_text
        events = client.responses.create(model="tiny", input=text, temperature=0, max_output_tokens=16, stream=True)
        yield [event.type for event in events]
        message = [{"role": "user", "content": text}]
        cold = {"temperature": 0}
        claude = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
        with claude.messages.stream(model="tiny", max_tokens=12, messages=message, extra_body=cold) as stream:
            yield stream.get_final_text(), stream.get_final_message().usage.output_tokens
        lama = ollama.Client(url)
        options = {"temperature": 0, "num_predict": 12}
        yield [part.message.content for part in lama.chat("tiny", message, options=options, stream=True)][-1:]
        yield lama.generate("tiny", text, options=options).response
        yield httpx2.post(f"{url}/completion", json={"prompt": text, "n_predict": 12, "temperature": 0}).json()[
            "content"
        ]


def test_answers_are_those_of_a_single_server(deployed: Deploy, tiny: Path) -> None:
    with running(tiny) as alone:
        expected = list(answers(alone.url))
    with deployed(tiny, replicas=2) as rig:
        assert list(answers(rig.url)) == expected
        assert rig.get("/ready").json() == {"status": "ready"}
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
            openai_at(rig.url).chat.completions.create(model="gpt-9", messages=[])
        assert rig.post("/v1/chat/completions", **chat_of("a b" * 4000)).json()["error"]["code"] == (
            "context_length_exceeded"
        )
        assert httpx2.post(rig.url + "/v1/completions", content=b"{").json()["error"]["code"] == "invalid_json"
        assert [m.id for m in openai_at(rig.url).models.list()] == ["tiny"]
        assert sum(rig.by_replica("prompt_tokens_total").values()) > 0
        assert rig.post("/api/create", model="other").status_code == 403
        assert httpx2.get(rig.url + "/v1/models", headers={"host": "cluster.example"}).status_code == 403


class Reader(threading.Thread):
    """Reads a streamed answer."""

    def __init__(self, url: str, text: str) -> None:
        super().__init__(daemon=True)
        self._client = openai_at(url)
        self._text = text
        self.begun = threading.Event()
        self.error: openai.APIError | None = None
        self.reason: str | None = None
        self.start()

    def run(self) -> None:
        asked = chat_of(self._text, max_tokens=LONG, stream=True, extra_body={"ignore_eos": True})
        try:
            for chunk in self._client.chat.completions.create(**asked):
                self.begun.set()
                self.reason = chunk.choices[0].finish_reason
        except openai.APIError as error:
            self.error = error
        self.begun.set()


def test_a_killed_replica_costs_its_own_requests_and_is_replaced(deployed: Deploy, tiny: Path) -> None:
    with deployed(tiny, replicas=2, options={"n_ctx": 4096}) as rig:
        readers = [Reader(rig.url, f"{n} and more") for n in range(8)]
        for reader in readers:
            assert reader.begun.wait(120)
        assert sorted(rig.by_replica("num_requests_running").values()) == [4, 4]
        before = engines()
        os.kill(before[0], signal.SIGKILL)
        # Those that come now are answered by the other one, or by the one that replaces it.
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda n: rig.post("/v1/chat/completions", **chat_of(f"{n}", max_tokens=4)), range(8))
            assert [answer.status_code for answer in found] == [200] * 8
        for reader in readers:
            reader.join(300)
        lost = [reader for reader in readers if reader.error is not None]
        assert len(lost) == 4
        for reader in lost:
            assert isinstance(reader.error, openai.APIError)
            assert reader.error.code == "replica_lost"
        assert [reader.reason for reader in readers if reader.error is None] == ["length"] * 4
        slow_until(lambda: rig.n_replicas == 2 and len(set(engines()) - set(before)) == 1)
        slow_until(lambda: len(rig.by_replica("num_requests_running")) == 2)
        (failed,) = [v for labels, v in rig.samples("request_failure_total") if labels["code"] == "replica_lost"]
        assert failed == 4


def whole(url: str, retries: int) -> Any:
    client = openai_at(url, retries)
    return client.chat.completions.create(**chat_of("Hello", max_tokens=1500, extra_body={"ignore_eos": True}))


def test_what_is_asked_again_is_answered_by_the_replica_that_comes(deployed: Deploy, tiny: Path) -> None:
    """A whole answer, of one replica: the official client asks again by itself, and is kept waiting."""
    with deployed(tiny, options={"n_ctx": 4096}) as rig, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(whole, rig.url, retries) for retries in (0, 2)]
        slow_until(lambda: rig.n_running == 2)
        (process,) = engines()
        os.kill(process, signal.SIGKILL)
        error = asked[0].exception(timeout=120)
        assert isinstance(error, openai.InternalServerError)
        assert (error.status_code, error.code) == (503, "replica_lost")
        assert asked[1].result(timeout=300).choices[0].finish_reason == "length"


ERRORS = {
    "/v1/messages": (b"event: error\n", b'"overloaded_error"'),
    "/v1/responses": (b"event: error\n", b'"code":"replica_lost"'),
    "/api/chat": (b"", b'"error":"the replica'),
    "/completion": (b"data: ", b'"code":503'),
}
"""How each API's stream begins its last frame, and what is in that."""


def test_each_api_says_in_its_own_way_that_a_replica_was_lost(deployed: Deploy, tiny: Path) -> None:
    message = [{"role": "user", "content": "Hello"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/messages": {"messages": message, "max_tokens": LONG},
        "/v1/responses": {"input": "Hello", "max_output_tokens": LONG},
        "/api/chat": {"messages": message, "options": {"num_predict": LONG}},
        "/completion": {"prompt": "Hello", "n_predict": LONG, "ignore_eos": True},
    }
    ended: dict[str, bytes] = {}

    def read(path: str) -> None:
        body = {"model": "tiny", "temperature": 0, "stream": True, **bodies[path]}
        with httpx2.stream("POST", rig.url + path, json=body, timeout=120) as answer:
            ended[path] = b"".join(answer.iter_bytes())

    with deployed(tiny, options={"n_ctx": 4096}) as rig, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(read, path) for path in bodies]
        slow_until(lambda: rig.n_running == 4)
        (process,) = engines()
        os.kill(process, signal.SIGKILL)
        for task in asked:
            task.result(timeout=120)
        for path, (begin, inside) in ERRORS.items():
            last = ended[path].rstrip(b"\n").rpartition(b"\n\n" if begin else b"\n")[2]
            assert last.startswith(begin), (path, last)
            assert inside in last, (path, last)


def test_a_client_that_leaves_ends_its_request(deployed: Deploy, tiny: Path) -> None:
    with deployed(tiny, options={"n_ctx": 4096}) as rig:
        body = chat_of("Hello", max_tokens=LONG, stream=True, ignore_eos=True)
        with httpx2.stream("POST", rig.url + "/v1/chat/completions", json=body, timeout=120) as stream:
            lines = stream.iter_lines()  # kept, for the connection ends with it
            next(lines)
            slow_until(lambda: rig.n_running == 1)
        slow_until(lambda: rig.n_running == 0, 60)
        generated = sum(rig.by_replica("generation_tokens_total").values())
        assert generated < LONG


def conversations(rig: Rig, n: int, turns: int) -> float:
    """Hold conversations, in turn; the share of their prompts' tokens that was in a cache."""
    histories: list[list[dict[str, str]]] = [
        [{"role": "system", "content": f"{number}: " + "be brief and kind. " * 20}] for number in range(n)
    ]
    order = random.Random(0)
    for turn in range(turns):
        for history in order.sample(histories, n):
            history.append({"role": "user", "content": f"{turn}. " + "And then what? " * 5})
            body = {"messages": history, "max_tokens": 8, "temperature": 0}
            found = rig.post("/v1/chat/completions", **body).json()["choices"][0]["message"]
            history.append({"role": "assistant", "content": found["content"]})
    hits = sum(rig.by_replica("prefix_cache_hits_total").values())
    return hits / sum(rig.by_replica("prefix_cache_queries_total").values())


def test_prompts_are_sent_where_their_beginning_was_read(deployed: Deploy, tiny: Path) -> None:
    from routers import RandomRouter

    options = {"n_ctx": 2048}
    with deployed(tiny, replicas=2, options=options) as rig:
        by_prefix = conversations(rig, 8, 6)
        assert len([n for n in rig.by_replica("prompt_tokens_total").values() if n]) == 2
    with deployed(tiny, replicas=2, options=options, router=RandomRouter) as rig:
        at_random = conversations(rig, 8, 6)
    print(f"\nprefix cache hits: {by_prefix:.0%} by prefix, {at_random:.0%} at random")
    # Of six turns only the first has nothing to find.
    assert by_prefix > 0.7
    assert by_prefix > 1.15 * at_random


def test_each_model_stays_where_it_is_loaded(deployed: Deploy, tiny: Path, tmp_path: Path) -> None:
    """Replicas with room for one model each."""
    other = write_tiny_gguf(tmp_path / "other.gguf", name="other")
    with deployed(tiny, other, replicas=2, options={"max_loaded": 1, "aliases": (("o", "other"),)}) as rig:

        def where(model: str) -> str:
            before = rig.by_replica("request_success_total")
            assert rig.post("/v1/chat/completions", **chat_of("Hello", max_tokens=2) | {"model": model}).is_success
            ((replica, _),) = (rig.by_replica("request_success_total") - before).items()
            return replica

        homes = {model: where(model) for model in ("other", "tiny")}
        assert homes["other"] != homes["tiny"]
        for model in ("other", "tiny", "tiny", "other", "o", "tiny"):
            assert where(model) == homes["other" if model == "o" else model]
        held = {(labels["replica"], labels["model_name"]) for labels, _ in rig.samples("model_memory_bytes")}
        assert held == {(replica, model) for model, replica in homes.items()}


def test_more_requests_get_more_replicas(deployed: Deploy, tiny: Path) -> None:
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 1,
        "look_back_period_s": 1,
    }
    with deployed(tiny, autoscaling=scaling, options={"n_ctx": 4096}) as rig:
        assert rig.n_replicas == 1
        readers = [Reader(rig.url, str(n)) for n in range(6)]
        slow_until(lambda: rig.n_replicas == 2)
        for reader in readers:
            reader.join(300)
        assert [(reader.error, reader.reason) for reader in readers] == [(None, "length")] * 6
        slow_until(lambda: rig.n_replicas == 1)


def test_a_key_is_asked_for_at_the_front(deployed: Deploy, tiny: Path) -> None:
    with deployed(tiny, options={"api_keys": ("sesame",)}) as rig:
        assert rig.get("/health").status_code == 200
        assert rig.get("/metrics").status_code == 401
        with pytest.raises(openai.AuthenticationError):
            openai_at(rig.url, key="other").models.list()
        client = openai_at(rig.url, key="sesame")
        assert client.chat.completions.create(**chat_of("Hello", max_tokens=2)).choices
