"""A chat's answers as chunks. What is the same in all chunks of a stream is written once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from pyllm.chat.events import ReasoningDelta, TextDelta, ToolCallArguments, ToolCallBegin, ToolCallEnd
from pyllm.llm.events import Event, Finish, TokenLogprobs
from pyllm.llm.results import TokenLogprob, Usage
from pyllm.server.api import Exchange
from pyllm.server.apis._openai.form import DONE, chat_logprobs, head, n_tokens, reason_of, usage_of
from pyllm.server.asks import Ask, Asked
from pyllm.server.live import encode
from pyllm.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class ChatStyle:
    """What a client wants of the answer's form."""

    usage: bool = False
    """A last chunk of a stream says how many tokens there were."""
    old_calls: bool = False
    """A call is a `function_call`, as in 2023."""

    def reason(self, reason: str) -> str:
        """A finish reason in this style."""
        return "function_call" if self.old_calls and reason == "tool_calls" else reason


async def chunks(exchange: Exchange, ask: Ask, style: ChatStyle) -> AsyncIterator[bytes]:
    """The frames of a streamed chat."""
    async with Asked(exchange, ask) as asked:
        tokenizer = asked.served.llm.llm.tokenizer
        start = encode(head(exchange, "chatcmpl-", "chat.completion.chunk", asked.model))[:-1]
        answers = [_Answer(number, start, style, tokenizer) for number in range(ask.n)]
        async for number, event in asked.events():
            if frame := answers[number].frame(event):
                yield frame
        if style.usage:
            n_reasoned = n_tokens(tokenizer, ["".join(answer.reasoning) for answer in answers])
            usage = usage_of([[answer.usage for answer in answers if answer.usage is not None]], n_reasoned)
            yield b"data: " + start + b',"choices":[],"usage":' + encode(usage) + b"}\n\n"
        yield DONE


class _Answer:
    """One of the answers, event by event."""

    def __init__(self, number: int, start: bytes, style: ChatStyle, tokenizer: Tokenizer) -> None:
        self.usage: Usage | None = None
        self.reasoning: list[str] = []
        self._style = style
        self._tokenizer = tokenizer
        self._before = b"data: " + start + b',"choices":[{"index":%d,"delta":' % number
        self._after = b',"usage":null}\n\n' if style.usage else b"}\n\n"
        self._text = self._before + b'{"content":'
        self._text_end = b'},"logprobs":null,"finish_reason":null}]' + self._after
        self._logprobs: list[TokenLogprob] = []
        """Of tokens whose text did not come yet."""
        self._begun = False
        self._call: ToolCallBegin | None = None
        """A call that began, and may yet turn out to be none."""

    def frame(self, event: Event) -> bytes:
        """What an event adds to the stream; often nothing."""
        if type(event) is TextDelta and self._begun and not self._logprobs:
            return self._text + encode(event.text) + self._text_end
        if isinstance(event, TokenLogprobs):
            self._logprobs.append(event.token)
            return b""
        if isinstance(event, Finish):
            self.usage = event.usage
            return self._opening() + self._chunk({}, self._style.reason(reason_of(event.reason)))
        if isinstance(event, ToolCallBegin):
            self._call = event
            return b""
        frames = b""
        if (call := self._call) is not None:
            self._call = None
            if not (isinstance(event, ToolCallEnd) and event.call is None):
                frames = self._opening() + self._chunk(self._beginning(call))
        delta = self._delta(event)
        return frames + self._opening() + self._chunk(delta) if delta is not None else frames

    def _opening(self) -> bytes:
        """The first chunk, with the role."""
        if self._begun:
            return b""
        self._begun = True
        return self._before + b'{"role":"assistant","content":""' + self._text_end

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        logprobs = chat_logprobs(self._logprobs, self._tokenizer) if self._logprobs else None
        self._logprobs = []
        ends = b',"logprobs":' + encode(logprobs) + b',"finish_reason":' + encode(reason) + b"}]"
        return self._before + encode(delta) + ends + self._after

    def _beginning(self, call: ToolCallBegin) -> dict[str, Any]:
        function = {"name": call.name, "arguments": ""}
        if self._style.old_calls:
            return {"function_call": function}
        return {"tool_calls": [{"index": call.index, "id": call.id, "type": "function", "function": function}]}

    def _delta(self, event: Event) -> dict[str, Any] | None:
        match event:
            case TextDelta(text):
                return {"content": text}
            case ReasoningDelta(text):
                self.reasoning.append(text)
                return {"reasoning_content": text}
            case ToolCallArguments(index, delta):
                if self._style.old_calls:
                    return {"function_call": {"arguments": delta}}
                return {"tool_calls": [{"index": index, "function": {"arguments": delta}}]}
            case ToolCallEnd():
                return None
        return None
