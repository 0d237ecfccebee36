"""POST /completion and /infill: texts continued, and gaps filled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import Response

from pyllm.config import GenerateSettings
from pyllm.llm.events import Event, Finish, TextDelta, TokenLogprobs
from pyllm.llm.results import Completion, TokenLogprob, Usage
from pyllm.sampling.steps import all_steps
from pyllm.server.api import Exchange
from pyllm.server.apis._native.bodies import CompletionBody, InfillBody, asks_of
from pyllm.server.apis._native.form import API, error, probabilities, timings
from pyllm.server.asks import Asked, events_of, wholes_of
from pyllm.server.live import COMMENT, EVENT_STREAM, Framing, data_frame, encode

_FRAMING = Framing(EVENT_STREAM, lambda: COMMENT, lambda problem: data_frame(error(problem)))
_UNSET = (1 << 32) - 1
"""llama.cpp's seed of "a new one each time"."""
_UNSHOWN = frozenset({"logits_processors", "logit_bias", "seed", "samplers"})
"""Settings of sampling that have another form there, or none."""


@API.post("/completion")
async def complete(exchange: Exchange) -> Response:
    """Continue texts."""
    return await _answer(exchange, exchange.read(CompletionBody))


@API.post("/infill")
async def infill(exchange: Exchange) -> Response:
    """Fill a gap."""
    return await _answer(exchange, exchange.read(InfillBody))


async def _answer(exchange: Exchange, body: CompletionBody) -> Response:
    if body.stream:
        return await exchange.live(_chunks(exchange, body), _FRAMING)
    return await exchange.whole(_whole(exchange, body))


@contextlib.asynccontextmanager
async def _asked(exchange: Exchange, body: CompletionBody) -> AsyncIterator[list[Asked]]:
    models = exchange.house.models
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(models.lease(models.shelf.find(body.model)))
        asks = await asyncio.to_thread(asks_of, body, exchange.fields, served.llm.llm)
        yield [await stack.enter_async_context(Asked(exchange, ask)) for ask in asks]


async def _whole(exchange: Exchange, body: CompletionBody) -> Any:
    async with _asked(exchange, body) as asked:
        forms = [await _Form.of(body, one) for one in asked]
        found: list[dict[str, Any]] = []
        for form, made in zip(forms, await wholes_of(asked), strict=True):
            found += [form.whole(len(found) + i, answer) for i, answer in enumerate(made.choices)]
        return found[0] if len(found) == 1 else found


async def _chunks(exchange: Exchange, body: CompletionBody) -> AsyncIterator[bytes]:
    async with _asked(exchange, body) as asked:
        forms = [await _Form.of(body, one) for one in asked]
        answers = [_Answer(i, forms[i // asked[0].n], body) for i in range(len(asked) * asked[0].n)]
        async for number, event in events_of(asked):
            if frame := answers[number].frame(event):
                yield frame


class _Form:
    """Makes the answers to a prompt what llama-server says at their ends."""

    def __init__(self, body: CompletionBody, asked: Asked, prompt: str) -> None:
        self.tokenizer = asked.served.llm.llm.tokenizer
        self._body = body
        self._model = asked.model
        self._prompt = prompt
        self._settings = generation_settings(asked.settings, body, asked.served.llm.llm.n_ctx)

    @classmethod
    async def of(cls, body: CompletionBody, asked: Asked) -> _Form:
        given = asked.prompt
        if not isinstance(given, str):
            given = await asyncio.to_thread(asked.served.llm.llm.tokenizer.decode, given, skip_special=False)
        return cls(body, asked, given)

    def whole(self, index: int, answer: Completion) -> dict[str, Any]:
        """A whole answer."""
        tokens = list(answer.tokens) if self._body.return_tokens else []
        found = self.end(index, answer.text, tokens, answer.finish_reason, answer.usage, answer.stop_string)
        if self._body.n_probs > 0:
            found["completion_probabilities"] = probabilities(answer.logprobs or (), self.tokenizer)
        return _chosen(found, self._body.response_fields)

    def end(
        self, index: int, text: str, tokens: list[int], reason: str, usage: Usage, stop_string: str | None
    ) -> dict[str, Any]:
        """What is said at an answer's end."""
        stop_type = {"stop": "eos", "length": "limit"}.get(reason, "none")
        return {
            "index": index,
            "content": text,
            "tokens": tokens,
            "id_slot": -1,
            "stop": True,
            "model": self._model,
            "tokens_predicted": usage.n_generated,
            "tokens_evaluated": usage.n_prompt,
            "generation_settings": self._settings,
            "prompt": self._prompt,
            "has_new_line": "\n" in text,
            "truncated": False,
            "stop_type": stop_type if stop_string is None else "word",
            "stopping_word": stop_string or "",
            "tokens_cached": usage.n_cached,
            "timings": timings(usage),
        }


class _Answer:
    """One of the answers of a stream, event by event."""

    def __init__(self, index: int, form: _Form, wants: CompletionBody) -> None:
        self._index = index
        self._form = form
        self._wants = wants
        self._before = b'data: {"index":%d,"id_slot":-1,"stop":false,"content":' % index
        self._new_line = False
        self._tokens: list[TokenLogprob] = []
        """Tokens whose text did not come yet."""

    def frame(self, event: Event) -> bytes:
        """What an event adds to the stream; often nothing."""
        match event:
            case TextDelta(text):
                self._new_line = self._new_line or "\n" in text
                return self._before + encode(text) + self._of_tokens() + b"}\n\n"
            case TokenLogprobs(token):
                self._tokens.append(token)
            case Finish(reason, usage, stop_string):
                end = self._form.end(self._index, "", self._ids(), reason, usage, stop_string)
                end["has_new_line"] = self._new_line
                return data_frame(_chosen(end, self._wants.response_fields))
        return b""

    def _ids(self) -> list[int]:
        return [token.id for token in self._tokens]

    def _of_tokens(self) -> bytes:
        if not self._tokens:
            return b',"tokens":[]'
        found = b',"tokens":' + encode(self._ids())
        if self._wants.n_probs > 0:
            found += b',"completion_probabilities":' + encode(probabilities(self._tokens, self._form.tokenizer))
        self._tokens = []
        return found


def generation_settings(settings: GenerateSettings, body: CompletionBody, n_ctx: int) -> dict[str, Any]:
    """How answers are generated, by llama-server's names."""
    sampling = settings.sampling
    own = {name: getattr(sampling, name) for name in sampling.__dataclass_fields__ if name not in _UNSHOWN}
    limit = -1 if settings.max_tokens is None else settings.max_tokens
    return {
        **own,
        "seed": _UNSET if sampling.seed is None else sampling.seed,
        "logit_bias": [{"token": token, "bias": bias} for token, bias in sampling.logit_bias.items()],
        "samplers": list(sampling.samplers or (step.name() for step in all_steps() if step.is_on(sampling))),
        "n_ctx": n_ctx,
        "stop": list(settings.stop),
        "max_tokens": limit,
        "n_predict": limit,
        "n_keep": settings.n_keep,
        "n_probs": body.n_probs,
        "ignore_eos": settings.ignore_eos,
        "stream": body.stream,
        "grammar": settings.grammar or "",
        "timings_per_token": False,
        "post_sampling_probs": False,
        "lora": [],
    }


def _chosen(answer: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """The fields that were asked for, all if none; "a/b" is the field b of a."""
    if not wanted:
        return answer
    found = {}
    for path in wanted:
        value: Any = answer
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found[path.rpartition("/")[2]] = value
    return found
