"""GET /props, /slots and /lora-adapters: what a loaded model is, and what it does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from starlette.responses import Response

from pyllm import __version__
from pyllm.config import GenerateSettings
from pyllm.server.api import Access, Exchange
from pyllm.server.apis._native.bodies import CompletionBody, keeps_adapters
from pyllm.server.apis._native.completion import generation_settings
from pyllm.server.apis._native.form import API, unsupported
from pyllm.server.bodies import value_of
from pyllm.server.live import Reply
from pyllm.server.models import Served
from pyllm.server.problems import Problem, ProblemError, refuse


@API.get("/props")
async def props(exchange: Exchange) -> Response:
    """Settings that requests need not name, the chat template, the context."""
    async with _served(exchange) as served:
        llm = served.llm.llm
        template, tokenizer = llm.chat_template, llm.tokenizer
        settings = GenerateSettings.of("complete", None, {"max_tokens": None}, llm.sampling)
        ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.vocab.eos_id}
        found = {
            "default_generation_settings": {
                "params": generation_settings(settings, CompletionBody(), llm.n_ctx),
                "n_ctx": llm.n_ctx,
            },
            "total_slots": exchange.house.options.max_seqs,
            "model_alias": served.known.name,
            "model_path": str(llm.path),
            "modalities": {"vision": False, "audio": False},
            "chat_template": "" if template is None else template.sources["default"],
            "chat_template_caps": {} if template is None else asdict(template.caps()),
            "build_info": f"pyllm-{__version__}",
            "is_sleeping": False,
        }
        texts = {name: "" if token is None else tokenizer.token_text(token) for name, token in ends.items()}
        return Reply({**found, **texts})


@API.post("/props", access=Access.OWNERS)
async def set_props(_: Exchange) -> Response:
    """Nothing can be set."""
    raise unsupported("properties cannot be changed while the server runs; start it with other options")


@API.get("/slots")
async def slots(exchange: Exchange) -> Response:
    """The places of a model's step, of which answers under way take one each."""
    async with _served(exchange) as served:
        llm, n = served.llm.llm, exchange.house.options.max_seqs
        n_running = min(llm.engine.load().n_running, n)
        if exchange.request.query_params.get("fail_on_no_slot") and n_running >= n:
            raise ProblemError(Problem(503, "no_slot", "no slot available", retry_after=1))
        return Reply(
            [{"id": i, "n_ctx": llm.n_ctx, "speculative": False, "is_processing": i < n_running} for i in range(n)]
        )


@API.post("/slots/{slot}", access=Access.OWNERS)
async def change_slot(_: Exchange) -> Response:
    """States are shared and found by their prefixes; they belong to no slot."""
    raise unsupported("slots cannot be saved, restored or erased: prompts find their prefixes again by themselves")


@API.get("/lora-adapters")
async def adapters(exchange: Exchange) -> Response:
    """Adapters that are applied."""
    async with _served(exchange) as served:
        return Reply(_adapters(served))


@API.post("/lora-adapters", access=Access.OWNERS)
async def set_adapters(exchange: Exchange) -> Response:
    """Scales as they are, and no others: kernels are compiled with them."""
    wanted = value_of(exchange.body)
    if not isinstance(wanted, list) or not all(isinstance(entry, dict) for entry in wanted):
        raise refuse('the body must be a list of {"id": 0, "scale": 1.0}')
    async with _served(exchange) as served:
        if not keeps_adapters(wanted, served.llm.llm):
            raise unsupported("scales of adapters are set when a model is loaded; start the server with --lora")
        return Reply({"success": True})


def _adapters(served: Served) -> list[dict[str, Any]]:
    adapters = served.llm.llm.adapters
    return [{"id": i, "path": str(adapter.path), "scale": adapter.scale} for i, adapter in enumerate(adapters)]


@contextlib.asynccontextmanager
async def _served(exchange: Exchange) -> AsyncIterator[Served]:
    """The model that the query names; else the one used last, or the default one."""
    models = exchange.house.models
    name = exchange.request.query_params.get("model", "")
    known = models.loaded[0].known if not name and models.loaded else models.shelf.find(name)
    async with models.lease(known) as served:
        exchange.log["model"] = served.known.name
        yield served
