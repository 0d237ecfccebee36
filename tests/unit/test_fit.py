"""What a model takes: predictions against what an executable holds, and what a process's peak is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pyllm.backends.base import DeviceInfo
from pyllm.bench.presets import open_preset
from pyllm.config import ExecutionOptions, LoadSettings, PlacementOptions
from pyllm.llm import loading
from pyllm.llm.fit import DeviceFit, _with_process, fit
from pyllm.llm.loading import compile_model, execution_options, with_slots
from pyllm.program import SlotSpec
from pyllm.testing.models import Shape, transformer

pytest.importorskip("llvmlite")


@pytest.mark.parametrize("preset", ["tiny:Q4_K_M", "tiny-moe:Q8_0"])
def test_parts_are_what_the_executable_holds(preset: str) -> None:
    with open_preset(preset) as model:
        options = execution_options(256, LoadSettings(max_seqs=2, n_rows=2, n_threads=2))
        found = fit(model, 256, options, "cpu")
        (device,) = found.devices
        compiled = compile_model(model, 256, options, "cpu")
        held = compiled.executable.memory()
        compiled.executable.close()
    assert {"weights": device.weights, "kv": device.kv, "work": device.work} == held
    assert sum(layer.kv for layer in found.layers) == device.kv
    assert sum(layer.weights for layer in found.layers) == pytest.approx(device.weights, rel=0.02)
    assert [layer.name for layer in found.layers] == ["embedding", *map(str, range(found.n_layers)), "output"]
    assert found.n_gpu_layers == 0
    assert found.fits
    assert found.process == device.total


def test_weights_are_not_needed() -> None:
    with open_preset("llama3-70b:Q4_K_M", with_weights=False) as model:
        found = fit(model, 8192, execution_options(8192, LoadSettings(max_seqs=1, n_threads=2)), "cpu")
    assert found.n_layers == 80
    assert 40e9 < found.devices[-1].weights < 50e9
    assert found.devices[-1].kv == 8192 * 80 * 2 * 8 * 128 * 2


def test_layers_on_an_emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")
    monkeypatch.setenv("PYLLM_CUDA_EMULATOR", "1")
    options = execution_options(256, LoadSettings(max_seqs=1, n_threads=2))
    with open_preset("tiny:Q4_K_M", with_weights=False) as model:
        found = fit(model, 256, options, "cuda", PlacementOptions(n_gpu_layers=2))
        assert [layer.devices for layer in found.layers] == [("cpu",)] * 4 + [("cuda0",)] * 2
        assert found.n_gpu_layers == 2
        whole = fit(model, 256, options, "cuda", PlacementOptions(n_gpu_layers="auto"))
        assert [device.device.name for device in whole.devices] == ["cuda0", "cpu"]
        assert whole.devices[-1].weights == 0
        assert whole.n_gpu_layers == 5


def test_devices_that_share_the_memory_of_the_process_fit_together_or_not_at_all() -> None:
    cpu = DeviceInfo("cpu", "cpu", 0, "", 100, None, False)
    mlx, cuda = (DeviceInfo(f"{name}0", name, 0, "", 100, None, True) for name in ("mlx", "cuda"))
    for gpu, n_other, all_fits in ((mlx, 1060, False), (cuda, 1000, True)):
        parts = [DeviceFit(gpu, 60, 0, 0, 0), DeviceFit(cpu, 60, 0, 0, 0)]
        *_, process = _with_process(parts, [gpu, cpu], 1000)
        assert process.other == n_other
        assert process.fits == all_fits, "what the process has already is not wanted again"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is told apart on Linux only")
def test_predicted_peak_is_the_process_s(arch_file: Callable[[str], Path]) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "fit.py"
    model = str(arch_file("llama-dense"))
    command = [sys.executable, str(script), model, "-c", "2048", "--backend", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is told apart on Linux only")
def test_predicted_peak_of_a_real_model(model_path: object) -> None:
    assert callable(model_path)
    script = Path(__file__).parents[2] / "benchmarks" / "fit.py"
    command = [sys.executable, str(script), str(model_path("smollm2")), "-c", "2048", "--backend", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_command() -> None:
    arguments = ["fit", "--preset", "8b:Q4_K_M", "-c", "4096", "--backend", "cpu"]
    done = subprocess.run([sys.executable, "-m", "pyllm", *arguments], capture_output=True, text=True, check=True)
    assert "llama3-8b:Q4_K_M, context of 4096 tokens, 0 of 33 layers on GPUs" in done.stdout
    assert "peak memory of the process" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "pyllm", *arguments, "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert [layer["name"] for layer in found["layers"]][:2] == ["embedding", "0"]
    assert found["devices"][-1]["kv"] == 4096 * 32 * 2 * 8 * 128 * 2


def test_large_recurrent_states_leave_room_for_fewer_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    small = transformer(Shape(n_layers=2, recurrent=True)).program
    program = replace(small, states=(SlotSpec((16, 1024, 1024)),))
    options = ExecutionOptions(n_pages=8, max_seqs=16)
    for gib, n_seqs in ((4, 8), (32, 16), (None, 8)):
        monkeypatch.setattr(loading, "total_memory", lambda gib=gib: None if gib is None else gib << 30)
        found = with_slots(options, program)
        assert (found.max_seqs, found.n_slots) == (n_seqs, 2 * n_seqs + 8)
    monkeypatch.setattr(loading, "total_memory", lambda: 1 << 30)
    huge = replace(program, states=(SlotSpec((1024, 1024, 1024)),))
    assert with_slots(options, huge).max_seqs == 1
