"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from pyllm.server import embeddings
from pyllm.server.api import Exchange
from pyllm.server.apis._openai.form import API, prompts_of
from pyllm.server.bodies import Body


class EmbeddingsBody(Body):
    """Texts to embed."""

    input: Any
    """A text, texts, token ids, or lists of those."""
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    """base64 is of the numbers as little-endian float32."""
    dimensions: int | None = None


@API.post("/v1/embeddings", "/embeddings")
async def embed(exchange: Exchange) -> Response:
    """Embed texts."""
    body = exchange.read(EmbeddingsBody)
    inputs = prompts_of(body.input, "input")
    return await exchange.whole(_answer(exchange, body, inputs))


async def _answer(exchange: Exchange, body: EmbeddingsBody, inputs: list[str | list[int]]) -> dict[str, Any]:
    made = await embeddings.embed(exchange, body.model, inputs, dimensions=body.dimensions)
    write = _base64 if body.encoding_format == "base64" else _numbers
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": write(row)} for i, row in enumerate(made.rows)],
        "model": made.model,
        "usage": {"prompt_tokens": made.n_tokens, "total_tokens": made.n_tokens},
    }


def _numbers(row: NDArray[np.float32]) -> list[float]:
    return row.tolist()


def _base64(row: NDArray[np.float32]) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
