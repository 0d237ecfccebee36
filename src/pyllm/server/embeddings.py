"""Embeddings of the texts of a request, whichever API it came by."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ContextFullError
from pyllm.server.api import Exchange
from pyllm.server.problems import ProblemError, problem_of, refuse

MAX_INPUTS = 2048
"""Of one request, as OpenAI has it."""
_AT_ONCE = 64
"""Texts that are computed side by side."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Embeddings, and what they took."""

    model: str
    rows: list[NDArray[np.float32]]
    """A vector each."""
    n_tokens: int
    """Tokens of all texts."""


async def embed(
    exchange: Exchange,
    model: str,
    inputs: Sequence[str | list[int]],
    *,
    param: str = "input",
    dimensions: int | None = None,
    normalize: bool = True,
    shorten: bool = False,
    keep_alive: float | None = None,
) -> Embeddings:
    """A vector of each text, or token ids. `param`: the field that has them.

    `dimensions`: the first so many numbers, scaled to length 1 again. `shorten`: of texts that are longer than the
    context, the beginning counts. Raises ProblemError, ContextFullError.
    """
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise refuse(f"{param} must hold 1 to {MAX_INPUTS} texts, not {len(inputs)}", param)
    models = exchange.house.models
    known = models.shelf.find(model)
    exchange.asks("embeddings", model, {"dimensions": dimensions})
    async with models.lease(known, keep_alive) as served:
        exchange.log["model"] = known.name
        llm = served.llm.llm
        if dimensions is not None and not 1 <= dimensions <= llm.n_embd:
            raise refuse(f"dimensions must be from 1 to {llm.n_embd}, which the model has", "dimensions")

        def some(start: int) -> tuple[NDArray[np.float32], int]:
            tokens = [read(number) for number in range(start, min(start + _AT_ONCE, len(inputs)))]
            try:
                rows = llm.embed(tokens, normalize=normalize, dimensions=dimensions)
            except ContextFullError as error:
                raise ProblemError(replace(problem_of(error), param=param)) from error
            return rows, sum(map(len, tokens))

        def read(number: int) -> list[int]:
            given = inputs[number]
            tokens = llm.tokenizer.encode(given) if isinstance(given, str) else given
            if not tokens or not given:
                raise refuse(f"{param}[{number}] is empty, and has no embedding", param)
            return tokens[: llm.n_ctx] if shorten else tokens

        # Some at a time: the threads that this would else occupy read others' prompts.
        found = [await asyncio.to_thread(some, start) for start in range(0, len(inputs), _AT_ONCE)]
    n_tokens = sum(n for _, n in found)
    exchange.log["prompt"] = n_tokens
    return Embeddings(known.name, [row for rows, _ in found for row in rows], n_tokens)
