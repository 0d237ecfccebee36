"""POST /tokenize, /detokenize, /apply-template, /embedding and /rerank: what a model makes of texts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from msgspec import field
from starlette.responses import Response

from pyllm.errors import ContextFullError, RequestError
from pyllm.llm import LLM
from pyllm.llm.embedding import Ranked
from pyllm.server.api import Exchange
from pyllm.server.apis._native.form import API, is_mixed, mixed_tokens, unsupported
from pyllm.server.bodies import Body
from pyllm.server.embeddings import embed
from pyllm.server.live import Reply
from pyllm.server.problems import ProblemError, problem_of, refuse


class TokenizeBody(Body):
    """A text, or texts and token ids in a list, as token ids."""

    content: Any = ""
    model: str = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    """Token ids as a text."""

    tokens: list[int] = field(default_factory=list)
    model: str = ""


class TemplateBody(Body):
    """A chat as the prompt that a model reads."""

    messages: list[dict[str, Any]]
    model: str = ""
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class EmbeddingBody(Body):
    """Texts, or token ids."""

    input: Any = None
    content: Any = None
    model: str = ""
    embd_normalize: int = 2
    """2: to length 1; -1: not at all."""


class RerankBody(Body):
    """A query and documents."""

    query: str = ""
    documents: list[Any] | None = None
    texts: list[Any] | None = None
    model: str = ""
    top_n: int | None = None
    return_text: bool = False


@API.post("/tokenize")
async def tokenize(exchange: Exchange) -> Response:
    """Token ids, with their texts if asked for; bytes where one is only part of a character."""
    body = exchange.read(TokenizeBody)
    if not isinstance(body.content, str) and not is_mixed(body.content):
        parts = body.content
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise refuse("content must be a text, or a list of texts and token ids", "content")
    parts = [body.content] if isinstance(body.content, str) else body.content

    def work(llm: LLM) -> list[Any]:
        tokenizer = llm.tokenizer
        tokens = mixed_tokens(tokenizer, parts, add_special=body.add_special, parse_special=body.parse_special)
        if not body.with_pieces:
            return tokens
        if wrong := [token for token in tokens if not 0 <= token < tokenizer.n_vocab]:
            raise refuse(f"content names token {wrong[0]}; the vocabulary has 0 to {tokenizer.n_vocab - 1}", "content")
        return [{"id": token, "piece": _piece(tokenizer.token_bytes(token))} for token in tokens]

    async with _model(exchange, body.model) as llm:
        return Reply({"tokens": await asyncio.to_thread(work, llm)})


@API.post("/detokenize")
async def detokenize(exchange: Exchange) -> Response:
    """The text of token ids, control tokens included."""
    body = exchange.read(DetokenizeBody)
    async with _model(exchange, body.model) as llm:
        text = await asyncio.to_thread(llm.tokenizer.decode, body.tokens, skip_special=False)
        return Reply({"content": text})


@API.post("/apply-template")
async def apply_template(exchange: Exchange) -> Response:
    """The prompt of a chat."""
    body = exchange.read(TemplateBody)

    def work(llm: LLM) -> str:
        if llm.chat_template is None:
            raise refuse("this model has no chat template")
        return llm.chat_template.render(
            body.messages,
            body.add_generation_prompt and not body.continue_final_message,
            body.tools,
            continue_final_message=body.continue_final_message,
            **body.chat_template_kwargs,
        )

    async with _model(exchange, body.model) as llm:
        return Reply({"prompt": await asyncio.to_thread(work, llm)})


@API.post("/embedding")
async def embedding(exchange: Exchange) -> Response:
    """A vector of each text."""
    body = exchange.read(EmbeddingBody)
    given = body.input if body.input is not None else body.content
    param = "input" if body.input is not None else "content"
    if body.embd_normalize not in (2, -1):
        raise unsupported("embd_normalize must be 2 or -1", "embd_normalize")
    inputs = [given] if isinstance(given, str) or is_mixed(given) else given
    if not isinstance(inputs, list) or not all(isinstance(one, str) or _is_ids(one) for one in inputs):
        raise refuse(f"{param} must be a text, a list of token ids, or a list of those", param)
    found = await embed(exchange, body.model, inputs, param=param, normalize=body.embd_normalize == 2)
    return Reply([{"index": i, "embedding": [row.tolist()]} for i, row in enumerate(found.rows)])


@API.post("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")
async def rerank(exchange: Exchange) -> Response:
    """Documents by a cross-encoder's score, the best first, as Jina's API has it; in TEI's form where `texts` are
    given."""
    body = exchange.read(RerankBody)
    of_tei = body.documents is None
    documents, param = (body.texts, "texts") if of_tei else (body.documents, "documents")
    if not documents or not all(isinstance(one, str) for one in documents):
        raise refuse(f"{param} must hold texts, one at least", param)
    if not body.query:
        raise refuse("query must be a text", "query")
    exchange.asks("rerank", body.model, {})
    async with _model(exchange, body.model) as llm:
        call = partial(llm.rerank, body.query, documents, top_n=body.top_n, normalize=False)
        try:
            ranked = await asyncio.to_thread(call)
        except ContextFullError as error:
            raise ProblemError(replace(problem_of(error), param=param)) from error
        except RequestError as error:
            raise unsupported(str(error)) from error
        n_tokens = sum(len(llm.tokenizer.encode(text)) for text in (body.query, *documents))
    if of_tei:
        return Reply([_ranked(one, "score", documents, body.return_text) for one in ranked])
    results = [_ranked(one, "relevance_score", documents, False) for one in ranked]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return Reply({"model": exchange.log["model"], "object": "list", "usage": usage, "results": results})


def _ranked(one: Ranked, score: str, documents: Sequence[Any], with_text: bool) -> dict[str, Any]:
    found = {"index": one.index, score: one.score}
    return {**found, "text": documents[one.index]} if with_text else found


@contextlib.asynccontextmanager
async def _model(exchange: Exchange, name: str) -> AsyncIterator[LLM]:
    models = exchange.house.models
    async with models.lease(models.shelf.find(name)) as served:
        exchange.log["model"] = served.known.name
        yield served.llm.llm


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(entry) is int for entry in value)
