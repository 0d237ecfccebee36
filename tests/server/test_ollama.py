"""Ollama's own client, against a live server with a tiny model."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import ollama
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyllm
from pyllm.hub.modelfile import parse
from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf

OPTIONS = {"temperature": 0, "num_predict": 8, "num_ctx": 4096}
HI = [{"role": "user", "content": "Hi"}]
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def rig(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYLLM_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("PYLLM_MODELS", str(tmp_path_factory.mktemp("fetched")))
        with running(tiny, n_ctx=2048, max_blob=1 << 20) as rig:
            yield rig


@pytest.fixture
def client(rig: Rig) -> ollama.Client:
    return ollama.Client(rig.url)


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[pyllm.LLM]:
    with pyllm.load(tiny, backend="reference", kv_dtype="f32", n_ctx=2048) as llm:
        yield llm


def post(rig: Rig, path: str, **body: object) -> httpx2.Response:
    return httpx2.post(rig.url + path, json=body, timeout=60)


def lines(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


# Chats


def test_chat(client: ollama.Client, llm: pyllm.LLM) -> None:
    expected = llm.chat(HI, temperature=0, max_tokens=8)
    found = client.chat("tiny", HI, options=OPTIONS)
    assert found.message.role == "assistant"
    assert found.message.content == expected.text
    assert (found.model, found.done, found.done_reason) == ("tiny", True, "length")
    assert (found.prompt_eval_count, found.eval_count) == (expected.usage.n_prompt, 8)
    assert all((found[name] or 0) > 0 for name in DURATIONS)
    assert found.created_at is not None
    assert datetime.now(UTC) - datetime.fromisoformat(found.created_at) < timedelta(minutes=1)


def test_a_stream_is_as_the_whole(client: ollama.Client) -> None:
    whole = client.chat("tiny:latest", HI, options=OPTIONS)
    chunks = list(client.chat("tiny", HI, options=OPTIONS, stream=True))
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole.message.content
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(chunks) > 2
    assert chunks[-1].done_reason == "length"
    assert chunks[-1].eval_count == 8
    assert all((chunks[-1][name] or 0) > 0 for name in DURATIONS)


def test_streams_are_the_default_of_the_wire(rig: Rig) -> None:
    found = lines(post(rig, "/api/chat", model="tiny", messages=HI, options=OPTIONS))
    assert [line["done"] for line in found][-2:] == [False, True]
    found = lines(post(rig, "/api/generate", model="tiny", prompt="Hi", options=OPTIONS))
    assert [line["done"] for line in found][-2:] == [False, True]


def test_the_asynchronous_client(rig: Rig, client: ollama.Client) -> None:
    async def ask() -> tuple[str, str]:
        async with ollama.AsyncClient(rig.url) as there:
            whole = await there.chat("tiny", HI, options=OPTIONS)
            parts = [part.message.content async for part in await there.chat("tiny", HI, options=OPTIONS, stream=True)]
            return whole.message.content or "", "".join(part or "" for part in parts)

    expected = client.chat("tiny", HI, options=OPTIONS).message.content
    assert asyncio.run(ask()) == (expected, expected)


def test_an_answer_that_was_begun_goes_on(client: ollama.Client, llm: pyllm.LLM) -> None:
    messages = [*HI, {"role": "assistant", "content": "Well"}]
    expected = llm.chat(messages, temperature=0, max_tokens=8, continue_final_message=True)
    assert client.chat("tiny", messages, options=OPTIONS).message.content == expected.text


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: ollama.Client, llm: pyllm.LLM, stream: bool) -> None:
    expected = llm.chat(HI, temperature=0, max_tokens=8, logprobs=2).logprobs
    assert expected is not None
    answer = client.chat("tiny", HI, options=OPTIONS, logprobs=True, top_logprobs=2, stream=stream)
    found = [one for part in (answer if stream else [answer]) for one in part.logprobs or ()]  # type: ignore[list-item]
    assert [one.token for one in found] == [one.text for one in expected]
    assert np.allclose([one.logprob for one in found], [one.logprob for one in expected], atol=1e-4)
    assert [[top.token for top in one.top_logprobs or ()] for one in found] == [
        [text for _, text, _ in one.top] for one in expected
    ]


def test_a_schema_holds_the_answer(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    found = client.chat("tiny", HI, format=schema, options={"temperature": 0, "num_predict": 400})
    assert json.loads(found.message.content or "") in ({"a": 1}, {"a": 2})


def test_options_by_ollama_s_names(client: ollama.Client, llm: pyllm.LLM) -> None:
    expected = llm.chat(HI, max_tokens=12, seed=3, temperature=1.5, top_k=7, repeat_penalty=1.3, repeat_last_n=-1)
    options = {"num_predict": 12.0, "seed": 3, "temperature": 1.5, "top_k": 7, "repeat_penalty": 1.3,
               "repeat_last_n": -1, "num_gpu": 1, "unheard_of": "x", "num_thread": None}  # fmt: skip
    assert client.chat("tiny", HI, options=options).message.content == expected.text
    text = expected.text
    stopped = client.chat("tiny", HI, options={**options, "stop": [text[3:5]]})
    assert stopped.message.content == text[: text.index(text[3:5])]
    assert stopped.done_reason == "stop"


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"top_p": 0.3}, {"top_p": 0.3}),
        ({"min_p": 0.9}, {"min_p": 0.9}),
        ({"typical_p": 0.2}, {"typical_p": 0.2}),
        ({"tfs_z": 0.3}, {"tfs_z": 0.3}),
        ({"presence_penalty": 5}, {"presence_penalty": 5}),
        ({"frequency_penalty": 5}, {"frequency_penalty": 5}),
        (
            {"mirostat": 2, "mirostat_tau": 0.5, "mirostat_eta": 0.5},
            {"mirostat": 2, "mirostat_tau": 0.5, "mirostat_eta": 0.5},
        ),
        ({"num_predict": -1, "stop": ["\x00"], "num_keep": 4}, {"max_tokens": None, "stop": "\x00"}),
    ],
)  # fmt: skip
def test_each_option(client: ollama.Client, llm: pyllm.LLM, options: dict[str, Any], same: dict[str, Any]) -> None:
    common = {"temperature": 2.0, "top_k": 0, "min_p": 0.0, "top_p": 1.0, "seed": 5}
    expected = llm.chat(HI, **{**common, "max_tokens": 24, **same}).text  # type: ignore[arg-type]
    found = client.chat("tiny", HI, options={**common, "num_predict": 24, **options})
    assert found.message.content == expected
    if "max_tokens" not in same:
        assert expected != llm.chat(HI, **common, max_tokens=24).text  # type: ignore[arg-type]


def test_silence_is_filled_with_lines_that_say_nothing(tiny: Path, client: ollama.Client) -> None:
    with running(tiny, ping_every=0.001, grace=0.0) as rig:
        for path, body in (("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "Hi"})):
            found = lines(post(rig, path, model="tiny", options=OPTIONS, **body))
            assert all(line["done"] is False for line in found[:-1])
            texts = [line["message"]["content"] if "message" in line else line["response"] for line in found]
            assert "" in texts[:-1]
            assert "".join(texts) == client.chat("tiny", HI, options=OPTIONS).message.content


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=9) | st.just("tiny"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "name", "messages", "prompt", "options", "format", "think", "keep_alive", "tools", "suffix", "system", "template",
    "context", "raw", "images", "stream", "input", "from", "files", "adapters", "parameters", "modelfile", "license",
    "source", "destination", "truncate", "dimensions", "logprobs", "top_logprobs", "verbose", "quantize",
)  # fmt: skip


@settings(max_examples=150)
@given(
    path=st.sampled_from(["chat", "generate", "embed", "embeddings", "show", "create", "copy", "pull", "push"]),
    body=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6),
)
def test_any_body_is_answered_or_refused_in_form(rig: Rig, path: str, body: dict[str, Any]) -> None:
    if path == "pull":
        body = {**body, "name": "tiny"}  # nothing is fetched
    if isinstance(destination := body.get("destination"), str):
        body = {**body, "destination": f"x{destination}"}
    model = "made" if path == "create" else "tiny"
    text = json.dumps({"model": model, **body, "options": body.get("options", {"num_predict": 2})})
    answer = httpx2.post(f"{rig.url}/api/{path}", content=text, timeout=60)
    assert answer.status_code in (200, 400, 404, 501), answer.text
    if answer.status_code != 200:
        assert set(answer.json()) == {"error"}
    else:
        assert all(json.loads(line) is not None for line in answer.text.splitlines())


def test_a_context_that_is_asked_for_reloads_nothing(client: ollama.Client, rig: Rig) -> None:
    client.chat("tiny", HI, options=OPTIONS)
    before = rig.house.models.loaded
    for n_ctx in (16, 100_000):
        client.chat("tiny", HI, options={**OPTIONS, "num_ctx": n_ctx})
    assert rig.house.models.loaded == before


def test_tools_and_results(rig: Rig, client: ollama.Client, llm: pyllm.LLM) -> None:
    messages: list[dict[str, Any]] = [
        *HI,
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "tool_name": "add", "content": "2"},
    ]
    same = [
        *HI,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "name": "add", "content": "2"},
    ]
    expected = llm.chat(same, tools=[TOOL], temperature=0, max_tokens=4)
    found = client.chat("tiny", messages, tools=[TOOL], options={"temperature": 0, "num_predict": 4})
    assert found.message.content == expected.text
    assert found.prompt_eval_count == expected.usage.n_prompt


# Prompts


def test_generate(client: ollama.Client, llm: pyllm.LLM) -> None:
    expected = llm.chat([{"role": "system", "content": "S"}, *HI], temperature=0, max_tokens=8)
    found = client.generate("tiny", "Hi", system="S", options=OPTIONS)
    assert found.response == expected.text
    assert found.context == [*expected.prompt_tokens, *expected.tokens]
    parts = list(client.generate("tiny", "Hi", system="S", options=OPTIONS, stream=True))
    assert "".join(part.response or "" for part in parts) == expected.text
    assert parts[-1].context == found.context


def test_a_conversation_by_its_context(client: ollama.Client, llm: pyllm.LLM) -> None:
    first = client.generate("tiny", "Hi", options=OPTIONS)
    assert first.context is not None
    following = llm.chat_tokens([{"role": "user", "content": "And"}])
    assert following[0] == llm.tokenizer.bos_id  # once, at the beginning, is enough
    prompt = [*first.context, *following[1:]]
    expected = llm.complete(prompt, temperature=0, max_tokens=8)
    second = client.generate("tiny", "And", context=first.context, options=OPTIONS)
    assert second.response == expected.text
    assert second.context == [*prompt, *expected.tokens]


def test_raw_and_templates(client: ollama.Client, llm: pyllm.LLM) -> None:
    expected = llm.complete("Hi<eos>", parse_special=True, temperature=0, max_tokens=8)
    found = client.generate("tiny", "Hi<eos>", raw=True, options=OPTIONS)
    assert (found.response, found.prompt_eval_count) == (expected.text, expected.usage.n_prompt)
    assert found.context is None
    expected = llm.complete("U: Hi A:", temperature=0, max_tokens=8)
    found = client.generate("tiny", "Hi", template="U: {{ .Prompt }} A:", options=OPTIONS)
    assert (found.response, found.prompt_eval_count) == (expected.text, expected.usage.n_prompt)


def test_json(client: ollama.Client) -> None:
    found = client.generate("tiny", "Hi", format="json", options={"num_predict": 3, "temperature": 0})
    assert found.response.lstrip().startswith("{")  # type: ignore[union-attr]


def test_without_a_prompt_models_are_loaded_and_unloaded(client: ollama.Client, rig: Rig) -> None:
    assert client.generate("tiny").done_reason == "load"
    assert "tiny" in {model.model for model in client.ps().models}
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"
    until(lambda: "tiny" not in {model.model for model in client.ps().models})
    assert client.chat("tiny", keep_alive="-1").done_reason == "load"
    served = rig.house.models.loaded[0]
    assert served.keep_alive < 0
    client.chat("tiny", HI, options={"num_predict": 1}, keep_alive="1h1.5m")
    assert served.keep_alive == 3690
    client.chat("tiny", HI, options={"num_predict": 1}, keep_alive=0)
    until(lambda: served not in rig.house.models.loaded)


# Embeddings


def test_embed(client: ollama.Client, llm: pyllm.LLM) -> None:
    found = client.embed("tiny", ["Hello", "there"])
    assert np.allclose(found.embeddings, llm.embed(["Hello", "there"]), atol=1e-5)
    assert found.prompt_eval_count == 12  # of bytes, and two of the beginning
    (row,) = client.embed("tiny", "Hello", dimensions=8).embeddings
    assert len(row) == 8
    assert np.isclose(np.linalg.norm(row), 1)
    assert len(client.embed("tiny", "x" * 3000).embeddings) == 1  # the beginning counts
    with pytest.raises(ollama.ResponseError, match="3001"):
        client.embed("tiny", "x" * 3000, truncate=False)
    assert np.allclose(client.embeddings("tiny", "Hello").embedding, llm.embed("Hello", normalize=False), atol=1e-4)


# Models


def test_list_show_and_ps(client: ollama.Client, tiny: Path) -> None:
    (listed,) = (model for model in client.list().models if model.model == "tiny")
    assert (listed.model, listed.size) == ("tiny", tiny.stat().st_size)
    assert listed.digest is not None
    assert len(listed.digest) == 64
    assert listed.details is not None
    assert (listed.details.family, listed.details.format) == ("llama", "gguf")
    shown = client.show("tiny")
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 512
    assert shown.modelinfo["tokenizer.ggml.tokens"] is None
    assert shown.capabilities == ["completion"]
    assert shown.template
    assert shown.modelfile == "FROM tiny.gguf\n"
    client.generate("tiny", keep_alive="10m")
    (loaded,) = (model for model in client.ps().models if model.model == "tiny")
    assert loaded.context_length == 2048
    assert loaded.expires_at is not None
    assert timedelta(minutes=9) < loaded.expires_at - datetime.now(UTC) < timedelta(minutes=11)


def test_the_server_says_that_it_is_there(rig: Rig) -> None:
    assert httpx2.get(rig.url + "/").text == "Ollama is running"
    assert httpx2.head(rig.url + "/").status_code == 200
    version = httpx2.get(rig.url + "/api/version").json()
    assert [part.isdigit() for part in version["version"].split(".")] == [True] * 3
    assert version["pyllm"] == pyllm.__version__


def test_create_copy_and_delete(client: ollama.Client, llm: pyllm.LLM) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    made = list(
        client.create(
            "me/mario:7b",
            from_="tiny",
            system="Be brief.",
            template="{{ .System }}|{{ .Prompt }}|{{ .Response }}",
            parameters={"temperature": 0, "num_predict": 6, "stop": ["~~~"]},
            messages=messages,
            license="MIT",
            stream=True,
        )
    )
    assert made[-1].status == "success"
    expected = llm.complete("Be brief.|a|b|Hi|", temperature=0, max_tokens=6)
    found = client.chat("me/mario:7b", HI)
    assert (found.message.content, found.eval_count) == (expected.text, expected.usage.n_generated)
    assert found.prompt_eval_count == expected.usage.n_prompt
    shown = client.show("me/mario:7b")
    file = parse(shown.modelfile or "")
    assert (file.base, file.system, file.messages) == ("tiny.gguf", "Be brief.", (("user", "a"), ("assistant", "b")))
    assert shown.license == "MIT"
    assert (shown.parameters or "").splitlines() == ["temperature 0.0", "num_predict 6", "stop ~~~"]
    assert client.copy("me/mario:7b", "luigi").status == "success"
    assert client.chat("luigi", HI).message.content == expected.text
    assert {"tiny", "me/mario:7b", "luigi"} <= {model.model for model in client.list().models}
    assert {"me/mario:7b", "luigi"} <= {model.model for model in client.ps().models}
    assert client.delete("me/mario:7b").status == "success"
    assert client.delete("luigi:latest").status == "success"
    with pytest.raises(ollama.ResponseError, match="there is no model 'luigi'"):
        client.chat("luigi", HI)
    assert not {"me/mario:7b", "luigi"} & {model.model for model in client.list().models}


def test_a_model_from_a_file_that_was_sent(rig: Rig, client: ollama.Client, tmp_path: Path, llm: pyllm.LLM) -> None:
    path = write_tiny_gguf(tmp_path / "other.gguf", embed_scale=0.5)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert httpx2.head(f"{rig.url}/api/blobs/sha256:{sha256}").status_code == 404
    digest = client.create_blob(path)
    assert digest == f"sha256:{sha256}"
    assert httpx2.head(f"{rig.url}/api/blobs/{digest}").status_code == 200
    assert client.create("sent", files={"other.gguf": digest}).status == "success"
    with pyllm.load(path, backend="reference", kv_dtype="f32") as other:
        expected = other.chat(HI, temperature=0, max_tokens=8).text
    assert client.chat("sent", HI, options=OPTIONS).message.content == expected
    assert "/" not in (client.show("sent").modelfile or "")
    client.delete("sent")
    assert httpx2.head(f"{rig.url}/api/blobs/{digest}").status_code == 404


def test_the_form_of_older_clients(rig: Rig, client: ollama.Client) -> None:
    answer = post(rig, "/api/create", name="old", modelfile="FROM tiny\nSYSTEM Hm.", stream=False)
    assert answer.json() == {"status": "success"}
    assert parse(client.show("old").modelfile or "").system == "Hm."
    client.delete("old")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 400, "from must name a model"),
        ({"from": "/etc/passwd"}, 404, "there is no model"),
        ({"from": "../tiny.gguf"}, 404, "there is no model"),
        ({"from": 3}, 400, "from must be a text"),
        ({"modelfile": "FROM /etc/passwd"}, 404, "there is no model"),
        ({"modelfile": "FROM tiny\nADAPTER /etc/passwd"}, 400, "a digest must be"),
        ({"modelfile": "RUN x"}, 400, "no instruction"),
        ({"from": "tiny", "adapters": {"a": "/etc/passwd"}}, 400, "a digest must be"),
        ({"from": "tiny", "adapters": {"a": "sha256:" + "0" * 64}}, 400, "there is no blob"),
        ({"files": {"a.gguf": "sha256:" + "0" * 64}}, 400, "there is no blob"),
        ({"files": {"a.safetensors": "sha256:" + "0" * 64}}, 400, "is not a GGUF file"),
        ({"files": {"a.gguf": "x", "b.gguf": "y"}}, 400, "one GGUF file"),
        ({"files": 7}, 400, "files"),
        ({"from": "tiny", "template": "{{ if }}"}, 400, "template"),
        ({"from": "tiny", "template": "{% if %}"}, 400, "template"),
        ({"from": "tiny", "parameters": {"top_p": "x"}}, 400, "parameters.top_p"),
        ({"from": "tiny", "parameters": {"top_p": 7}}, 400, "top_p must be"),
        ({"from": "tiny", "messages": [{"role": "robot"}]}, 400, "messages"),
        ({"from": "tiny", "quantize": "q4_K_M"}, 400, "pyllm quantize"),
        ({"from": "tiny", "model": "../x"}, 400, "cannot be a model's name"),
        ({"from": "tiny", "model": "qwen2.5-coder:0.5b"}, 400, "choose another"),
    ],
)
def test_what_cannot_be_made(rig: Rig, body: dict[str, Any], status: int, reason: str) -> None:
    answer = post(rig, "/api/create", **{"model": "new", "stream": False, **body})
    assert (answer.status_code, reason in answer.json()["error"]) == (status, True), answer.text
    assert "new" not in rig.house.models.shelf.names()


def test_files_that_are_no_models_are_refused(rig: Rig, client: ollama.Client, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"no model")
    digest = client.create_blob(path)
    with pytest.raises(ollama.ResponseError, match="cannot be used"):
        client.create("new", files={"x.gguf": digest})


def test_blobs_that_are_not_what_they_say(rig: Rig, tmp_path: Path) -> None:
    def send(digest: str, data: Any) -> httpx2.Response:
        return httpx2.post(f"{rig.url}/api/blobs/{digest}", content=data, timeout=60)

    zeros = "sha256:" + "0" * 64
    answer = send(zeros, b"data")
    assert (answer.status_code, "another SHA-256" in answer.json()["error"]) == (400, True)
    assert send("md5:123", b"data").status_code == 400
    assert send(zeros, b"x" * ((1 << 20) + 1)).status_code == 413
    answer = send(zeros, iter([b"x" * (1 << 20), b"y"]))  # without a length
    assert (answer.status_code, "larger" in answer.json()["error"]) == (400, True)
    assert httpx2.head(f"{rig.url}/api/blobs/{zeros}").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_pull(client: ollama.Client, stream: bool) -> None:
    with pytest.raises(ollama.ResponseError, match="there is no model 'no-such-model'"):
        list(client.pull("no-such-model", stream=stream))  # type: ignore[call-overload]
    client.create("named", from_="tiny")
    told = client.pull("named", stream=stream)
    statuses = [part.status for part in told] if stream else [told.status]  # type: ignore[union-attr]
    assert statuses[-1] == "success"
    client.delete("named")


def test_pull_offline_ends_with_the_reason(client: ollama.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_OFFLINE", "1")
    with pytest.raises(ollama.ResponseError, match="nothing may be fetched"):
        list(client.pull("llama3.2:3b", stream=True))
    with pytest.raises(ollama.ResponseError, match="nothing may be fetched"):
        client.pull("llama3.2:3b")


def test_what_is_refused(rig: Rig, client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="does not publish"):
        client.push("tiny")
    with pytest.raises(ollama.ResponseError, match="is not deleted"):
        client.delete("tiny")
    with pytest.raises(ollama.ResponseError, match="text alone"):
        client.chat("tiny", [{"role": "user", "content": "x", "images": [b"x"]}])
    with pytest.raises(ollama.ResponseError, match="text alone"):
        client.generate("tiny", "x", images=[b"x"])
    with pytest.raises(ollama.ResponseError, match="does not think"):
        client.chat("tiny", HI, think=True)
    with pytest.raises(ollama.ResponseError, match="can fill in a middle"):
        client.generate("tiny", "a", suffix="b")
    for call in (client.chat, client.show, client.generate):
        with pytest.raises(ollama.ResponseError, match="there is no model 'gpt-9' here; there are: tiny") as error:
            call("gpt-9")
        assert error.value.status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/chat", {"messages": HI}, "model"),
        ("/api/chat", {"model": "tiny", "messages": "x"}, "messages"),
        ("/api/chat", {"model": "tiny", "messages": [{"content": "x"}]}, "messages[0].role"),
        ("/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ("/api/chat", {"model": "tiny", "messages": HI, "tools": [{}]}, "tools[0].function"),
        ("/api/chat", {"model": "tiny", "messages": HI, "format": "xml"}, "format"),
        ("/api/chat", {"model": "tiny", "messages": HI, "think": "much"}, "think"),
        ("/api/chat", {"model": "tiny", "messages": HI, "keep_alive": "soon"}, "keep_alive"),
        ("/api/chat", {"model": "tiny", "messages": HI, "keep_alive": True}, "keep_alive"),
        ("/api/chat", {"model": "tiny", "messages": HI, "options": {"top_k": "x"}}, "options.top_k"),
        ("/api/chat", {"model": "tiny", "messages": HI, "options": {"top_p": 9}}, "top_p"),
        ("/api/chat", {"model": "tiny", "messages": HI, "logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ("/api/generate", {"model": "tiny", "prompt": "x", "raw": True, "system": "y"}, "raw"),
        ("/api/generate", {"model": "tiny", "prompt": "x", "context": [99999]}, "token"),
        ("/api/generate", {"model": "tiny", "prompt": "x", "template": "{{ .Nonsense }}"}, "Nonsense"),
        ("/api/embed", {"model": "tiny", "input": [1]}, "input"),
        ("/api/embed", {"model": "tiny", "input": "x", "dimensions": 0}, "dimensions"),
        ("/api/copy", {"source": "tiny"}, "destination"),
        ("/api/copy", {"source": "tiny", "destination": "a/b/c"}, "cannot be a model's name"),
    ],
)
def test_errors_name_the_field(rig: Rig, path: str, body: dict[str, Any], field: str) -> None:
    answer = post(rig, path, **body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert field in answer.json()["error"]


def test_nulls_and_unknown_fields_say_nothing(rig: Rig) -> None:
    body = {"model": "tiny", "messages": HI, "options": None, "tools": None, "think": None, "whatever": 1,
            "keep_alive": None, "format": None, "stream": False}  # fmt: skip
    assert post(rig, "/api/chat", **body, truncate=None).json()["done_reason"] in ("stop", "length")


def test_a_chat_that_is_too_long(rig: Rig) -> None:
    messages = [*HI, {"role": "assistant", "content": "x" * 2500}, *HI]
    body = {"model": "tiny", "messages": messages, "options": {"num_predict": 2}, "stream": False}
    assert post(rig, "/api/chat", **body).status_code == 400
    assert post(rig, "/api/chat", **body, truncate=True).json()["done"] is True
