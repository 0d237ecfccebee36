"""A backend of somebody else: found by its entry point, used by "auto", held to what every backend must pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import pyllm
from pyllm import backends
from pyllm.backends import devices
from pyllm.backends.base import Batch, Crossing, Executable, HostCrossing
from pyllm.config import PlacementOptions
from pyllm.errors import BackendError
from pyllm.program import Value
from pyllm.testing import conformance
from tiny_gguf import write_tiny_gguf

FOLDER = Path(__file__).parent / "third_party"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its package is on the path, metadata and all."""
    monkeypatch.syspath_prepend(FOLDER)
    yield
    backends.get.cache_clear()


@pytest.mark.parametrize("check", conformance.checks("echo"))
def test_it_conforms(check: str) -> None:
    conformance.checks("echo")[check]()


def test_it_is_found_by_its_entry_point() -> None:
    assert backends.names() == ["card", "cpu", "cuda", "echo", "mlx", "reference"]
    assert backends.get("echo").probe().available
    with pytest.raises(BackendError, match="used alone, not with card0"):
        devices.choose("echo", PlacementOptions(devices=("card0",)))


def test_its_gpu_takes_layers() -> None:
    def chosen(backend: str, *names: str) -> list[str]:
        return [device.name for device in devices.choose(backend, PlacementOptions(devices=names))]

    assert "card0" in chosen("auto")
    assert "echo" not in chosen("auto"), "it is no GPU"
    assert chosen("auto", "card0")[0] == chosen("card")[0] == "card0"
    assert "card0" not in chosen("auto", "none")


def test_a_model_runs_on_it(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with pyllm.load(path, backend="reference") as llm:
        wanted = llm.complete("a", max_tokens=4, temperature=0).tokens
    for options in ({"backend": "echo"}, {"backend": "card"}, {"devices": ["card0"]}):
        with pyllm.load(path, **options) as llm:
            assert llm.complete("a", max_tokens=4, temperature=0).tokens == wanted
            assert llm.devices == (options.get("backend", "card0").replace("card", "card0")[:5],)


def test_a_package_that_breaks_stops_nobody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyllm.backends]\nbroken = broken_backend:BACKEND\n")
    (tmp_path / "broken_backend.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "broken" in backends.names()
    with pytest.raises(BackendError, match="division by zero"):
        backends.get("broken")
    assert "card0" in [device.name for device in devices.choose("auto", PlacementOptions())]


# --- what conformance finds


def faulty(monkeypatch: pytest.MonkeyPatch, change: object) -> None:
    """The executable's values are changed: `change(array, batch)`."""
    from echo_backend import EchoExecutable

    plain = EchoExecutable.run_stage

    def run_stage(
        self: Executable, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]
    ) -> list[Crossing]:
        return [HostCrossing(change(c.host(), batch)) for c in plain(self, stage, batch, given, wanted)]  # type: ignore[operator]

    monkeypatch.setattr(EchoExecutable, "run_stage", run_stage)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, batch: x * 1.001, "NMSE"),
        (lambda x, batch: x[:, ::-1], "NMSE"),
        (lambda x, batch: x * float("inf"), "not finite"),
        (lambda x, batch: x * (1 + 1e-6 * (batch.n_seqs > 1)), "company"),
        (lambda x, batch: x[:1], "shape"),
    ],
)
def test_wrong_values_are_found(monkeypatch: pytest.MonkeyPatch, change: object, words: str) -> None:
    checks = conformance.checks("echo")
    checks["op-linear-plain"]()
    faulty(monkeypatch, change)
    with pytest.raises(AssertionError, match=words):
        checks["op-linear-plain"]()


def test_what_is_not_refused_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from echo_backend import EchoBackend

    checks = conformance.checks("echo")
    monkeypatch.setattr(EchoBackend, "kv_dtypes", ("f32",))
    monkeypatch.setattr(EchoBackend, "check", lambda self, program, options: None)
    for name in ("kv-f16", "importance"):
        with pytest.raises(AssertionError, match="not refused"):
            checks[name]()
