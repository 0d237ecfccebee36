"""POST /api/embed, and its predecessor /api/embeddings."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from starlette.responses import Response

from pyllm.server.api import Exchange
from pyllm.server.apis._ollama import form
from pyllm.server.embeddings import embed as embeddings
from pyllm.server.live import Reply


class EmbedBody(form.ModelBody):
    """Texts to embed."""

    input: str | list[str] = ""
    truncate: bool = True
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None


class EmbeddingsBody(form.ModelBody):
    """A text to embed, as older clients send it."""

    prompt: str = ""
    options: dict[str, Any] | None = None
    keep_alive: Any = None


@form.API.post("/api/embed")
async def embed(exchange: Exchange) -> Response:
    """Vectors of length 1."""
    body = exchange.read(EmbedBody)
    form.options_of(exchange, body.options)
    inputs = [body.input] if isinstance(body.input, str) else body.input
    keep_alive = form.seconds_of(body.keep_alive)
    if inputs in ([], [""]):
        return Reply({"model": body.called, "embeddings": []})

    async def made() -> dict[str, Any]:
        found = await embeddings(
            exchange,
            body.called,
            inputs,
            dimensions=body.dimensions,
            shorten=body.truncate,
            keep_alive=keep_alive,
        )
        return {
            "model": body.called,
            "embeddings": [row.tolist() for row in found.rows],
            "total_duration": round((perf_counter() - exchange.began) * 1e9),
            "load_duration": 1,
            "prompt_eval_count": found.n_tokens,
        }

    return await exchange.whole(made())


@form.API.post("/api/embeddings")
async def embed_one(exchange: Exchange) -> Response:
    """A vector as the model gives it, not of length 1."""
    body = exchange.read(EmbeddingsBody)
    form.options_of(exchange, body.options)
    keep_alive = form.seconds_of(body.keep_alive)
    if not body.prompt:
        return Reply({"embedding": []})

    async def made() -> dict[str, Any]:
        found = await embeddings(
            exchange, body.called, [body.prompt], param="prompt", normalize=False, shorten=True, keep_alive=keep_alive
        )
        return {"embedding": found.rows[0].tolist()}

    return await exchange.whole(made())
