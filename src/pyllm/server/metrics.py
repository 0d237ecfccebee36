"""Prometheus metrics in vLLM's shape, with the prefix `pyllm:`, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from pyllm.llm.results import Usage
    from pyllm.server.models import Models

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LONG = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_GAPS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Metrics:
    """The metrics of a server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        label = ["model_name"]

        def counter(name: str, text: str, labels: list[str] = label) -> Counter:
            return Counter(f"pyllm:{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"pyllm:{name}", text, label, buckets=buckets, registry=self.registry)

        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._generated = counter("generation_tokens", "Tokens of answers.")
        self._queries = counter("prefix_cache_queries", "Tokens of prompts that were looked for in the prefix cache.")
        self._hits = counter("prefix_cache_hits", "Tokens of prompts that were in the prefix cache.")
        self._ended = counter("request_success", "Answers that ended, by reason.", [*label, "finished_reason"])
        self._failed = counter("request_failure", "Requests that failed, by code.", ["code"])
        self._first = histogram("time_to_first_token_seconds", "From a request's arrival to its first token.", _SECONDS)
        self._between = histogram("inter_token_latency_seconds", "Mean time between an answer's tokens.", _GAPS)
        self._whole = histogram("e2e_request_latency_seconds", "From a request's arrival to its end.", _LONG)

    def watch(self, models: Models) -> None:
        """Report the state of loaded models, too."""
        self.registry.register(_State(models))

    def answered(self, model: str, reason: str, usage: Usage, first: float | None, whole: float) -> None:
        """An answer ended. `first`, `whole`: seconds from the request's arrival."""
        self._prompt.labels(model).inc(usage.n_prompt)
        self._generated.labels(model).inc(usage.n_generated)
        self._queries.labels(model).inc(usage.n_prompt)
        self._hits.labels(model).inc(usage.n_cached)
        self._ended.labels(model, reason).inc()
        self._whole.labels(model).observe(whole)
        if first is not None:
            self._first.labels(model).observe(first)
        if usage.n_generated > 1 and usage.seconds > 0:
            self._between.labels(model).observe(usage.seconds / (usage.n_generated - 1))

    def refused(self, code: str) -> None:
        """A request failed."""
        self._failed.labels(code).inc()

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


class _State:
    """Collects the state of loaded models when it is asked for."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Any] = {
            name: GaugeMetricFamily(f"pyllm:{name}", text, labels=["model_name"])
            for name, text in (
                ("num_requests_running", "Requests that are computed."),
                ("num_requests_waiting", "Requests that wait."),
                ("kv_cache_usage_perc", "Share of the KV cache's pages in use; 1 is all."),
                ("model_memory_bytes", "Bytes that the model was planned to take."),
            )
        }
        for served in self._models.loaded:
            load = served.llm.llm.engine.load()
            name = [served.known.name]
            families["num_requests_running"].add_metric(name, load.n_running)
            families["num_requests_waiting"].add_metric(name, load.n_waiting)
            families["kv_cache_usage_perc"].add_metric(name, load.kv_share)
            families["model_memory_bytes"].add_metric(name, sum(served.plan.needs.values()))
        yield from families.values()
