"""Answers in the form of Anthropic's Messages API: whole, and as the frames of a stream."""

from __future__ import annotations

from typing import Any

from pyllm.chat.events import ReasoningDelta, TextDelta, ToolCall, ToolCallArguments, ToolCallBegin, ToolCallEnd
from pyllm.llm.events import Event
from pyllm.llm.results import Completion, Usage
from pyllm.server.live import encode, event_frame

PING = event_frame("ping", {"type": "ping"})
STOP = event_frame("message_stop", {"type": "message_stop"})
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%s","%s":'
_TEXT, _THINKING, _INPUT = (
    (b"text_delta", b"text"),
    (b"thinking_delta", b"thinking"),
    (b"input_json_delta", b"partial_json"),
)


def message(number: str, model: str, content: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
    """A message without its end."""
    return {
        "id": number.replace("req_", "msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def usage_of(n_prompt: int, n_cached: int, n_generated: int) -> dict[str, int]:
    """Token counts: those of the prompt that were computed, and those that were not, apart."""
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_generated,
    }


def end_of(reason: str, stop_string: str | None, usage: Usage, max_tokens: int, n_ctx: int) -> dict[str, str | None]:
    """Why an answer ended."""
    word = {"tool_calls": "tool_use", "stop": "end_turn"}.get(reason, "max_tokens")
    if reason == "stop" and stop_string is not None:
        word = "stop_sequence"
    elif reason == "length" and usage.n_generated < max_tokens and usage.n_prompt + usage.n_generated >= n_ctx:
        word = "model_context_window_exceeded"
    return {"stop_reason": word, "stop_sequence": stop_string if word == "stop_sequence" else None}


def content_of(completion: Completion, *, thinking: bool) -> list[dict[str, Any]]:
    """A whole answer's blocks."""
    found: list[dict[str, Any]] = []
    if completion.reasoning and thinking:
        found.append({"type": "thinking", "thinking": completion.reasoning, "signature": ""})
    if completion.text.strip():
        found.append({"type": "text", "text": completion.text})
    calls = completion.tool_calls
    return found + [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments} for c in calls]


class Blocks:
    """Writes events as blocks, of which one is open at a time.

    A call is a block when it is whole: what a model writes wrongly comes back as text, and no block can be taken back.
    The input of `eager` tools is streamed all the same, as Anthropic's eager_input_streaming has it.
    """

    def __init__(self, eager: frozenset[str], *, thinking: bool) -> None:
        self._eager = eager
        self._thinking = thinking
        self._index = -1
        self._open: tuple[bytes, bytes] | None = None
        self._begins: ToolCallBegin | None = None
        """A call of an eager tool that has no input yet, and may turn out to be none."""
        self._head = b""
        self._blank = ""
        """White space that is written only if a text follows it."""

    def frames(self, event: Event) -> bytes:
        """The frames of an event, maybe none."""
        match event:
            case TextDelta(text):
                return self._text(text)
            case ReasoningDelta(text):
                return self._thought(text) if self._thinking else b""
            case ToolCallBegin(_, _, name) if name in self._eager:
                self._begins = event
            case ToolCallArguments(_, delta) if delta and self._begins is not None:
                begun, self._begins = self._begins, None
                return self._call(begun.id, begun.name) + self._delta(delta)
            case ToolCallArguments(_, delta) if self._open is _INPUT and delta:
                return self._delta(delta)
            case ToolCallEnd(_, call):
                return self._called(call)
        return b""

    def end(self) -> bytes:
        """The end of the last block."""
        if self._open is None:
            return b""
        end = b""
        if self._open is _THINKING:
            end = event_frame("content_block_delta", self._of("signature_delta", signature=""))
        self._open = None
        return end + event_frame("content_block_stop", {"type": "content_block_stop", "index": self._index})

    def _text(self, text: str) -> bytes:
        if self._open is _TEXT:
            return self._delta(text)
        self._blank += text
        if self._blank.isspace():
            return b""
        text, self._blank = self._blank, ""
        return self._start(_TEXT, {"type": "text", "text": ""}) + self._delta(text)

    def _thought(self, text: str) -> bytes:
        if self._open is _THINKING:
            return self._delta(text)
        return self._start(_THINKING, {"type": "thinking", "thinking": "", "signature": ""}) + self._delta(text)

    def _call(self, number: str, name: str) -> bytes:
        return self._start(_INPUT, {"type": "tool_use", "id": number, "name": name, "input": {}})

    def _called(self, call: ToolCall | None) -> bytes:
        self._begins = None
        begun = self._open is _INPUT
        frames = b""
        if call is not None and not begun:
            frames = self._call(call.id, call.name) + self._delta(encode(call.arguments).decode())
        return frames + self.end() if begun or frames else b""

    def _start(self, kind: tuple[bytes, bytes], block: dict[str, Any]) -> bytes:
        ended = self.end()
        self._index += 1
        self._open = kind
        self._head = _DELTA % (self._index, *kind)
        self._blank = ""
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return ended + event_frame("content_block_start", start)

    def _delta(self, text: str) -> bytes:
        return self._head + encode(text) + b"}}\n\n"

    def _of(self, kind: str, **fields: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, **fields}}
