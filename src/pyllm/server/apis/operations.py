"""What those who run a server ask: health, readiness, metrics."""

from __future__ import annotations

from starlette.responses import Response

from pyllm.server.api import Access, Api, Exchange
from pyllm.server.live import Reply
from pyllm.server.problems import Problem


def _error(problem: Problem) -> object:
    return {"error": {"code": problem.code, "message": problem.message}}


API = Api("operations", _error)


@API.get("/health", "/v1/health", "/healthz", "/livez", access=Access.ANYONE)
async def health(_: Exchange) -> Response:
    """The server answers."""
    return Reply({"status": "ok"})


@API.get("/ready", "/readyz", access=Access.ANYONE)
async def ready(exchange: Exchange) -> Response:
    """Requests are accepted: 503 while models that were named load, and while the server ends."""
    house = exchange.house
    if house.is_ready:
        return Reply({"status": "ready"})
    status = "draining" if house.draining else "loading"
    return Reply({"status": status}, 503, {"retry-after": "1"})


@API.get("/metrics", access=Access.USERS)
async def metrics(exchange: Exchange) -> Response:
    """Prometheus's page."""
    return Response(exchange.house.metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")
