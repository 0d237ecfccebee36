"""Which devices a model may use: on this machine, and with GPUs that are made up."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm import backends
from pyllm.backends import devices
from pyllm.backends.base import DeviceInfo
from pyllm.config import PlacementOptions
from pyllm.errors import BackendError, RequestError

CPU = DeviceInfo("cpu", "cpu", 0, "a processor", 1 << 34, None, False)
GPUS = [DeviceInfo(f"cuda{i}", "cuda", i, "a card", 1 << 33, 1 << 34, True) for i in range(2)]
MLX_CPU = DeviceInfo("mlx0", "mlx", 0, "a processor", 1 << 34, None, False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(backends.get("cuda")), "devices", lambda self: GPUS)
    found = {"cpu": [CPU], "cuda": GPUS, "mlx": [MLX_CPU], "reference": [replace(CPU, name="reference")]}
    monkeypatch.setattr(devices, "list_gpus", lambda names: GPUS)
    monkeypatch.setattr(devices, "_usable", lambda backend: found[backend])
    monkeypatch.setattr(devices, "_processor", lambda: [CPU])


def names(backend: str, **options: object) -> list[str]:
    return [d.name for d in devices.choose(backend, PlacementOptions(**options))]  # type: ignore[arg-type]


@pytest.mark.usefixtures("two_gpus")
def test_choose() -> None:
    assert names("auto") == names("cuda") == ["cuda0", "cuda1", "cpu"]
    assert names("cpu") == ["cpu"]
    assert names("reference") == ["reference"]
    assert names("mlx") == ["mlx0", "cpu"]
    assert names("auto", devices=("CUDA1",)) == ["cuda1", "cpu"]
    assert names("auto", devices=("cuda1", "cuda0", "cuda1")) == ["cuda1", "cuda0", "cpu"]
    assert names("auto", devices=("None",)) == names("auto", devices=("cpu",)) == ["cpu"]
    assert names("cpu", devices=("none",)) == ["cpu"]
    with pytest.raises(BackendError, match="no GPU cuda7 here: there are cuda0, cuda1"):
        names("auto", devices=("cuda7",))
    with pytest.raises(BackendError, match="'cpu' is used alone, not with cuda0"):
        names("cpu", devices=("cuda0",))


@pytest.mark.usefixtures("two_gpus")
def test_a_device_that_is_named_takes_layers() -> None:
    """mlx's CPU build is no GPU, and is used like one where somebody asks for it."""
    assert devices.choose("mlx", PlacementOptions())[0].is_gpu


def test_what_is_no_gpu_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlx.core")
    monkeypatch.setattr(type(backends.get("cuda")), "installed", lambda self: False)
    assert [(d.name, d.is_gpu) for d in devices.list_gpus(["MLX0"])] == [("mlx0", True)]
    assert not devices.list_gpus(["mlx1", "cuda0"]) or sys.platform == "darwin"


def test_without_gpus_there_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "list_gpus", lambda names: [])
    monkeypatch.setattr(devices, "_usable", lambda backend: [CPU])
    assert names("auto", n_gpu_layers="all") == ["cpu"]
    with pytest.raises(BackendError, match="doctor"):
        names("auto", devices=("cuda0",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_gpu_layers": -2},
        {"n_gpu_layers": "some"},
        {"n_gpu_layers": True},
        {"n_cpu_moe": -1},
        {"main_gpu": -1},
        {"tensor_split": (0.0,)},
        {"tensor_split": (1.0, float("nan"))},
        {"override_tensors": (("(", "cpu"),)},
    ],
)
def test_placements_that_no_devices_have(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        PlacementOptions(**wrong)  # type: ignore[arg-type]


def test_a_run_on_the_cpu_imports_no_gpu_package(arch_file: Callable[[str], Path]) -> None:
    pytest.importorskip("llvmlite")
    path = arch_file("llama-dense")
    for backend in ("auto", "cpu"):
        script = (
            f"import sys, pyllm\nwith pyllm.load({str(path)!r}, backend={backend!r}) as llm:\n"
            "    llm.complete([1, 2, 3], max_tokens=2)\n    assert llm.devices == ('cpu',), llm.devices\n"
            "print(*sys.modules)"
        )
        loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        if backend == "auto" and "AssertionError: ('" in loaded.stderr:
            pytest.skip("there is a GPU here")
        assert loaded.returncode == 0, loaded.stderr
        assert not {m for m in loaded.stdout.split() if m.split(".")[0] in ("cupy", "cupy_backends", "mlx")}


@pytest.mark.parametrize("backend", ["mlx", "cuda"])
def test_load_splits_a_model(arch_file: Callable[[str], Path], backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    else:
        pytest.importorskip("cupy")
        if shutil.which("g++") is None:
            pytest.skip("the emulator needs g++")
        monkeypatch.setenv("PYLLM_CUDA_EMULATOR", "1")
    path, tokens = arch_file("llama-dense"), list(range(3, 19))
    with pyllm.load(path, backend="cpu", kv_dtype="f32") as llm:
        wanted = llm.logits(tokens)
        n_layers = llm.architecture.n_layers
    gpu = f"{backend}0"
    for n, used in ((0, {"cpu"}), (n_layers // 2, {gpu, "cpu"}), ("all", {gpu})):
        with pyllm.load(path, backend=backend, kv_dtype="f32", n_gpu_layers=n) as llm:
            assert set(llm.devices) == used
            assert np.sum((llm.logits(tokens) - wanted) ** 2) <= 1e-4 * np.sum(wanted**2)
            assert len(llm.complete(tokens, max_tokens=3, temperature=0).tokens) == 3
