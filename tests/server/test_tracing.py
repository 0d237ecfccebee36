"""Spans of requests, by OpenTelemetry's own SDK and by the names of its conventions; and servers without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes, http_attributes, url_attributes
from opentelemetry.trace import SpanKind, StatusCode

from server_rig import Rig, held, running, sent, until

SECRET = "a very secret question"
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": SECRET}]
CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 3, "temperature": 0}
OLLAMA = {"model": "tiny", "options": {"num_predict": 3, "temperature": 0}}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where spans go, as long as the test runs: a process may set its provider only once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


@pytest.fixture(scope="module")
def rig(path: Path) -> Iterator[Rig]:
    with running(path) as rig:
        until(lambda: rig.house.models.loaded)
        yield rig


def only(spans: InMemorySpanExporter) -> tuple[ReadableSpan, dict[str, Any]]:
    """The span, once it is there, and its attributes."""
    until(spans.get_finished_spans)
    (span,) = spans.get_finished_spans()
    return span, dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("where", "body", "operation"),
    [
        ("/v1/chat/completions", CHAT, "chat"),
        ("/v1/completions", {**CHAT, "prompt": SECRET}, "text_completion"),
        ("/v1/responses", {"model": "tiny", "input": SECRET, "max_output_tokens": 3, "temperature": 0}, "chat"),
        ("/v1/messages", {**CHAT, "messages": MESSAGES[1:]}, "chat"),
        ("/api/chat", {**OLLAMA, "messages": MESSAGES}, "chat"),
        ("/completion", {**CHAT, "prompt": SECRET}, "text_completion"),
    ],
)
def test_an_answer_has_a_span_by_the_conventions(
    rig: Rig, spans: InMemorySpanExporter, where: str, body: dict[str, Any], operation: str, stream: bool
) -> None:
    answer = httpx2.post(rig.url + where, json={**body, "stream": stream}, timeout=300)
    assert answer.status_code == 200
    span, found = only(spans)
    assert (span.name, span.kind, span.parent) == (f"{operation} tiny", SpanKind.SERVER, None)
    assert span.status.status_code is StatusCode.UNSET
    assert found[gen_ai.GEN_AI_OPERATION_NAME] == operation
    assert found[gen_ai.GEN_AI_PROVIDER_NAME] == "pyllm"
    assert found[gen_ai.GEN_AI_REQUEST_MODEL] == found[gen_ai.GEN_AI_RESPONSE_MODEL] == "tiny"
    assert found[gen_ai.GEN_AI_REQUEST_TEMPERATURE] == 0
    assert found[gen_ai.GEN_AI_REQUEST_MAX_TOKENS] == 3
    assert found[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] > 5
    assert 0 <= found[gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS] < found[gen_ai.GEN_AI_USAGE_INPUT_TOKENS]
    assert 1 <= found[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] <= 3
    (reason,) = found[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS]
    assert reason in ("length", "stop", "tool_calls")
    assert found[http_attributes.HTTP_REQUEST_METHOD] == "POST"
    assert found[http_attributes.HTTP_ROUTE] == found[url_attributes.URL_PATH] == where
    assert found[http_attributes.HTTP_RESPONSE_STATUS_CODE] == 200
    (event,) = span.events
    assert event.name == "first_token"
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= event.timestamp <= span.end_time
    assert (gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK in found) is stream
    assert found.get(gen_ai.GEN_AI_REQUEST_STREAM, False) is stream
    assert "secret" not in json.dumps(found)


def test_several_prompts_and_answers_are_counted_together(rig: Rig, spans: InMemorySpanExporter) -> None:
    body = {"prompt": ["one", "two"], "n": 2, "max_tokens": 2, "logit_bias": {"256": -100}}
    usage = httpx2.post(rig.url + "/v1/completions", json=body, timeout=300).json()["usage"]
    _, found = only(spans)
    assert found[gen_ai.GEN_AI_REQUEST_CHOICE_COUNT] == 2
    assert found[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == usage["prompt_tokens"]
    assert found[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == usage["completion_tokens"]
    assert found[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",) * 4


def test_embeddings_have_a_span(rig: Rig, spans: InMemorySpanExporter) -> None:
    body = {"model": "tiny", "input": [SECRET, "more"], "dimensions": 2}
    usage = httpx2.post(rig.url + "/v1/embeddings", json=body, timeout=300).json()["usage"]
    span, found = only(spans)
    assert span.name == "embeddings tiny"
    assert found[gen_ai.GEN_AI_OPERATION_NAME] == "embeddings"
    assert found[gen_ai.GEN_AI_EMBEDDINGS_DIMENSION_COUNT] == 2
    assert found[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == usage["prompt_tokens"]


def test_a_span_is_below_the_callers(rig: Rig, spans: InMemorySpanExporter) -> None:
    caller = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}
    assert httpx2.get(rig.url + "/v1/models", headers=caller).status_code == 200
    span, _ = only(spans)
    assert span.name == "GET /v1/models"
    assert span.context is not None
    assert span.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert span.parent is not None
    assert (span.parent.span_id, span.parent.is_remote) == (0xB7AD6B7169203331, True)
    assert span.parent.trace_state.get("a") == "b"


@pytest.mark.parametrize("value", ["", "00", "00-0-0-01", "x" * 5000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_wrong_caller_is_none(rig: Rig, spans: InMemorySpanExporter, value: str) -> None:
    assert httpx2.get(rig.url + "/v1/models", headers={"traceparent": value}).status_code == 200
    assert only(spans)[0].parent is None


@pytest.mark.parametrize(
    ("method", "where", "body", "name", "status", "error"),
    [
        ("GET", "/none", None, "GET", 404, "not_found"),
        ("BREW", "/v1/models", None, "HTTP", 404, "not_found"),
        ("POST", "/v1/chat/completions", {"messages": 1}, "POST /v1/chat/completions", 400, "invalid_value"),
        ("POST", "/v1/chat/completions", {**CHAT, "model": "x"}, "POST /v1/chat/completions", 404, "model_not_found"),
        ("POST", "/v1/completions", {"prompt": "x" * 600}, "text_completion tiny", 400, "context_length_exceeded"),
    ],
)
def test_refusals_are_no_failures_of_the_server(
    rig: Rig, spans: InMemorySpanExporter, method: str, where: str, body: Any, name: str, status: int, error: str
) -> None:
    assert httpx2.request(method, rig.url + where, json=body, timeout=300).status_code == status
    span, found = only(spans)
    assert span.name == name
    assert found[http_attributes.HTTP_RESPONSE_STATUS_CODE] == status
    assert found[error_attributes.ERROR_TYPE] == error
    assert span.status.status_code is StatusCode.UNSET


def test_failures_are_the_spans_status(tmp_path: Path, path: Path, spans: InMemorySpanExporter) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:200])
    with running(path, broken) as rig:
        body = {**CHAT, "model": "broken"}
        assert httpx2.post(rig.url + "/v1/chat/completions", json=body, timeout=300).status_code == 503
        span, found = only(spans)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.status.description or "").startswith("broken could not be loaded: ")
    assert found[error_attributes.ERROR_TYPE] == "model_failed"


def test_a_client_that_leaves_is_said(rig: Rig, spans: InMemorySpanExporter) -> None:
    with held(rig):
        sent(rig, CHAT).close()
        _, found = only(spans)
    assert found[error_attributes.ERROR_TYPE] == "client_disconnected"
    assert http_attributes.HTTP_RESPONSE_STATUS_CODE not in found


def test_prompts_and_answers_are_in_spans_where_they_are_in_the_log(path: Path, spans: InMemorySpanExporter) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    history = [
        {"role": "user", "content": [{"type": "text", "text": SECRET}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "found"},
    ]
    with running(path, log_prompts=True) as rig:
        for stream in (False, True):
            spans.clear()
            body = {**CHAT, "messages": history, "stream": stream}
            answer = httpx2.post(rig.url + "/v1/chat/completions", json=body, timeout=300)
            assert answer.status_code == 200
            _, found = only(spans)
            assert json.loads(found[gen_ai.GEN_AI_INPUT_MESSAGES]) == [
                {"role": "user", "parts": [{"type": "text", "content": SECRET}]},
                {
                    "role": "assistant",
                    "parts": [{"type": "tool_call", "id": "call_1", "name": "look", "arguments": "{}"}],
                },
                {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "found"}]},
            ]
            (output,) = json.loads(found[gen_ai.GEN_AI_OUTPUT_MESSAGES])
            assert (output["role"], output["finish_reason"]) == (
                "assistant",
                found[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS][0],
            )


def test_the_log_names_the_trace(rig: Rig, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pyllm.server"):
        httpx2.get(rig.url + "/v1/models")
        span, _ = only(spans)
    (line,) = [getattr(r, "fields", {}) for r in caplog.records if r.getMessage() == "request"]
    assert span.context is not None
    assert line["trace"] == f"{span.context.trace_id:032x}"


def test_probes_have_no_spans(rig: Rig, spans: InMemorySpanExporter) -> None:
    for where in ("/health", "/ready", "/metrics"):
        assert httpx2.get(rig.url + where).status_code == 200
    assert httpx2.get(rig.url + "/v1/models").status_code == 200
    assert only(spans)[0].name == "GET /v1/models"


SCRIPT = """
import asyncio, sys
sys.modules.update(dict.fromkeys({blocked}))
from pyllm.server import ServeOptions, create_app, make_house

async def ask():
    app = create_app(make_house(ServeOptions(models=({path!r},))))
    answers = []
    receive = asyncio.Event().wait  # the client stays, and sends nothing more
    async def send(message):
        answers.append(message.get("status"))
    scope = {{"type": "http", "method": "GET", "path": "/v1/models", "raw_path": b"/v1/models", "query_string": b"",
             "headers": [(b"host", b"localhost"), (b"traceparent", b"00-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01")],
             "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 1), "root_path": ""}}
    await app(scope, receive, send)
    print(answers[0], sorted(m for m in sys.modules if m.startswith("opentelemetry") and sys.modules[m]))

asyncio.run(ask())
"""


@pytest.mark.parametrize("blocked", [["opentelemetry"], []], ids=["without the package", "without a provider"])
def test_without_tracing_nothing_of_it_is_imported(path: Path, blocked: list[str]) -> None:
    code = SCRIPT.format(blocked=blocked, path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "200 []\n", done.stderr
