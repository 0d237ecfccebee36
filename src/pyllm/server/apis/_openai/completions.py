"""POST /v1/completions: texts that are continued as they are, or gaps that are filled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from pyllm.llm.events import Event, Finish, TextDelta, TokenLogprobs
from pyllm.llm.infill import Infill
from pyllm.llm.results import Completion, TokenLogprob, Usage
from pyllm.server.api import Exchange
from pyllm.server.apis._openai.form import API, DONE, FRAMING, head, prompts_of, reason_of, usage_of
from pyllm.server.asks import Ask, Asked, events_of, wholes_of
from pyllm.server.bodies import Body
from pyllm.server.live import encode
from pyllm.server.logprobs import finite, top_of
from pyllm.server.options import options_of
from pyllm.server.problems import refuse
from pyllm.tokenizers import Tokenizer


class CompletionBody(Body):
    """Prompts. Options of sampling and of the answer's form are read by their names; see `options_of`."""

    prompt: Any = ""
    """A text, texts, token ids, or lists of those."""
    model: str = ""
    suffix: str | None = None
    """What comes after the answer; the prompt comes before it."""
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: int = 1
    best_of: int | None = None
    max_tokens: int | None = 16
    max_completion_tokens: int | None = None
    logprobs: int | None = None
    echo: bool = False
    tool_choice: Any = None
    """Means nothing here."""


@API.post("/v1/completions", "/completions")
async def complete(exchange: Exchange) -> Response:
    """Continue texts."""
    body = exchange.read(CompletionBody)
    asks = [_ask(exchange, body, prompt) for prompt in prompts_of(body.prompt, "prompt")]
    most = exchange.house.options.max_waiting
    if len(asks) * max(body.n, body.best_of or 1) > most:
        raise refuse(f"prompt and n ask for more than {most} answers; send several requests", "prompt")
    if body.stream:
        return await exchange.live(_chunks(exchange, body, asks), FRAMING)
    return await exchange.whole(_whole(exchange, body, asks))


def _ask(exchange: Exchange, body: CompletionBody, prompt: str | list[int]) -> Ask:
    top = top_of(body.logprobs, "logprobs")
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    options = {**options_of(exchange.fields, CompletionBody), "max_tokens": limit, "logprobs": top}
    if body.suffix:
        if not isinstance(prompt, str):
            raise refuse("suffix goes with a prompt that is a text", "suffix")
        if body.echo:
            raise refuse("echo cannot be asked for with a suffix", "echo")
        return Ask(body.model, prompt=Infill(prompt, body.suffix), options=options, n=body.n)
    if body.best_of is not None:
        if body.stream and body.best_of > 1:
            raise refuse("best_of cannot be streamed: which answers are the best is known at the end", "best_of")
        options["best_of"] = max(body.best_of, 1)
    if body.echo:
        options["echo"] = True
        if top is not None:
            if body.stream:
                raise refuse("logprobs of an echo cannot be streamed", "echo")
            options["prompt_logprobs"] = top
    return Ask(body.model, prompt=prompt, parse_special=True, options=options, n=body.n)


async def _whole(exchange: Exchange, body: CompletionBody, asks: Sequence[Ask]) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        asked = [await stack.enter_async_context(Asked(exchange, ask)) for ask in asks]
        completions = await wholes_of(asked)
        tokenizer = asked[0].served.llm.llm.tokenizer
        choices = [
            _choice(tokenizer, ask, answer)
            for ask, made in zip(asks, completions, strict=True)
            for answer in made.choices
        ]
        return {
            **head(exchange, "cmpl-", "text_completion", asked[0].model),
            "choices": [{"index": i, **choice} for i, choice in enumerate(choices)],
            "usage": usage_of([answer.usage for answer in made.choices] for made in completions),
        }


def _choice(tokenizer: Tokenizer, ask: Ask, answer: Completion) -> dict[str, Any]:
    logprobs = None
    if answer.logprobs is not None:
        before = _echoed(tokenizer, ask, answer) if answer.prompt_logprobs is not None else []
        logprobs = _logprobs([*before, *map(_Scored.of, answer.logprobs)])
    return {"text": answer.text, "logprobs": logprobs, "finish_reason": reason_of(answer.finish_reason)}


@dataclass(frozen=True, slots=True)
class _Scored:
    """A token with its log probability, which the first of a text has not."""

    text: str
    logprob: float | None = None
    top: dict[str, float] | None = None

    @classmethod
    def of(cls, token: TokenLogprob) -> _Scored:
        top: dict[str, float] = {}
        for _, text, logprob in token.top:
            top.setdefault(text, finite(logprob))  # of equal texts the likelier counts
        return cls(token.text, finite(token.logprob), top | {token.text: finite(token.logprob)})


def _echoed(tokenizer: Tokenizer, ask: Ask, answer: Completion) -> list[_Scored]:
    """The prompt's tokens; without the BOS that was put before a text."""
    first = answer.prompt_tokens[0]
    known = [_Scored.of(token) for token in answer.prompt_logprobs or ()]
    if isinstance(ask.prompt, str) and first == tokenizer.bos_id:
        return known
    return [_Scored(tokenizer.token_text(first)), *known]


def _logprobs(tokens: Sequence[_Scored], offset: int = 0) -> dict[str, Any]:
    """`offset`: characters of the text before them."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [token.top for token in tokens],
        "text_offset": offsets,
    }


async def _chunks(exchange: Exchange, body: CompletionBody, asks: Sequence[Ask]) -> AsyncIterator[bytes]:
    async with AsyncExitStack() as stack:
        asked = [await stack.enter_async_context(Asked(exchange, ask)) for ask in asks]
        start = encode(head(exchange, "cmpl-", "text_completion", asked[0].model))[:-1]
        wants_usage = bool((body.stream_options or {}).get("include_usage"))
        answers = [_Answer(number, start, wants_usage) for number in range(len(asks) * body.n)]
        async for number, event in events_of(asked):
            if frame := answers[number].frame(event):
                yield frame
        if wants_usage:
            found = [answer.usage for answer in answers if answer.usage is not None]
            by_prompt = [found[i : i + body.n] for i in range(0, len(found), body.n)]
            yield b"data: " + start + b',"choices":[],"usage":' + encode(usage_of(by_prompt)) + b"}\n\n"
        yield DONE


class _Answer:
    """One of the answers, event by event."""

    def __init__(self, number: int, start: bytes, wants_usage: bool) -> None:
        self.usage: Usage | None = None
        self._before = b"data: " + start + b',"choices":[{"index":%d,"text":' % number
        self._after = b',"usage":null}\n\n' if wants_usage else b"}\n\n"
        self._end = b',"logprobs":null,"finish_reason":null}]' + self._after
        self._scored: list[_Scored] = []
        """Tokens whose text did not come yet."""
        self._n_text = 0

    def frame(self, event: Event) -> bytes:
        """What an event adds to the stream; often nothing."""
        match event:
            case TextDelta(text) if not self._scored:
                return self._before + encode(text) + self._end
            case TextDelta(text):
                return self._chunk(text)
            case TokenLogprobs(token):
                self._scored.append(_Scored.of(token))
            case Finish(reason, usage):
                self.usage = usage
                return self._chunk("", reason_of(reason))
        return b""

    def _chunk(self, text: str, reason: str | None = None) -> bytes:
        logprobs = _logprobs(self._scored, self._n_text) if self._scored else None
        self._n_text += sum(len(token.text) for token in self._scored)
        self._scored = []
        ends = b',"logprobs":' + encode(logprobs) + b',"finish_reason":' + encode(reason) + b"}]"
        return self._before + encode(text) + ends + self._after
