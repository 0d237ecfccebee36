"""`application`: the server as an application of Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from pyllm.config.serving import ServeOptions
from pyllm.errors import RequestError
from pyllm.ray.front import Front
from pyllm.ray.replica import Replica
from pyllm.ray.router import PrefixRouter
from pyllm.ray.sent import of_replica

_SPARE = 64
"""Requests of a replica beyond those that compute or wait, which ask for models or health."""
_NEWS_EVERY = 2.0
"""Seconds after which replicas say which models they have."""


def application(
    options: ServeOptions,
    *,
    replicas: int = 1,
    autoscaling: Mapping[str, Any] | None = None,
    threads: int = 1,
    gpus: float = 0.0,
    fronts: int = 1,
    router: type[Any] = PrefixRouter,
) -> Any:
    """An application for `ray.serve.run`, or for `serve run MODULE:NAME`.

    `replicas`: engines, each with `threads` processors and `gpus` graphics cards, which Ray reserves.
    `autoscaling`: fields of Ray's AutoscalingConfig, in place of `replicas`; "target_ongoing_requests" is
    `options.max_seqs` where it is not among them.
    `fronts`: processes that clients' requests come through.
    `router`: a `ray.serve.request_router.RequestRouter` that chooses replicas.

    Address, port and TLS are those of Ray's proxy, not of the options. Raises RequestError.
    """
    if min(replicas, threads, fronts) < 1:
        raise RequestError(f"replicas, threads and fronts must be 1 or more, not {replicas}, {threads} and {fronts}")
    count: dict[str, Any] = {"num_replicas": replicas}
    if autoscaling is not None:
        count = {"autoscaling_config": {"target_ongoing_requests": options.max_seqs, **autoscaling}}
    engines = serve.deployment(
        Replica,
        **count,
        ray_actor_options={"num_cpus": threads, "num_gpus": gpus},
        max_ongoing_requests=options.max_seqs + options.max_waiting + _SPARE,
        graceful_shutdown_timeout_s=options.drain,
        request_router_config=RequestRouterConfig(
            request_router_class=router, request_routing_stats_period_s=_NEWS_EVERY
        ),
    )
    doors = serve.deployment(
        serve.ingress()(Front),
        name="Front",
        num_replicas=fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=options.max_connections,
        graceful_shutdown_timeout_s=options.drain,
    )
    return doors.bind(options, engines.bind(of_replica(options, threads)))
