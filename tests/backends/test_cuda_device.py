"""Cards without a card: what is said where something is missing or fails, and the cupy launcher over a fake cupy."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_tools import card as first_card
from fake_cupy import CUDARuntimeError, FakeCuda, FakeLibrary, FakeNvrtc, install

from pyllm.backends.cuda import card, compiler, device, driver, failures
from pyllm.backends.cuda.card import CudaLauncher
from pyllm.backends.cuda.launch import fill, struct
from pyllm.backends.cuda.launcher import open_launcher
from pyllm.errors import BackendError, OutOfMemoryError

GIB = 1 << 30
RTX = "RTX 9999", (8, 6), 24 * GIB
OLD = "GTX 1080", (6, 1), 8 * GIB
ARGS = struct(x="ptr", y="ptr", n="int", factor="float")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No emulator, no card lost, nothing kept on disk or in the process."""
    monkeypatch.delenv("PYLLM_CUDA_EMULATOR", raising=False)
    monkeypatch.setenv("PYLLM_KERNEL_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(card, "_lost", {})
    card._cuda.cache_clear()
    yield
    card._cuda.cache_clear()


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have ctypes find these libraries of the driver, and no others."""

    def have(cuda: Any = None, management: Any = None) -> None:
        found = {"libcuda.so.1": cuda, "nvcuda.dll": cuda, "libnvidia-ml.so.1": management, "nvml.dll": management}
        monkeypatch.setattr(driver, "_library", found.get)

    return have


# --- the quick look


def test_no_driver(libraries: Callable[..., None]) -> None:
    libraries()
    assert not device.probe().available
    assert "no NVIDIA driver" in device.probe().reason
    assert device.devices() == []


@pytest.mark.parametrize(
    ("library", "says"),
    [
        (FakeLibrary.driver([], init=100), "sees no card.*CUDA_VISIBLE_DEVICES"),
        (FakeLibrary.driver([], init=803), "restart the machine"),
        (FakeLibrary.driver([], init=12345), "error 12345 of cuInit"),
        (FakeLibrary.driver([RTX], version=11040), "supports CUDA 11.4, which is too old: 12.0 or newer"),
        (FakeLibrary.driver([OLD]), "7.5 or newer is needed; GTX 1080 has 6.1"),
        (FakeLibrary.driver([]), "no card is visible"),
        (FakeLibrary.driver([RTX], query=3), "does not answer: error 3"),
    ],
)
def test_drivers_that_do_not_do(library: FakeLibrary, says: str, libraries: Callable[..., None]) -> None:
    libraries(library)
    with pytest.raises(BackendError, match=says):
        driver.cards()
    assert device.probe().reason


def test_cards_that_are_there(libraries: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(FakeLibrary.driver([OLD, RTX]), FakeLibrary.management(20 * GIB))
    install(monkeypatch, FakeCuda(), FakeNvrtc())
    (only,) = device.devices()  # the other is too old, but numbers stay the driver's
    assert (only.name, only.index, only.description) == ("cuda1", 1, "RTX 9999")
    assert (only.memory_free, only.memory_total, only.is_gpu) == (20 * GIB, 24 * GIB, True)
    probe = device.probe()
    assert probe.available
    assert (probe.device, probe.memory_free) == ("RTX 9999", 20 * GIB)
    assert re.fullmatch(r"RTX 9999, compute capability \d+\.\d, \d+ multiprocessors", probe.details["cuda1"])
    assert probe.details["driver"].startswith("for CUDA up to 1")
    assert 100 << 20 < device.overhead(1) < GIB


@pytest.mark.parametrize("management", [None, FakeLibrary.management(None)])
def test_free_memory_may_be_unknown(management: Any, libraries: Callable[..., None]) -> None:
    libraries(FakeLibrary.driver([RTX]), management)
    assert driver.cards()[0].memory_free is None


def test_a_part_of_a_card_has_no_more_free_than_it_has(libraries: Callable[..., None]) -> None:
    libraries(FakeLibrary.driver([RTX]), FakeLibrary.management(80 * GIB))
    assert driver.cards()[0].memory_free == 24 * GIB


def test_cupy_is_not_installed(libraries: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(FakeLibrary.driver([RTX]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'pyllm[cuda]'" in device.probe().reason
    with pytest.raises(BackendError, match="cupy is not installed"):
        open_launcher(0)


@pytest.mark.parametrize(
    ("flavour", "version", "says"),
    [
        ("cupy-cuda13x", 12080, "cupy-cuda13x does not run .* CUDA 12.8.*pip install cupy-cuda12x"),
        ("cupy-cuda11x", 13000, "pip install cupy-cuda13x"),
        ("cupy-cuda13x", 13000, None),
        ("cupy-cuda12x", 13000, None),
    ],
)
def test_cupy_of_another_cuda(
    flavour: str, version: int, says: str | None, libraries: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version_of(package: str) -> str:
        if package != flavour:
            raise importlib.metadata.PackageNotFoundError
        return "13.0"

    libraries(FakeLibrary.driver([RTX], version=version))
    install(monkeypatch, FakeCuda(), FakeNvrtc())
    monkeypatch.setattr(importlib.metadata, "version", version_of)
    if says is None:
        assert device.probe().available
    else:
        with pytest.raises(BackendError, match=says):
            driver.check_cupy()
        assert not device.probe().available


def test_looking_for_cards_does_not_import_cupy() -> None:
    code = "import sys; from pyllm.backends.cuda import device; device.probe(); print('cupy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- errors


@pytest.mark.parametrize(
    ("code", "versions", "says"),
    [
        (2, (12080, 12090), "cuda0 is out of memory.*-ngl"),
        (35, (0, 12090), "no NVIDIA driver"),
        (35, (12080, 13000), "cupy-cuda13x does not run .*cupy-cuda12x"),
        (35, (11040, 12090), "supports CUDA 11.4, which is too old for cupy .CUDA 12.9"),
        (100, (12080, 12090), "sees no card"),
        (700, (12080, 12090), "cuda0 is lost: a kernel used an address outside.*700"),
        (719, (12080, 12090), "cuda0 is lost"),
        (46, (12080, 12090), "cuda0: it is in use by another process"),
        (200, (12080, 12090), "damaged; delete the folder"),
        (209, (12080, 12090), "delete the folder"),
        (998, (12080, 12090), "cuda0 fails: words of CUDA"),
    ],
)
def test_errors_say_what_would_help(code: int, versions: tuple[int, int], says: str) -> None:
    error = failures.explain(code, "words of CUDA.\nand more", "cuda0", versions)
    assert isinstance(error, OutOfMemoryError) == (code == 2)
    with pytest.raises(BackendError, match=says):
        raise error


_CUPY_14 = 'Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: libnvrtc.so.13 or libnvrtc.so.12'


@pytest.mark.parametrize(
    ("flavour", "words", "says"),
    [
        ("", "CuPy failed to load libcuda.so.1: OSError: cannot open", "no NVIDIA driver here: libcuda.so.1"),
        ("", "CuPy failed to load libnvrtc.so.12: OSError: no", r"NVRTC.*libnvrtc.so.12.*'cupy-cuda12x\[ctk\]'"),
        ("", "CuPy failed to load libnvrtc.so.13: OSError: no", r"'cupy-cuda13x\[ctk\]', or nvidia-cuda-nvrtc$"),
        ("cupy-cuda12x", _CUPY_14, r"'cupy-cuda12x\[ctk\]', or nvidia-cuda-nvrtc-cu12$"),
        ("cupy-cuda13x", _CUPY_14, r"'cupy-cuda13x\[ctk\]', or nvidia-cuda-nvrtc$"),
        ("", "DLL load failed: nvrtc64_120_0.dll", r"NVRTC.*cupy-cuda12x"),
        ("", "libcudart.so.12: cannot open shared object file", "CUDA's runtime"),
    ],
)
def test_libraries_that_are_missing(flavour: str, words: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "is_installed", lambda package: package == flavour)
    error = failures.missing_library(ImportError(words))
    assert error is not None
    with pytest.raises(BackendError, match=says):
        raise error
    assert failures.missing_library(CUDARuntimeError(2)) is None


def test_cupy_without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(FakeNvrtc):
        def getVersion(self) -> tuple[int, int]:
            raise RuntimeError("CuPy failed to load libnvrtc.so.12: OSError: cannot open shared object file")

    install(monkeypatch, FakeCuda(), Missing())
    with pytest.raises(BackendError, match="does not find NVRTC"):
        CudaLauncher(0)


@pytest.mark.parametrize(("cuda", "wanted"), [(12, [12]), (13, [13]), (None, [12, 13])])
def test_nvrtc_of_a_package_is_loaded_first(
    cuda: int | None, wanted: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After its builtins, which that of CUDA 13.0 does not find by itself; of the version that cupy is made for."""
    packages = {"nvidia.cuda_nvrtc": 12, "nvidia.cu13": 13}
    for version in packages.values():
        folder = tmp_path / str(version) / "lib"
        folder.mkdir(parents=True)
        for name in (f"libnvrtc.so.{version}", f"libnvrtc-builtins.so.{version}.0", f"libnvrtc.alt.so.{version}"):
            (folder / name).touch()

    def find(name: str) -> SimpleNamespace:
        return SimpleNamespace(submodule_search_locations=[str(tmp_path / str(packages[name]))])

    monkeypatch.setattr(importlib.util, "find_spec", find)
    loaded: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode: loaded.append(Path(path).name))
    compiler.Nvrtc(FakeNvrtc(), cuda)
    assert loaded == [name for v in wanted for name in (f"libnvrtc-builtins.so.{v}.0", f"libnvrtc.so.{v}")]


def test_cupy_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeCuda(), FakeNvrtc())
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(BackendError, match="cupy cannot be imported"):
        CudaLauncher(0)


def test_cards_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(capability=(7, 0))
    install(monkeypatch, cuda, FakeNvrtc())
    with pytest.raises(BackendError, match=r"Fake GPU has compute capability 7.0; 7.5 or newer"):
        CudaLauncher(0)
    with pytest.raises(BackendError, match="no card cuda1; there are 1"):
        CudaLauncher(1)
    cuda.capability = (11, 0)
    with pytest.raises(BackendError, match=r"NVRTC 12.9 is too old for a card of compute capability 11.0"):
        CudaLauncher(0)
    cuda.fail["getDeviceCount"], cuda.versions = 35, (0, 12090)
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        CudaLauncher(0)
    assert not cuda.alive


# --- compiling


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of kernels that the fake compiler takes."""
    monkeypatch.setattr(compiler, "KERNELS", tmp_path)
    (tmp_path / "good.cu").write_text('#include "a.cuh"\n')
    (tmp_path / "a.cuh").write_text("")
    (tmp_path / "bad.cu").write_text("wrong")
    return tmp_path


def test_compiled_once_and_kept(sources: Path) -> None:
    fake = FakeNvrtc()
    nvrtc = compiler.Nvrtc(fake)
    first = nvrtc.cubin("good.cu", {"B": 2, "A": "x"}, "sm_90")
    assert first == b'#include "a.cuh"\n\0'
    assert nvrtc.cubin("good.cu", {"A": "x", "B": 2}, "sm_90") == first
    assert len(fake.compiled) == 1
    assert {"-arch=sm_90", "-DA=x", "-DB=2"} <= set(fake.compiled[0])
    nvrtc.cubin("good.cu", {"A": "y"}, "sm_90")
    nvrtc.cubin("good.cu", {"A": "y"}, "sm_80")
    (sources / "a.cuh").write_text("int changed;")
    nvrtc.cubin("good.cu", {"A": "y"}, "sm_80")
    assert len(fake.compiled) == 4
    fake.version = (13, 0)
    compiler.Nvrtc(fake).cubin("good.cu", {"A": "y"}, "sm_80")
    assert len(fake.compiled) == 5
    assert not fake.programs


def test_a_damaged_cubin_is_compiled_again(sources: Path) -> None:
    fake = FakeNvrtc()
    nvrtc = compiler.Nvrtc(fake)
    first = nvrtc.cubin("good.cu", {}, "sm_90")
    (kept,) = compiler.cache_folder().glob("good-*.cubin")
    kept.write_bytes(bytes(kept.stat().st_size))
    assert nvrtc.cubin("good.cu", {}, "sm_90") == first
    assert len(fake.compiled) == 2


def test_errors_of_the_compiler_come_through(sources: Path) -> None:
    fake = FakeNvrtc()
    with pytest.raises(BackendError, match=r"(?s)bad.cu with \{'N': 1\} does not compile for sm_90.*what is this"):
        compiler.Nvrtc(fake).cubin("bad.cu", {"N": 1}, "sm_90")
    assert not fake.programs
    assert not [p for p in (sources / "kept").rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("capability", "arch"), [((7, 5), "sm_75"), ((8, 7), "sm_86"), ((9, 0), "sm_90"), ((12, 1), "sm_120")]
)
def test_a_card_takes_the_code_of_its_generation(capability: tuple[int, int], arch: str) -> None:
    assert compiler.Nvrtc(FakeNvrtc()).arch(capability) == arch


# --- the launcher


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, sources: Path) -> FakeCuda:
    """A card with one kernel, which adds factor * x to y."""
    fake = FakeCuda(n_devices=2)

    def add(args: bytes) -> None:
        a = np.frombuffer(args, ARGS)[0]
        x, y = (np.ctypeslib.as_array((ctypes.c_float * int(a["n"])).from_address(int(a[k]))) for k in "xy")
        y += a["factor"] * x

    fake.functions["add"], fake.arg_bytes = add, ARGS.itemsize
    install(monkeypatch, fake, FakeNvrtc())
    return fake


def test_work_on_a_card(cuda: FakeCuda) -> None:
    d = CudaLauncher(1)
    assert (d.name, d.arch, d.n_sm, d.max_shared, cuda.device) == ("Fake GPU", "sm_90", 8, 100 << 10, 1)
    heard: list[float] = []
    d.prepare([("good.cu", {}, ["add"])], heard.append)
    assert heard == [1.0]
    (kernel,) = d.kernels("good.cu", {}, ["add"])
    assert d.kernels("good.cu", {}, ["add"]) is not None
    assert len(cuda.of("module")) == 1
    x, y = d.allocate(64), d.allocate(64)
    assert d.memory() == ((1 << 20) - 128, 1 << 20)
    host = d.pinned(64).view(np.float32)
    host[:] = np.arange(16)
    d.upload(x, host)
    d.zero(y, 64)
    args = fill(ARGS, x=x, y=y, n=16, factor=2.0)
    d.launch(kernel, (3, 2, 1), 128, args, shared=99 << 10)
    args["factor"] = 100  # arguments are taken when it is enqueued
    out = np.zeros(16, np.float32)
    d.download(out, y)
    event = d.record()
    assert not event.done()
    assert not out.any()
    event.wait()
    assert event.done()
    np.testing.assert_array_equal(out, 2 * np.arange(16))
    assert event.seconds_since(d.record(timing=True)) == 0.0025
    d.copy(x, y, 64)
    d.download(out, x, wait=True)
    np.testing.assert_array_equal(out, 2 * np.arange(16))
    with pytest.raises(ValueError, match="contiguous"):
        d.upload(x, host[::2])
    d.release(x)
    d.release(x)
    d.close()
    d.close()
    del event, host
    gc.collect()
    assert {kind for kind, _ in cuda.alive} <= {"function"}
    for call in (d.synchronize, d.memory, lambda: d.allocate(1)):
        with pytest.raises(BackendError, match="was closed"):
            call()
    d.release(y)


def test_graphs(cuda: FakeCuda) -> None:
    d = CudaLauncher(0)
    (kernel,) = d.kernels("good.cu", {}, ["add"])
    x, y = d.allocate(16), d.allocate(16)
    d.zero(y, 16)
    d.upload(x, np.ones(4, np.float32), wait=True)
    args = fill(ARGS, x=x, y=y, n=4, factor=1.0)
    with d.capture() as graph:
        d.launch(kernel, (1, 1, 1), 32, args)
        d.launch(kernel, (1, 1, 1), 32, args)
    out = np.zeros(4, np.float32)
    d.download(out, y, wait=True)
    assert not out.any()
    for n in (2, 4):
        graph.launch()
        d.download(out, y, wait=True)
        assert (out == n).all()
    with pytest.raises(BackendError, match="fails"), d.capture():
        d.kernels("good.cu", {}, ["nonesuch"])
    assert not cuda.of("graph")
    cuda.fail["graphInstantiate"] = 2
    with pytest.raises(OutOfMemoryError), d.capture():
        d.zero(x, 16)
    assert not cuda.of("graph")
    d.synchronize()
    assert len(cuda.of("exec")) == 1
    del graph
    gc.collect()
    assert not cuda.of("exec")


def test_copies_between_cards(cuda: FakeCuda) -> None:
    one, two = CudaLauncher(0), CudaLauncher(1)
    a, b, c = one.allocate(16), two.allocate(16), two.allocate(16)
    one.upload(a, np.arange(4, dtype=np.float32), wait=True)
    two.stream_wait(one.record())
    two.copy_peer(b, one, a, 16)
    two.copy_peer(c, two, b, 16)
    two.copy_peer(b, one, a, 16)
    out = np.zeros(4, np.float32)
    two.download(out, c, wait=True)
    np.testing.assert_array_equal(out, np.arange(4))
    assert cuda.calls.count("deviceEnablePeerAccess") == 1
    assert cuda.calls.count("memcpyPeerAsync") == 2


def test_out_of_memory_leaves_the_card_usable(cuda: FakeCuda) -> None:
    d = CudaLauncher(0)
    kept = d.allocate(1000)
    with pytest.raises(OutOfMemoryError, match="1,048,576 bytes were wanted of Fake GPU, where 1,047,576 of 1,048,576"):
        d.allocate(1 << 20)
    d.zero(kept, 1000)
    cuda.fail["launchKernel"] = 2  # a kernel's code is loaded at its first launch
    (kernel,) = d.kernels("good.cu", {}, ["add"])
    with pytest.raises(OutOfMemoryError, match="Fake GPU is out of memory"):
        d.launch(kernel, (1, 1, 1), 32, fill(ARGS, x=0, y=0, n=0, factor=0.0))
    cuda.fail.clear()
    d.synchronize()


def test_memory_that_cannot_be_locked_is_not_the_cards(cuda: FakeCuda) -> None:
    d = CudaLauncher(0)
    cuda.fail["hostAlloc"] = 2
    with pytest.raises(OutOfMemoryError, match="the system has no 64 bytes of memory that may be locked"):
        d.pinned(64)
    cuda.fail.clear()
    d.synchronize()


def test_a_card_in_use_may_be_free_later(cuda: FakeCuda) -> None:
    cuda.fail["setDevice"] = 46
    with pytest.raises(BackendError, match="in use by another process"):
        CudaLauncher(0)
    cuda.fail.clear()
    CudaLauncher(0).synchronize()


def test_kernels_that_are_not_there(cuda: FakeCuda) -> None:
    d = CudaLauncher(0)
    with pytest.raises(BackendError, match="Fake GPU fails"):
        d.kernels("good.cu", {}, ["nonesuch"])
    with pytest.raises(BackendError, match="does not compile"):
        d.prepare([("good.cu", {}, ["add"]), ("bad.cu", {}, ["add"])])
    d.synchronize()


@pytest.mark.parametrize(
    "where", ["eventSynchronize", "streamSynchronize", "launchKernel", "graphLaunch", "memcpyAsync"]
)
def test_a_lost_card_says_so_and_can_be_closed(where: str, cuda: FakeCuda) -> None:
    d, other = CudaLauncher(0), CudaLauncher(1)
    (kernel,) = d.kernels("good.cu", {}, ["add"])
    x = d.allocate(16)
    args = fill(ARGS, x=x, y=x, n=4, factor=1.0)
    with d.capture() as graph:
        d.zero(x, 16)
    event = d.record()
    cuda.fail[where] = 700
    calls: dict[str, Callable[[], object]] = {
        "eventSynchronize": event.wait,
        "streamSynchronize": d.synchronize,
        "launchKernel": lambda: d.launch(kernel, (1, 1, 1), 32, args),
        "graphLaunch": graph.launch,
        "memcpyAsync": lambda: d.copy(x, x, 16),
    }
    with pytest.raises(BackendError, match=r"Fake GPU is lost.*700") as first:
        calls[where]()
    cuda.fail.clear()
    for call in (*calls.values(), event.done, d.memory, d.record, lambda: d.allocate(4), lambda: CudaLauncher(0)):
        with pytest.raises(BackendError) as again:
            call()
        assert str(again.value) == str(first.value)
    other.synchronize()  # the other card goes on
    cuda.fail.update(dict.fromkeys(("free", "streamSynchronize", "moduleUnload", "streamDestroy", "eventDestroy"), 700))
    d.release(x)
    d.close()
    del event, graph
    gc.collect()


def test_a_lost_card_is_noticed_by_asking(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    d = CudaLauncher(0)
    event = d.record()
    monkeypatch.setattr(cuda, "eventQuery", lambda handle: 719)
    with pytest.raises(BackendError, match="Fake GPU is lost"):
        event.done()
    with pytest.raises(BackendError, match="Fake GPU is lost"):
        d.synchronize()


def test_pinned_memory_outlives_the_launcher(cuda: FakeCuda) -> None:
    """Results that a caller still holds must not vanish with the model."""
    d = CudaLauncher(0)
    view = d.pinned(64).view(np.float32)[2:5]
    d.close()
    gc.collect()
    view[:] = 3
    assert len(cuda.of("host")) == 1
    del view
    gc.collect()
    assert not cuda.of("host")


@pytest.mark.gpu
def test_a_real_card_says_what_it_is() -> None:
    d = first_card()
    free, total = d.memory()
    assert 0 < free <= total
    assert d.arch.startswith("sm_")
    assert d.n_sm > 0
    assert d.max_shared >= 48 << 10
    (found,) = [x for x in device.devices() if x.index == 0]
    assert found.memory_total is not None
    assert abs(found.memory_total - total) < total // 10
    with pytest.raises(OutOfMemoryError):
        d.allocate(2 * total)
    d.release(d.allocate(1 << 20))
