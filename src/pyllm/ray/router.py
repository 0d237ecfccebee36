"""`PrefixRouter`: chooses a request's replica by what it has read, what it has loaded and how much it has to do."""

from __future__ import annotations

import random
from collections import Counter
from time import monotonic
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from pyllm.ray.prefixes import Prefixes
from pyllm.ray.sent import Sent

_LOADED = 16.0
"""Running requests that a loaded model is worth: only then it is loaded by a further replica."""
_READ = 4.0
"""Running requests that a prompt is worth of which all is read."""
_NEWS_AFTER = 10.0
"""Seconds after which replicas have said themselves which models they have."""
_MOST_ASKED = 256
"""Models of replicas that are remembered until then."""


class PrefixRouter(RequestRouter):
    """Prefers replicas that have read most of a prompt, among those that have its model; the load counts against it.

    Each running request weighs 1, a prompt that is read in part as much of 4, a model that is loaded 16.
    """

    def initialize_state(self, **_: Any) -> None:
        """Begin, without knowledge."""
        self._prefixes = Prefixes()
        self._running: dict[str, tuple[ReplicaID, PendingRequest]] = {}
        """Requests by their ids, with their replicas."""
        self._asked: dict[tuple[ReplicaID, str], float] = {}
        """When a replica was last asked for a model."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All replicas, the best first."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        sent = next((value for value in pending_request.args if isinstance(value, Sent)), None)
        loads = self._loads(candidate_replicas)
        worth = {r.replica_id: self._worth(r, sent) - loads[r.replica_id] for r in candidate_replicas}

        def rank(replica: RunningReplica) -> tuple[float, int, float]:
            # Among equals the one with the most room for a new beginning.
            return -worth[replica.replica_id], self._prefixes.n_read(replica.replica_id), random.random()

        ranked = sorted(candidate_replicas, key=rank)
        if ranked:
            # Noted before it is sent, for others that begin alike may come at the same moment.
            self._note(pending_request, ranked[0].replica_id, sent)
        return [[replica] for replica in ranked]

    def _worth(self, replica: RunningReplica, sent: Sent | None) -> float:
        """What a replica's models and what it has read are worth for a request, in running requests."""
        if sent is None or not sent.body:
            return 0.0
        number = replica.replica_id
        worth = _LOADED if self._has(replica, sent.model) else 0.0
        if sent.blocks:
            worth += _READ * self._prefixes.n_known(number, sent.blocks) / len(sent.blocks)
        return worth

    def _has(self, replica: RunningReplica, model: str) -> bool:
        """Whether a replica has a model, or loads it."""
        since = monotonic() - _NEWS_AFTER
        asked = {name for (number, name), at in self._asked.items() if number == replica.replica_id and at > since}
        said = replica.routing_stats.get("models", ())
        # One that was asked for others since it said what it has may have given up those for them.
        return model in asked or (model in said and asked.issubset(said))

    def _loads(self, replicas: list[RunningReplica]) -> dict[ReplicaID, int]:
        """Running requests: those of this front, or what replicas said last, which other fronts add to."""
        gone = [key for key, (_, request) in self._running.items() if request.future.cancelled()]
        for key in gone:
            del self._running[key]
        own = Counter(number for number, _ in self._running.values())
        said = self.replica_queue_len_cache
        return {r.replica_id: max(own[r.replica_id], said.get(r.replica_id) or 0) for r in replicas}

    def _note(self, request: PendingRequest, number: ReplicaID, sent: Sent | None) -> None:
        self._running[request.metadata.internal_request_id] = number, request
        if sent is not None and sent.body:
            self._asked.pop((number, sent.model), None)
            self._asked[number, sent.model] = monotonic()
            if len(self._asked) > _MOST_ASKED:
                del self._asked[next(iter(self._asked))]
            self._prefixes.note(number, sent.blocks)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A replica has taken a request, the best one or, where that one is full, another."""
        sent = next((value for value in pending_request.args if isinstance(value, Sent)), None)
        self._note(pending_request, replica_id, sent)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A request has ended, in whatever way."""
        self._running.pop(internal_request_id, None)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replicas came, went or have news of themselves."""
        super().update_replicas(replicas)
        self._forget_others()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica."""
        super().on_replica_actor_died(replica_id)
        self._forget_others()

    def _forget_others(self) -> None:
        """Forget what is known of replicas that are gone."""
        self._prefixes.keep(self.curr_replicas)
        self._running = {key: found for key, found in self._running.items() if found[0] in self.curr_replicas}
        self._asked = {key: at for key, at in self._asked.items() if key[0] in self.curr_replicas}
