"""Bodies of all kinds: each is answered, or refused in the form of its API, and nothing fails inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server_rig import Rig, running
from tiny_gguf import write_tiny_gguf

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
TYPES = st.sampled_from(
    [
        "text",
        "image",
        "document",
        "thinking",
        "tool_use",
        "tool_result",
        "search_result",
        "any",
        "auto",
        "tool",
        "enabled",
    ]
)
BLOCK = st.dictionaries(
    st.sampled_from(["text", "thinking", "id", "name", "input", "content", "source", "tool_use_id", "is_error"]),
    VALUES,
    max_size=4,
).flatmap(lambda block: TYPES.map(lambda kind: {**block, "type": kind}))
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool", 1]),
        "content": st.text() | st.lists(BLOCK, max_size=3),
    }
)
TOOL = st.dictionaries(st.sampled_from(["name", "input_schema", "description", "strict"]), VALUES, max_size=4)
ANTHROPIC = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=3) | VALUES, "max_tokens": st.integers(-2, 3) | VALUES},
    optional={
        "model": st.just("tiny") | VALUES,
        "system": st.text() | st.lists(BLOCK, max_size=2) | VALUES,
        "tools": st.lists(TOOL, max_size=2) | VALUES,
        "tool_choice": BLOCK | VALUES,
        "thinking": BLOCK | VALUES,
        "stop_sequences": VALUES,
        "output_config": st.dictionaries(st.sampled_from(["format", "effort"]), VALUES) | VALUES,
        "stream": st.booleans() | VALUES,
        "temperature": VALUES,
        "top_k": VALUES,
    },
)
PROMPTS = st.text() | st.lists(st.integers(-1, 300) | st.text(max_size=5), max_size=4) | VALUES
NAMES = [
    "model",
    "stream",
    "n",
    "n_cmpl",
    "n_probs",
    "seed",
    "temperature",
    "stop",
    "grammar",
    "json_schema",
    "samplers",
    "logit_bias",
    "n_keep",
    "response_fields",
    "return_tokens",
    "top_p",
    "mirostat",
    "dry_base",
    "ignore_eos",
    "input_prefix",
    "input_suffix",
    "input_extra",
]
ADAPTERS = st.lists(st.fixed_dictionaries({"id": VALUES, "scale": VALUES}), max_size=2)
COMPLETION = st.fixed_dictionaries(
    {"prompt": PROMPTS, "n_predict": st.integers(0, 3)},
    optional={"lora": ADAPTERS | VALUES, **dict.fromkeys(NAMES, VALUES)},
)
FIELDS = [
    "content",
    "tokens",
    "input",
    "messages",
    "tools",
    "chat_template_kwargs",
    "model",
    "with_pieces",
    "add_special",
]
OTHER = st.dictionaries(st.sampled_from(FIELDS), PROMPTS, max_size=5)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running(write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")) as rig:
        yield rig


def post(rig: Rig, path: str, body: Any) -> httpx2.Response:
    return httpx2.post(rig.url + path, content=as_json(body), headers={"content-type": "application/json"}, timeout=60)


def as_json(body: Any) -> bytes:
    """As Python writes it, with NaN and infinities, which are no JSON."""
    return json.dumps(body).encode("utf-8", "surrogatepass")


@settings(max_examples=150)
@given(path=st.sampled_from(["/v1/messages", "/v1/messages/count_tokens"]), body=ANTHROPIC)
@example(path="/v1/messages", body={"messages": [], "max_tokens": 1})
def test_anthropic(rig: Rig, path: str, body: dict[str, Any]) -> None:
    answer = post(rig, path, body)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        found = answer.json()
        assert found["type"] == "error"
        assert found["error"]["type"] in ("invalid_request_error", "not_found_error")
        assert found["error"]["message"]


@settings(max_examples=150)
@given(
    path=st.sampled_from(["/completion", "/infill"]),
    body=COMPLETION,
)
def test_completions(rig: Rig, path: str, body: dict[str, Any]) -> None:
    in_native_form(post(rig, path, body))


@settings(max_examples=100)
@given(
    path=st.sampled_from(
        ["/tokenize", "/detokenize", "/apply-template", "/embedding", "/rerank", "/lora-adapters", "/props", "/slots/0"]
    ),
    body=OTHER | ADAPTERS | VALUES,
)
def test_texts_and_state(rig: Rig, path: str, body: Any) -> None:
    in_native_form(post(rig, path, body))


def in_native_form(answer: httpx2.Response) -> None:
    assert answer.status_code in (200, 400, 404, 501), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["code"] == answer.status_code
        assert error["message"]
