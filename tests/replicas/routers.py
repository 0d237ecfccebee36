"""A router to compare with, which processes of Ray import."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import RequestRouter


class RandomRouter(RequestRouter):
    """Sends each prompt anywhere; in each run of a test to the same place."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        (sent,) = pending_request.args or (None,)
        order = random.Random(sent.blocks[-1] if sent is not None and sent.blocks else b"")
        return [[replica] for replica in order.sample(candidate_replicas, len(candidate_replicas))]
