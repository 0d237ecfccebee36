"""Ray on this machine, for the tests of this folder; applications that are deployed for a test."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray_rig import Deploy, Rig, engines, free_port

from pyllm.config.serving import ServeOptions
from server_rig import until
from tiny_gguf import write_tiny_gguf

# Ray reads them when it is imported; without a token it would leave one in the user's home.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's processes would give way to all others
# How often running requests are counted, in seconds.
os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.3")
os.environ.setdefault("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.3")


@pytest.fixture(scope="session")
def ray_url() -> Iterator[str]:
    """The address of Ray Serve, which runs while the tests do."""
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    paths = {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1])))}
    ray.init(
        num_cpus=8,  # so many may be reserved; the tests' models need little
        include_dashboard=False,
        object_store_memory=100 << 20,
        runtime_env={"env_vars": paths},
        log_to_driver=False,
    )
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def deployed(ray_url: str) -> Deploy:
    """`with deployed(models, replicas=2, …) as rig`."""
    from ray import serve

    from pyllm.ray import application

    @contextmanager
    def run(*models: Path, options: dict[str, Any] | None = None, **settings: Any) -> Iterator[Rig]:
        options = {"load": {"backend": "reference", "kv_dtype": "f32"}, **(options or {})}
        made = application(ServeOptions(models=tuple(map(str, models)), grace=60.0, **options), **settings)
        try:
            serve.run(made, name="pyllm")
            rig = Rig(ray_url)
            # The proxy hears of a new application a moment later.
            until(lambda: rig.get("/health").status_code == 200)
            yield rig
        finally:
            serve.delete("pyllm")
            until(lambda: not engines())

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")
