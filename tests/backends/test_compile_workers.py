"""Processes that compile kernels: kept for the next ones, ended when unused, and gone when one fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllm.errors import BackendError
from pyllm.jit import workers
from pyllm.jit.compiler import Kernel, compile_missing, kernel


def elementwise(kind: str) -> Kernel:
    return kernel("backends.cpu.kernels.elementwise", "elementwise", kind=kind)


def test_a_worker_is_kept_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_KEPT", 0.0)
    workers._end_unused()
    monkeypatch.setattr(workers, "_KEPT", 600.0)
    compile_missing([elementwise("add")], tmp_path)
    (first,) = workers._idle
    compile_missing([elementwise("scale")], tmp_path)
    assert workers._idle == [first]
    assert len(list(tmp_path.glob("*.o"))) == 2
    monkeypatch.setattr(workers, "_KEPT", 0.0)
    workers._end_unused()
    assert not workers._idle
    assert first._process.poll() is not None


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"(?s)compiling a kernel failed.*KeyError"):
        compile_missing([elementwise("nonsense"), elementwise("add")], tmp_path)
    compile_missing([elementwise("scale")], tmp_path)
    assert any("scale" in path.name for path in tmp_path.glob("*.o"))
