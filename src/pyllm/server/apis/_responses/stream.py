"""The events of a streamed response, in OpenAI's order: each item is added, filled, and done before the next."""

from __future__ import annotations

from typing import Any

from pyllm.chat.events import ReasoningDelta, TextDelta, ToolCallArguments, ToolCallBegin, ToolCallEnd
from pyllm.llm.events import Event, Finish, TokenLogprobs
from pyllm.llm.results import TokenLogprob
from pyllm.server.apis._responses.answer import Item, ResponseForm, status_of
from pyllm.server.live import encode, event_frame
from pyllm.server.problems import Problem

_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseEvents:
    """Makes frames of an answer's events."""

    def __init__(self, form: ResponseForm) -> None:
        self._form = form
        self._number = 0
        self._output: list[Item] = []
        """Items that are done."""
        self._kind = ""
        """The type of the item that is open, "" for none."""
        self._place: dict[str, Any] = {}
        self._texts: list[str] = []
        self._begins: ToolCallBegin | None = None
        """A call that began, and may yet turn out to be none."""
        self._call: ToolCallBegin | None = None
        self._delta: tuple[bytes, bytes] = (b"", b"")
        """What is around a delta of the open item, up to the sequence number."""
        self._pending: list[TokenLogprob] = []
        self._logprobs: list[TokenLogprob] = []

    def begin(self) -> bytes:
        """The first events."""
        response = self._form.response("in_progress")
        return self._event("created", response=response) + self._event("in_progress", response=response)

    def failed(self, problem: Problem) -> bytes:
        """The last event of a response that failed after its beginning."""
        error = {"code": problem.code, "message": problem.message}
        return self._event("failed", response=self._form.response("failed", self._output, error=error))

    def frames(self, event: Event) -> bytes:
        """What an event of the answer adds."""
        match event:
            case TextDelta(text):
                return self._open("message") + self._add(text)
            case ReasoningDelta(text):
                return self._open("reasoning") + self._add(text)
            case ToolCallBegin():
                self._begins = event
                return b""
            case ToolCallArguments(_, delta):
                frames = self._open_call()
                return frames + self._add(delta) if self._call is not None else b""
            case ToolCallEnd(_, None):
                self._begins = None
                return self._close("incomplete") if self._call is not None else b""
            case ToolCallEnd():
                frames = self._open_call()
                return frames + self._close() if self._call is not None else b""
            case TokenLogprobs(token):
                self._pending.append(token)
                return b""
            case Finish(reason, usage):
                frames = b"" if self._kind or self._output else self._open("message")
                frames += self._close(status_of(reason))
                response = self._form.ended(reason, self._output, usage)
                return frames + self._event(response["status"], response=response)
        return b""

    # --- the open item

    def _open(self, kind: str) -> bytes:
        """Begin a message or a reasoning, with its one part, unless it is open."""
        if self._kind == kind:
            return b""
        frames = self._close()
        index = len(self._output)
        item = self._form.message(index, [], "in_progress")
        if kind == "reasoning":
            item = self._form.reasoning(index, None, "in_progress")
        frames += self._added(kind, item)
        frames += self._event("content_part.added", **self._place, content_index=0, part=self._part(""))
        self._place["content_index"] = 0
        self._prepare(_PARTS[kind])
        return frames

    def _open_call(self) -> bytes:
        """Begin the item of a call that began."""
        if (begin := self._begins) is None:
            return b""
        frames = self._close()
        self._begins, self._call = None, begin
        item = self._form.call(len(self._output), begin.id, begin.name, "", "in_progress")
        frames += self._added("function_call", item)
        self._prepare("function_call_arguments")
        return frames

    def _added(self, kind: str, item: Item) -> bytes:
        self._kind, self._texts, self._logprobs = kind, [], []
        self._place = {"item_id": item["id"], "output_index": len(self._output)}
        return self._event("output_item.added", output_index=len(self._output), item=item)

    def _prepare(self, of: str) -> None:
        name = f"response.{of}.delta"
        place = encode({"type": name, **self._place})[:-1]
        self._delta = (f"event: {name}\ndata: ".encode() + place + b',"delta":', b',"sequence_number":%d}\n\n')

    def _add(self, text: str) -> bytes:
        self._texts.append(text)
        before, after = self._delta
        if self._kind == "message":
            logprobs = b"[]"
            if self._pending:
                logprobs = encode(self._form.logprobs(self._pending))
                self._logprobs += self._pending
            before, after = before + encode(text) + b',"logprobs":', logprobs + after
        else:
            before += encode(text)
        self._pending = []
        self._number += 1
        return before + after % (self._number - 1)

    def _close(self, status: str = "completed") -> bytes:
        """End the open item."""
        if not self._kind:
            return b""
        text, index, kind = "".join(self._texts), len(self._output), self._kind
        if self._call is not None:
            item = self._form.call(index, self._call.id, self._call.name, text or "{}", status)
            done = {"name": self._call.name, "arguments": item["arguments"]}
            frames = self._event("function_call_arguments.done", **self._place, **done)
        else:
            part = self._part(text)
            item = self._form.message(index, [part], status)
            more = {"logprobs": part.get("logprobs", [])}
            if kind == "reasoning":
                item, more = self._form.reasoning(index, text, status), {}
            frames = self._event(f"{_PARTS[kind]}.done", **self._place, text=text, **more)
            frames += self._event("content_part.done", **self._place, part=part)
        self._kind, self._call = "", None
        frames += self._event("output_item.done", output_index=index, item=item)
        self._output.append(item)
        return frames

    def _part(self, text: str) -> Item:
        if self._kind == "message":
            return self._form.text(text, self._logprobs)
        return {"type": "reasoning_text", "text": text}

    def _event(self, name: str, /, **fields: Any) -> bytes:
        name = f"response.{name}"
        frame = event_frame(name, {"type": name, **fields, "sequence_number": self._number})
        self._number += 1
        return frame
