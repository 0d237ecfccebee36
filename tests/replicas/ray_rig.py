"""What the tests of replicas ask of an application that runs, and of its processes."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from server_rig import until

ENGINES = "ray::ServeReplica:pyllm:Replica"
"""What processes of replicas are called."""

Deploy = Callable[..., Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Rig:
    """An application that runs."""

    url: str

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=120)

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=120)

    def samples(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and values of a metric."""
        for family in text_string_to_metric_families(self.get("/metrics").text):
            yield from ((s.labels, s.value) for s in family.samples if s.name == f"pyllm:{name}")

    def by_replica(self, name: str) -> Counter[str]:
        """A metric, summed up by replica."""
        found: Counter[str] = Counter()
        for labels, value in self.samples(name):
            found[labels["replica"]] += int(value)
        return found

    @property
    def n_running(self) -> int:
        return sum(self.by_replica("num_requests_running").values())

    @property
    def n_replicas(self) -> int:
        """Replicas that Ray says run."""
        from ray import serve

        found = serve.status().applications["pyllm"].deployments["Replica"].replica_states
        return int(found.get("RUNNING", 0))


def engines() -> list[int]:
    """Processes of replicas."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(ENGINES.encode()):
            found.append(int(entry.name))
    return sorted(found)


def slow_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a condition that is costly to ask for."""

    def asked() -> bool:
        time.sleep(0.2)
        return condition()

    until(asked, seconds)
