"""OpenTelemetry: a span for each request, where whoever runs the server has set up tracing.

Names are those of OpenTelemetry's semantic conventions for HTTP servers and for generative AI. Nothing is imported here
that is not there already: tracing is set up by `opentelemetry-instrument`, or by a program that has the server in it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from pyllm.server.api import Exchange

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NUMBERS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "n": "gen_ai.request.choice.count",
    "dimensions": "gen_ai.embeddings.dimension.count",
}
"""Options of answers; texts such as stop strings are left out."""
_USAGE = {
    "prompt": "gen_ai.usage.input_tokens",
    "cached": "gen_ai.usage.cache_read.input_tokens",
    "generated": "gen_ai.usage.output_tokens",
}
_MOST = 1000
"""Characters of a text that a client wrote."""


@contextmanager
def traced(exchange: Exchange) -> Iterator[None]:
    """Have a span for a request, below the caller's where the request names one (W3C's traceparent)."""
    tracer = None if exchange.is_probe else _tracer()
    if tracer is None:
        yield
        return
    from opentelemetry import propagate
    from opentelemetry.trace import SpanKind

    headers = exchange.request.headers
    with tracer.start_as_current_span(
        _http_name(exchange),
        context=propagate.extract({name: headers.getlist(name) for name in headers}),
        kind=SpanKind.SERVER,
        attributes=_of_request(exchange),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        if span.get_span_context().is_valid:
            exchange.log["trace"] = format(span.get_span_context().trace_id, "032x")
        try:
            yield
        finally:
            if span.is_recording():
                _describe(span, exchange)


def _tracer() -> Tracer | None:
    """What makes spans; None where nobody has set up tracing."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    provider = api.get_tracer_provider()
    if isinstance(provider, api.ProxyTracerProvider | api.NoOpTracerProvider):
        return None
    from pyllm import __version__

    tracer: Tracer = provider.get_tracer("pyllm", __version__)
    return tracer


def _http_name(exchange: Exchange) -> str:
    method = exchange.request.method
    name = method if method in _METHODS else "HTTP"
    return f"{name} {exchange.route.path}" if exchange.route is not None else name


def _of_request(exchange: Exchange) -> dict[str, Any]:
    """What is known when a request comes."""
    request = exchange.request
    return {
        "http.request.method": request.method if request.method in _METHODS else "_OTHER",
        "url.path": request.scope["path"][:_MOST],
        "url.scheme": request.scope["scheme"],
    }


def _describe(span: Span, exchange: Exchange) -> None:
    """Add what is known when it is over."""
    from opentelemetry.trace import StatusCode

    span.update_name(_http_name(exchange))
    found: dict[str, Any] = {}
    if exchange.route is not None:
        found["http.route"] = exchange.route.path
    if exchange.status is not None:
        found["http.response.status_code"] = exchange.status
    if exchange.problem is not None:
        found["error.type"] = exchange.problem.code
        if exchange.problem.status >= 500:
            span.set_status(StatusCode.ERROR, exchange.problem.message)
    elif exchange.has_left:
        found["error.type"] = "client_disconnected"
    if exchange.operation:
        found |= _of_model(exchange)
        span.update_name(f"{exchange.operation} {exchange.log.get('model', '')}".strip())
    if exchange.first_token is not None:
        passed = perf_counter() - exchange.began - exchange.first_token
        span.add_event("first_token", timestamp=time.time_ns() - int(passed * 1e9))
        if exchange.streams:
            found["gen_ai.response.time_to_first_chunk"] = exchange.first_token
    span.set_attributes(found)


def _of_model(exchange: Exchange) -> dict[str, Any]:
    """What was asked of a model, and what came of it. Texts are part of it only where the log has them, too."""
    log = exchange.log
    found: dict[str, Any] = {"gen_ai.operation.name": exchange.operation, "gen_ai.provider.name": "pyllm"}
    if model := exchange.asked_model or log.get("model"):
        found["gen_ai.request.model"] = model[:_MOST]
    if model := log.get("model"):
        found["gen_ai.response.model"] = model
        found["gen_ai.response.id"] = exchange.id
    if exchange.streams:
        found["gen_ai.request.stream"] = True
    found |= {name: value for key, name in _NUMBERS.items() if _is_number(value := exchange.options.get(key))}
    if exchange.options.get("n") == 1:  # which the conventions leave unsaid
        del found[_NUMBERS["n"]]
    found |= {name: log[key] for key, name in _USAGE.items() if key in log}
    if exchange.finish_reasons:
        found["gen_ai.response.finish_reasons"] = exchange.finish_reasons
    if asked := exchange.texts.get("asked"):
        found["gen_ai.input.messages"] = _json([part for value in asked for part in _messages(value)])
    if answered := exchange.texts.get("answered"):
        reasons = [*exchange.finish_reasons, *[""] * len(answered)]
        found["gen_ai.output.messages"] = _json(
            [{**_message(one), "finish_reason": why} for one, why in zip(answered, reasons, strict=False)]
        )
    return found


def _is_number(value: Any) -> bool:
    """Whether it is a number that OpenTelemetry's protocol can carry."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 63


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _messages(asked: Any) -> list[dict[str, Any]]:
    """A chat, or a text to continue, in the conventions' form."""
    if isinstance(asked, Sequence) and not isinstance(asked, str) and all(isinstance(m, Mapping) for m in asked):
        return [_message(message) for message in asked]
    text = asked if isinstance(asked, str) else _json(asked)
    return [{"role": "user", "parts": [{"type": "text", "content": text}]}]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of OpenAI's form in the conventions'."""
    role, content = message.get("role"), message.get("content")
    parts: list[dict[str, Any]] = []
    if thought := message.get("reasoning_content"):
        parts.append({"type": "reasoning", "content": thought})
    if role == "tool":
        parts.append({"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content})
    elif isinstance(content, str) and content:
        parts.append({"type": "text", "content": content})
    elif isinstance(content, list):
        parts += [_part(part) for part in content]
    for call in message.get("tool_calls") or ():
        function = call.get("function", {}) if isinstance(call, Mapping) else {}
        parts.append({"type": "tool_call", "id": call.get("id"), **function} if function else {"type": "tool_call"})
    return {"role": role, "parts": parts}


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return {"type": "text", "content": part["text"]}
    return {"type": str(part.get("type", "unknown")) if isinstance(part, Mapping) else "unknown"}
