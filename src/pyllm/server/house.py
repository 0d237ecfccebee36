"""`House`: what all requests of a server share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyllm.config.serving import ServeOptions
from pyllm.server.known import Shelf
from pyllm.server.loader import Loader
from pyllm.server.logs import Logs
from pyllm.server.metrics import Metrics
from pyllm.server.models import Models


@dataclass(slots=True)
class House:
    """Settings, models, metrics and the state of a server."""

    options: ServeOptions
    models: Models
    metrics: Metrics
    logs: Logs
    draining: bool = False
    """New requests are refused: the server is ending."""
    cutting: bool = False
    """Requests under way are cut off."""
    busy: set[asyncio.Task[None]] = field(default_factory=set)
    """Requests under way."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted: pinned models are loaded, and the server is not ending."""
        return not self.draining and not self.models.starting

    async def drain(self, seconds: float) -> int:
        """Refuse new requests and those that wait for a model to be loaded, and wait for the others; returns how many
        were cut off."""
        self.draining = True
        self.models.drain()
        rest: Sequence[asyncio.Task[None]] = list(self.busy)
        if rest:
            _, late = await asyncio.wait(rest, timeout=seconds)
            if late:
                self.cut_off()
            return len(late)
        return 0

    def cut_off(self) -> None:
        """End the requests under way; streams end with an error."""
        self.cutting = True
        for task in list(self.busy):
            task.cancel()


def make_house(options: ServeOptions) -> House:
    """What a server with these settings needs. Raises HubError where a model that is to be served is not there."""
    models = Models(options, Shelf(options), Loader(options))
    metrics = Metrics()
    metrics.watch(models)
    return House(options, models, metrics, Logs(options.log_prompts))
