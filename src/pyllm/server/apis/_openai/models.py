"""GET /v1/models: a form that OpenAI's clients read, and Anthropic's too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from pyllm.server.api import Exchange
from pyllm.server.apis._openai.form import API
from pyllm.server.known import Known
from pyllm.server.live import Reply


@API.get("/v1/models", "/models")
async def models(exchange: Exchange) -> Response:
    """All models, by all their names."""
    shelf = exchange.house.models.shelf
    named = [(known.name, known) for known in shelf.all()] + shelf.aliases()
    data = [_model(exchange, name, known) for name, known in named]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return Reply({"object": "list", "data": data, "has_more": False, **ends})


@API.get("/v1/models/{model:path}", "/models/{model:path}")
async def model(exchange: Exchange) -> Response:
    """A model."""
    name = exchange.path("model")
    return Reply(_model(exchange, name, exchange.house.models.shelf.find(name)))


def _model(exchange: Exchange, name: str, known: Known) -> dict[str, Any]:
    loaded = next((served for served in exchange.house.models.loaded if served.known == known), None)
    found = {
        "id": name,
        "object": "model",
        "created": known.created,
        "owned_by": "pyllm",
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(known.created, UTC).isoformat().replace("+00:00", "Z"),
    }
    return found | ({"max_model_len": loaded.plan.n_ctx} if loaded is not None else {})
