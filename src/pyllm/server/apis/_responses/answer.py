"""A response and its items: messages, reasoning, calls of functions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pyllm.llm.results import Completion, TokenLogprob, Usage
from pyllm.server.api import Exchange
from pyllm.server.apis._openai.form import chat_logprobs, n_tokens
from pyllm.tokenizers import Tokenizer

Item = dict[str, Any]


class ResponseForm:
    """What is the same in all states of a response, and makes its items."""

    def __init__(self, exchange: Exchange, model: str, echoed: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
        """`tokenizer`: None for a response that fails before it has one."""
        self._tokenizer = tokenizer
        self._token = exchange.id.removeprefix("req_")
        self._head = {
            "id": f"resp_{self._token}",
            "object": "response",
            "created_at": int(time.time()),
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": model,
        }
        self._echoed = echoed

    def response(self, status: str, output: Sequence[Item] = (), usage: Usage | None = None, **more: Any) -> Item:
        """A response. `status`: "in_progress", "completed", "incomplete", "failed"."""
        told = self._usage(usage, output) if usage is not None else None
        return {**self._head, "status": status, "output": output, **self._echoed, "usage": told, **more}

    def ended(self, reason: str, output: Sequence[Item], usage: Usage) -> Item:
        """A response whose answer ended, for a reason."""
        if reason in ("stop", "tool_calls"):
            return self.response("completed", output, usage)
        return self.response("incomplete", output, usage, incomplete_details={"reason": "max_output_tokens"})

    def items(self, completion: Completion) -> list[Item]:
        """The items of a whole answer."""
        found: list[Item] = []
        status = status_of(completion.finish_reason)
        if completion.reasoning:
            found.append(self.reasoning(len(found), completion.reasoning, "completed"))
        if completion.text or not completion.tool_calls:
            found.append(self.message(len(found), [self.text(completion.text, completion.logprobs or ())], status))
        for call in completion.message.get("tool_calls", ()):
            function = call["function"]
            found.append(self.call(len(found), call["id"], function["name"], function["arguments"], "completed"))
        return found

    def message(self, index: int, content: list[Item], status: str) -> Item:
        said = {"role": "assistant", "content": content}
        return {"id": self.id("msg", index), "type": "message", "status": status, **said}

    def text(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Item:
        """A part of a message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs(logprobs)}

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> list[Any]:
        if not tokens or self._tokenizer is None:
            return []
        found: list[Any] = chat_logprobs(tokens, self._tokenizer)["content"]
        return found

    def reasoning(self, index: int, text: str | None, status: str) -> Item:
        content = [{"type": "reasoning_text", "text": text}] if text is not None else []
        return {"id": self.id("rs", index), "type": "reasoning", "status": status, "summary": [], "content": content}

    def call(self, index: int, call_id: str, name: str, arguments: str, status: str) -> Item:
        named = {"call_id": call_id, "name": name, "arguments": arguments}
        return {"id": self.id("fc", index), "type": "function_call", "status": status, **named}

    def id(self, kind: str, index: int) -> str:
        """The id of an item."""
        return f"{kind}_{self._token}{index:02d}"

    def _usage(self, usage: Usage, output: Sequence[Item]) -> dict[str, Any]:
        assert self._tokenizer is not None
        thoughts = [item["content"] for item in output if item["type"] == "reasoning"]
        reasoned = n_tokens(self._tokenizer, [part["text"] for parts in thoughts for part in parts])
        return {
            "input_tokens": usage.n_prompt,
            "input_tokens_details": {"cached_tokens": usage.n_cached, "cache_write_tokens": 0},
            "output_tokens": usage.n_generated,
            "output_tokens_details": {"reasoning_tokens": min(reasoned, usage.n_generated)},
            "total_tokens": usage.n_prompt + usage.n_generated,
        }


def status_of(reason: str) -> str:
    """The status of an answer's last item."""
    return "completed" if reason in ("stop", "tool_calls") else "incomplete"
