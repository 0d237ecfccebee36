"""Ollama's client where a model's behaviour counts: tools, schemas, gaps to fill, a client that leaves; and keys."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import ollama
import pytest
from gguf import GGUFReader, GGUFWriter

import pyllm
from pyllm import hub
from pyllm.hub.modelfile import parse
from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf

EXACT = {"temperature": 0, "num_predict": 60}


def get_current_weather(city: str) -> str:
    """Get the current weather.

    Args:
      city: Name of the city
    """
    return f"In {city} it is 21 degrees and sunny."


@pytest.fixture(scope="module")
def rig(model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYLLM_DATA", str(tmp_path_factory.mktemp("data")))
        with running(model_path("qwen-0.5b"), n_ctx=2048, load={"backend": "cpu"}, aliases=(("qwen", ""),)) as rig:
            yield rig


@pytest.fixture
def client(rig: Rig) -> ollama.Client:
    return ollama.Client(rig.url)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_is_read(client: ollama.Client, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris? Use the tool."}]
    answer = client.chat("qwen", messages, tools=[get_current_weather], options=EXACT, stream=stream)
    parts = list(answer) if stream else [answer]
    (call,) = (call for part in parts for call in part.message.tool_calls or ())  # type: ignore[union-attr]
    assert call.function.name == "get_current_weather"
    assert call.function.arguments == {"city": "Paris"}
    assert parts[-1].done_reason == "stop"  # type: ignore[union-attr]
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_name": call.function.name, "content": get_current_weather("Paris")},
    ]
    final = client.chat("qwen", messages, options=EXACT)
    assert "21" in (final.message.content or "")


def test_a_schema(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    prompt = "Ann is 30 years old. Answer in JSON."
    for found in (
        client.chat("qwen", [{"role": "user", "content": prompt}], format=schema, options=EXACT).message.content,
        client.generate("qwen", prompt, format=schema, options=EXACT).response,
    ):
        assert json.loads(found or "") == {"name": "Ann", "age": 30}


@pytest.mark.parametrize("raw", [False, True])
def test_a_gap_is_filled(client: ollama.Client, raw: bool) -> None:
    options = {"temperature": 0, "num_predict": 16, "stop": ["\n"]}
    found = client.generate("qwen", "def add(a, b):\n    return ", suffix="\n", raw=raw, options=options)
    assert (found.response or "").strip() == "a + b"
    assert found.context is None


def test_a_conversation_goes_on_by_its_context(client: ollama.Client) -> None:
    first = client.generate("qwen", "My name is Ann. Say only: ok", options=EXACT)
    second = client.generate("qwen", "What is my name? Answer in one word.", context=first.context, options=EXACT)
    assert "Ann" in (second.response or "")


def test_what_the_model_can_is_shown(client: ollama.Client, model_path: Callable[[str], Path]) -> None:
    shown = client.show("qwen")
    assert set(shown.capabilities or ()) == {"completion", "tools", "insert"}
    assert shown.details is not None
    n = sum(int(tensor.n_elements) for tensor in GGUFReader(model_path("qwen-0.5b")).tensors)
    assert shown.details.parameter_size == f"{n / 1e6:.2f}M"
    assert (shown.details.family, shown.details.quantization_level) == ("qwen2", "Q4_K_M")


def test_a_template_of_go_s_is_as_the_model_s_own(client: ollama.Client) -> None:
    template = (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ range .Messages }}"
        '{{ if ne .Role "system" }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
        "<|im_start|>assistant\n"
    )
    client.create("templated", from_="qwen", template=template, system="Answer in one word.")
    question = {"role": "user", "content": "What is the capital of France?"}
    own = client.chat("qwen", [{"role": "system", "content": "Answer in one word."}, question], options=EXACT)
    made = client.chat("templated", [question], options=EXACT)
    assert made.message.content == own.message.content
    assert made.prompt_eval_count == own.prompt_eval_count
    client.delete("templated")


def test_a_client_that_leaves_ends_its_request(rig: Rig) -> None:
    async def leave() -> None:
        async with ollama.AsyncClient(rig.url) as client:
            stream = await client.generate("qwen", "Count to a thousand.", stream=True, options={"num_predict": 2000})
            async for _ in stream:
                break

    asyncio.run(leave())
    (served,) = rig.house.models.loaded
    until(lambda: not rig.house.busy and not served.n_users)
    until(lambda: served.llm.llm.engine.load().n_running == 0)


# Tiny models


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLLM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_a_model_without_a_chat_template(tmp_path: Path, data: Path) -> None:
    path = write_tiny_gguf(tmp_path / "base.gguf", template=None)
    with pyllm.load(path, backend="reference", kv_dtype="f32") as llm:
        expected = llm.complete("Hi", temperature=0, max_tokens=4).text
    with running(path) as rig:
        client = ollama.Client(rig.url)
        options = {"temperature": 0, "num_predict": 4}
        assert client.generate("base", "Hi", options=options).response == expected
        assert client.chat("base", [{"role": "user", "content": "Hi"}], options=options).message.content == expected


THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}"
    "<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)


def test_thinking_apart_on_and_off(tmp_path: Path, data: Path) -> None:
    path = write_tiny_gguf(tmp_path / "thinker.gguf", template=THINKING)
    options = {"temperature": 0, "num_predict": 8}
    hi = [{"role": "user", "content": "Hi"}]
    with pyllm.load(path, backend="reference", kv_dtype="f32") as llm:
        thoughts = llm.chat(hi, temperature=0, max_tokens=8).reasoning
        answer = llm.chat(hi, temperature=0, max_tokens=8, variables={"enable_thinking": False}).text
    assert thoughts
    with running(path) as rig:
        client = ollama.Client(rig.url)
        assert client.show("thinker").capabilities == ["completion", "thinking"]
        for think in (None, True, "high"):
            found = client.chat("thinker", hi, think=think, options=options)  # type: ignore[arg-type]
            assert (found.message.thinking, found.message.content) == (thoughts, "")
        found = client.chat("thinker", hi, think=False, options=options)
        assert (found.message.thinking, found.message.content) == (None, answer)
        parts = list(client.generate("thinker", "Hi", think=True, options=options, stream=True))
        assert "".join(part.thinking or "" for part in parts) == thoughts
        assert not any(part.response for part in parts)
        # Thoughts of a message are the template's to show.
        past = [*hi, {"role": "assistant", "content": "A", "thinking": "T" * 40}, *hi]
        shown = client.chat("thinker", past, options=options).prompt_eval_count
        plain = client.chat("thinker", [*hi, {"role": "assistant", "content": "A"}, *hi], options=options)
        assert shown == (plain.prompt_eval_count or 0) + len("<think>\n\n</think>\n\n") + 40


def write_adapter(path: Path) -> Path:
    """A LoRA adapter of the tiny model."""
    random = np.random.default_rng(7)
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for half, shape in (("lora_a", (4, 32)), ("lora_b", (32, 4))):
        writer.add_tensor(f"blk.0.attn_q.weight.{half}", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_that_was_sent(tmp_path: Path, data: Path) -> None:
    path, adapter = write_tiny_gguf(tmp_path / "tiny.gguf"), write_adapter(tmp_path / "adapter.gguf")
    hi, options = [{"role": "user", "content": "Hi"}], {"temperature": 0, "num_predict": 8}
    with pyllm.load(path, backend="reference", kv_dtype="f32", adapters=[adapter]) as llm:
        expected = llm.chat(hi, temperature=0, max_tokens=8).text
    with running(path) as rig:
        client = ollama.Client(rig.url)
        plain = client.chat("tiny", hi, options=options).message.content
        digest = client.create_blob(adapter)
        client.create("adapted", from_="tiny", adapters={"adapter.gguf": digest})
        assert client.chat("adapted", hi, options=options).message.content == expected != plain
        assert client.chat("tiny", hi, options=options).message.content == plain
        assert len(rig.house.models.loaded) == 2
        with pytest.raises(ollama.ResponseError, match="is an adapter"):
            client.create("wrong", files={"a.gguf": digest})
        client.copy("adapted", "again")
        client.delete("adapted")
        assert client.chat("again", hi, options=options).message.content == expected
    # The same, with a Modelfile and no server.
    file = f"FROM {path}\nADAPTER {adapter}\nPARAMETER temperature 0\nPARAMETER num_predict 8"
    hub.create("local", parse(file), tmp_path)
    with pyllm.load("local", backend="reference", kv_dtype="f32") as llm:
        assert llm.chat(hi).text == expected


def test_what_changes_models_needs_the_key(tmp_path: Path, data: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with running(path, api_keys=("secret",)) as rig:
        digest = "sha256:" + hashlib.sha256(b"").hexdigest()
        for method, route in (
            ("POST", "/api/pull"),
            ("POST", "/api/push"),
            ("POST", "/api/create"),
            ("POST", "/api/copy"),
            ("DELETE", "/api/delete"),
            ("HEAD", f"/api/blobs/{digest}"),
            ("POST", f"/api/blobs/{digest}"),
            ("POST", "/api/chat"),
            ("GET", "/api/tags"),
        ):
            assert httpx2.request(method, rig.url + route).status_code == 401, route
        client = ollama.Client(rig.url, headers={"Authorization": "Bearer secret"})
        assert client.create("mine", from_="tiny").status == "success"
        assert client.delete("mine").status == "success"
        assert not list((data / "named").iterdir())


def test_a_file_that_stops_coming_leaves_nothing(tmp_path: Path, data: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    digest = "sha256:" + "0" * 64
    with running(path, body_timeout=0.2) as rig:
        connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=60)
        connection.putrequest("POST", f"/api/blobs/{digest}")
        connection.putheader("content-length", "1000")
        connection.endheaders(b"a beginning")
        assert connection.getresponse().status == 408
        connection.close()
        connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=60)
        connection.putrequest("POST", f"/api/blobs/{digest}")
        connection.putheader("content-length", "1000")
        connection.endheaders(b"a beginning")
        connection.close()
        until(lambda: not rig.house.busy and not list((data / "blobs").iterdir()))


def test_files_that_no_model_has_go_after_a_day(tmp_path: Path, data: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    texts = [b"old", b"older", b"new"]
    hashes = [hashlib.sha256(text).hexdigest() for text in texts]

    def aged(number: int) -> Path:
        file = data / "blobs" / f"sha256-{hashes[number]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(texts[number])
        os.utime(file, (0, 0))
        return file

    first = aged(0)
    with running(path) as rig:
        until(lambda: not first.exists())
        second = aged(1)
        new = httpx2.post(f"{rig.url}/api/blobs/sha256:{hashes[2]}", content=texts[2])
        assert new.status_code == 201
        assert not second.exists()
    with running(path) as rig:
        assert httpx2.head(f"{rig.url}/api/blobs/sha256:{hashes[2]}").status_code == 200


def test_a_model_is_deleted_while_it_is_used(tmp_path: Path, data: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with running(path) as rig:
        client = ollama.Client(rig.url)
        client.create("mine", from_="tiny")
        stream = client.chat("mine", [{"role": "user", "content": "Hi"}], stream=True, options={"num_predict": 40})
        next(stream)
        client.delete("mine")
        assert [part.done for part in stream][-1]
