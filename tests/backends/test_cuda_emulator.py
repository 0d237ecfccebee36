"""What kernels are made of, one by one against numpy: on the emulator, and on a card where there is one."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_tools import DEVICES, card, emulator, run
from numpy.typing import NDArray

from pyllm.backends.cuda import compiler
from pyllm.backends.cuda.launch import fill, struct
from pyllm.backends.cuda.launcher import Launcher, open_launcher
from pyllm.errors import BackendError, OutOfMemoryError
from pyllm.testing.cuda import emulated
from pyllm.testing.cuda.emulated import EmulatedLauncher

SOURCE = str(Path(__file__).with_name("cuda_primitives.cu"))
Device = Callable[[], Launcher]
PORTABLE = {"EMULATE_PORTABLE": 1}
"""What processors without ways of their own take."""
everywhere = pytest.mark.parametrize("device", DEVICES)


def call(device: Device, name: str, out: NDArray[Any], *inputs: NDArray[Any], n: int = 0, **how: Any) -> None:
    """Run a kernel that takes `Pointers`."""
    a, b, c = (*inputs, None, None, None)[:3]
    grid, block, shared = how.get("grid", (1, 1, 1)), how.get("block", 32), how.get("shared", 0)
    run(device(), SOURCE, name, grid, block, how.get("defines"), shared, a=a, b=b, c=c, out=out, n=n)


def by_thread(n: int) -> dict[str, Any]:
    return {"grid": (-(-n // 256), 1, 1), "block": 256, "n": n}


@pytest.mark.parametrize(
    ("device", "defines"), [(emulator, {}), (emulator, PORTABLE), pytest.param(card, {}, marks=pytest.mark.gpu)]
)
def test_every_half_and_rounding_to_halves(device: Device, defines: dict[str, int], rng: np.random.Generator) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    x = rng.integers(0, 2**32, 65536, dtype=np.uint32).view(np.float32)
    x[np.isnan(x)] = 0
    exact = bits.view(np.float16).astype(np.float32)
    finite = np.isfinite(exact)
    x[:30000] = (exact[:30000] + exact[1:30001]) / 2  # ties
    x[30000:60000] = np.nextafter(x[:30000], np.float32(0))
    x[-4:] = 65519.99, 65520.0, -1e30, 2.9802322e-08
    out = np.zeros(2 * 65536, np.float32)
    call(device, "halves", out, bits, x, **by_thread(65536), defines=defines)
    np.testing.assert_array_equal(out[:65536][finite], exact[finite])
    assert np.isnan(out[:65536][np.isnan(exact)]).all()
    got = out[65536:].view(np.uint16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got[:65536], x.astype(np.float16).view(np.uint16))
    nearest = (x.view(np.uint32).astype(np.uint64) + 0x7FFF + (x.view(np.uint32) >> 16 & 1)) >> 16
    np.testing.assert_array_equal(got[65536:], nearest.astype(np.uint16))


def nearest_half(x: Fraction) -> np.float16:
    """The half nearest to a number, of two the even one."""
    guess = np.float16(float(x))
    near = [guess, np.nextafter(guess, np.float16(-60000)), np.nextafter(guess, np.float16(60000))]
    return min(near, key=lambda h: (abs(Fraction(float(h)) - x), h.view(np.uint16) & 1))


@everywhere
def test_arithmetic_on_pairs_of_halves(device: Device, rng: np.random.Generator) -> None:
    n = 1500
    a, b, c = (rng.normal(0, 1, (3, n, 2)) * 2.0 ** rng.integers(-12, 6, (3, n, 2))).astype(np.float16)
    c[:700] = -(a * b)[:700] + np.float16(2**-20)  # cancellation, where two roundings differ from one
    out = np.zeros((6, n, 2), np.float16)
    call(device, "pairs", out, a, b, c, **by_thread(n))
    for got, want in zip(out, (a + b, a - b, a * b, np.maximum(a, b)), strict=False):
        np.testing.assert_array_equal(got, want)
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a.flat, b.flat, c.flat, strict=True)
    ]
    np.testing.assert_array_equal(out[4].ravel(), [nearest_half(x) for x in exact])
    np.testing.assert_array_equal(out[5], np.stack([a[:, 0], b[:, 1]], 1))


@everywhere
def test_integers(device: Device, rng: np.random.Generator) -> None:
    n = 2000
    x, y, z = rng.integers(0, 2**32, (3, n), dtype=np.uint32)
    out = np.zeros((14, n), np.uint32)
    call(device, "integers", out, x, y, z, **by_thread(n))
    ints = [int(v) for v in x], [int(v) for v in y], [int(v) for v in z]
    bytes_of = [v.view(np.int8).reshape(n, 4).astype(np.int64) for v in (x, y)]
    np.testing.assert_array_equal(out[0], ((bytes_of[0] * bytes_of[1]).sum(1) + z).astype(np.uint32))
    unsigned = [v.view(np.uint8).reshape(n, 4).astype(np.int64) for v in (x, y)]
    np.testing.assert_array_equal(out[1], ((unsigned[0] * unsigned[1]).sum(1) + z).astype(np.uint32))
    np.testing.assert_array_equal(out[3], x & y ^ z)

    def permuted(a: int, b: int, selector: int) -> int:
        all8 = (b << 32 | a).to_bytes(8, "little")
        selects_rows = [selector >> 4 * i & 15 for i in range(4)]
        return int.from_bytes([(255 * (all8[p & 7] >> 7)) if p & 8 else all8[p] for p in selects_rows], "little")

    def of(function: Callable[[int, int, int], int]) -> list[int]:
        return [function(*v) for v in zip(*ints, strict=True)]

    top = 2**32
    assert out[2].tolist() == of(permuted)
    assert out[4].tolist() == of(lambda a, b, c: a.bit_count())
    assert out[5].tolist() == of(lambda a, b, c: 32 - (a >> (c & 31)).bit_length())
    assert out[6].tolist() == of(lambda a, b, c: ((s := a << (c & 31) & (top - 1)) & -s).bit_length())
    assert out[7].tolist() == of(lambda a, b, c: int(f"{a:032b}"[::-1], 2))
    assert out[8].tolist() == of(lambda a, b, c: ((b << 32 | a) << (c & 31)) >> 32 & (top - 1))
    assert out[9].tolist() == of(lambda a, b, c: (b << 32 | a) >> (c & 31) & (top - 1))
    assert out[10].tolist() == of(lambda a, b, c: a * b >> 32)
    floats = ((x & 0x807FFFFF) | (y & 31) << 23 | 0x3F000000).view(np.float32).astype(np.float64)
    for got, rounded in ((out[11], np.rint(floats)), (out[12], np.trunc(floats))):
        np.testing.assert_array_equal(got.view(np.int32), np.clip(rounded, -(2**31), 2**31 - 1).astype(np.int32))
    np.testing.assert_array_equal(
        out[13], np.maximum(x.view(np.int32), y.view(np.int32)).view(np.uint32) + np.minimum(x, z)
    )


@everywhere
def test_fast_math(device: Device, rng: np.random.Generator) -> None:
    x = np.concatenate([rng.normal(0, 3, 3000), np.linspace(-87, 87, 500), [1e-20, -1e-20]]).astype(np.float32)
    out = np.zeros((8, len(x)), np.float32)
    call(device, "math", out, x, **by_thread(len(x)))
    w = x.astype(np.float64)
    np.testing.assert_allclose(out[0], np.exp(w), rtol=1.2e-5)  # an exponent of 100 has an absolute error of 4e-6
    np.testing.assert_allclose(out[1], np.tanh(w), atol=4e-7)
    np.testing.assert_allclose(out[2], 1 / (1 + np.exp(-w)), rtol=1.2e-5)
    np.testing.assert_allclose(out[3], np.exp2(w), rtol=1e-6)
    np.testing.assert_allclose(out[4], np.log2(np.abs(w)), rtol=1e-6, atol=4e-7)
    np.testing.assert_allclose(out[5], np.abs(w) ** -0.5, rtol=1e-6)
    np.testing.assert_allclose(out[6], 1 / w, rtol=1e-6)
    np.testing.assert_array_equal(out[7], (w * w + 1).astype(np.float32))


@everywhere
def test_shuffles_and_votes(device: Device, rng: np.random.Generator) -> None:
    x, source = rng.integers(0, 100, 32, dtype=np.int32), rng.integers(0, 64, 32, dtype=np.int32)
    out = np.zeros((3, 7, 32), np.int32)
    call(device, "shuffles", out, x, source)
    lane = np.arange(32)
    for got, width in zip(out, (32, 16, 8), strict=True):
        start = lane & ~(width - 1)

        def taken(of: NDArray[np.int64], start: NDArray[np.int64] = start, width: int = width) -> NDArray[np.int32]:
            return x[np.where((of >= start) & (of < start + width), of, lane)]

        np.testing.assert_array_equal(got[0], x[start | source & width - 1])
        # xor is the one that may read lanes of an earlier part
        np.testing.assert_array_equal(got[1], x[np.where((lane ^ 5) <= (lane | width - 1), lane ^ 5, lane)])
        np.testing.assert_array_equal(got[2], taken(lane + 3))
        np.testing.assert_array_equal(got[3], taken(lane - 3))
        votes = int(sum(1 << i for i in range(32) if x[i] % 3 == 0))
        assert (got[4].view(np.uint32) == votes).all()
        assert (got[5] == 2 * int((x == got[0]).any()) + 1).all()
        np.testing.assert_array_equal(got[6], x[31 - lane])


@everywhere
def test_halves_of_a_warp_go_their_own_ways(device: Device, rng: np.random.Generator) -> None:
    x, out = rng.integers(0, 1000, 32, dtype=np.int32), np.zeros(32, np.int32)
    call(device, "halves_of_a_warp", out, x)
    np.testing.assert_array_equal(out, np.repeat([x[:16].sum(), x[16:].max()], 16))


@everywhere
@pytest.mark.parametrize("threads", [32, 64, 256, 1024])
def test_reductions(device: Device, threads: int, rng: np.random.Generator) -> None:
    x = rng.normal(0, 1, (3, threads)).astype(np.float32)
    out = np.zeros((3, 7), np.float32)
    call(device, "reductions", out, x, grid=(3, 1, 1), block=threads, n=threads - 1)  # as the last thread sees them
    last, ints = x[:, -32:], (x[:, -32:] * 100).astype(np.int32)
    np.testing.assert_allclose(out[:, 0], x.sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out[:, 1], x.max(1))
    np.testing.assert_allclose(out[:, 2], last.sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out[:, 3], last.max(1))
    np.testing.assert_array_equal(out[:, 4], ints.sum(1))
    np.testing.assert_array_equal(out[:, 5], ints.max(1))
    np.testing.assert_allclose(out[:, 6], last[:, -8:].sum(1), rtol=1e-5, atol=1e-5)


@everywhere
def test_matrix_products(device: Device, rng: np.random.Generator) -> None:
    a, b = rng.normal(0, 1, (16, 16)).astype(np.float16), rng.normal(0, 1, (16, 8)).astype(np.float16)
    a8, b8 = rng.integers(-128, 128, (16, 32), dtype=np.int8), rng.integers(-128, 128, (32, 8), dtype=np.int8)
    out = np.zeros((3, 16, 8), np.float32)
    both = np.concatenate([a8.ravel(), b8.T.ravel()])
    call(device, "products", out, a, b, both, block=64, shared=768)
    want = 1 + a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out[0], want, atol=1e-5)
    np.testing.assert_array_equal(out[1], out[0])
    np.testing.assert_array_equal(out[2].view(np.int32), a8.astype(np.int32) @ b8.astype(np.int32) - 5)


@everywhere
def test_matrices_from_shared_memory(device: Device, rng: np.random.Generator) -> None:
    m = rng.integers(0, 65536, (4, 8, 8), dtype=np.uint16)
    out = np.zeros((14, 32), np.uint32)
    call(device, "matrices", out, m, shared=512)
    plain, turned = (np.ascontiguousarray(v).view(np.uint32).reshape(4, 32) for v in (m, m.transpose(0, 2, 1)))
    want = [plain[:1], turned[:1], plain[:2], turned[:2], plain, turned]
    np.testing.assert_array_equal(out, np.concatenate(want))


@everywhere
@pytest.mark.parametrize("n", [1, 2, 7])
def test_copies_that_are_waited_for(device: Device, n: int, rng: np.random.Generator) -> None:
    x, out = rng.integers(-50, 50, (n, 4, 128)).astype(np.float32), np.zeros(128, np.float32)
    call(device, "pipeline", out, x, n=n, block=128, shared=3 * 2048)
    odd = np.where(np.arange(128) % 2, x.ravel()[: 4 * 128 : 4], 0)
    np.testing.assert_array_equal(out, np.roll(x.sum((0, 1)), -1) + odd)


@everywhere
def test_copies_of_every_size(device: Device, rng: np.random.Generator) -> None:
    x, out = rng.normal(0, 1, 66).astype(np.float32), np.zeros(128, np.float32)
    call(device, "small_copies", out, x, shared=512)
    np.testing.assert_array_equal(out, np.concatenate([x[1:33], x[2:66], x[:32]]))


def test_a_copy_that_nobody_waits_for_has_not_happened() -> None:
    out = np.zeros(32, np.float32)
    call(EmulatedLauncher, "no_wait", out, np.ones(128, np.float32), shared=512)
    assert np.isnan(out).all()


@everywhere
def test_atomics(device: Device, rng: np.random.Generator) -> None:
    x = rng.integers(0, 1000, 64 * 256, dtype=np.int32)
    out = np.array([0, -1, 2000, 0, 0, 0, 0], np.int32)
    call(device, "atomics", out, x, grid=(64, 1, 1), block=256)
    bits = np.bitwise_or.reduce(np.uint32(1) << (x & 31).astype(np.uint32))
    assert out[:5].tolist() == [x.sum(), x.max(), x.min(), bits.astype(np.int32), 7]
    assert out[5:6].view(np.float32)[0] == x.sum()
    assert out[6] == len(x)


@everywhere
def test_places_in_a_grid(device: Device) -> None:
    out = np.zeros((4, 3, 5, 3), np.int32)
    call(device, "places", out, grid=(5, 3, 4), block=40)
    z, y, x = np.indices((4, 3, 5))
    np.testing.assert_array_equal(out, np.stack([x + 100 * y, z, np.full_like(x, 39)], -1))


@everywhere
@pytest.mark.parametrize("n", [96, 50])
def test_arguments_and_shared_memory_of_both_kinds(device: Device, n: int, rng: np.random.Generator) -> None:
    x, y = rng.normal(0, 1, n).astype(np.float32), np.zeros(n, np.float32)
    run(device(), SOURCE, "mixed", (1, 1, 1), 96, shared=96 * 8, x=x, n=n, scale=0.5, y=y, unused=0)
    want = 1.5 * x + np.array([1.5, 2.5, 3.5, 4.5], np.float32)[np.arange(n) % 4]
    np.testing.assert_allclose(y, want[::-1], rtol=1e-6)


def test_switching_threads_as_other_processors_do(rng: np.random.Generator) -> None:
    x, out = rng.normal(0, 1, (3, 256)).astype(np.float32), np.zeros((3, 7), np.float32)
    call(emulator, "reductions", out, x, grid=(3, 1, 1), block=256, n=255, defines=PORTABLE)
    np.testing.assert_allclose(out[:, 0], x.sum(1), rtol=1e-5, atol=1e-5)


WRONG = {
    1: r"20 threads wait at __syncthreads \(line \d+\) and 12 at a warp's operation",
    2: "different __syncthreads",
    3: "59 threads wait at __syncthreads .* and 5 at a warp's operation",
    4: "different operations",
    5: "mask leaves it out",
    6: "byte 256 of 256 of shared memory was written",
    7: "not aligned",
    8: "reads a lane that takes no part",
    9: "stack of thread 0 overflowed",
}


@pytest.mark.parametrize("way", WRONG)
def test_mistakes_of_a_kernel_are_reported(way: int) -> None:
    out = np.zeros(64 * 1024, np.float32)
    with pytest.raises(BackendError, match=f"wrong.*{WRONG[way]}"):
        call(emulator, "wrong", out, n=way, block=64, shared=256)
    call(emulator, "wrong", out, n=0, block=64, shared=256)  # and the next launch is none the worse
    assert out[0] == 42  # shared memory starts as NaN


@pytest.mark.parametrize(
    ("grid", "block", "shared", "what"),
    [
        ((1, 1, 1), 65, 0, "more threads than the kernel's bound"),
        ((1, 1, 1), 0, 0, "0 threads"),
        ((0, 1, 1), 32, 0, r"grid \(0, 1, 1\)"),
        ((1, 70000, 1), 32, 0, "impossible grid"),
        ((1, 1, 1), 32, 1 << 20, "more shared memory than a block can have"),
    ],
)
def test_launches_that_cannot_be(grid: tuple[int, int, int], block: int, shared: int, what: str) -> None:
    with pytest.raises(BackendError, match=what):
        call(emulator, "wrong", np.zeros(1, np.float32), grid=grid, block=block, shared=shared)


def test_arguments_of_another_size_are_refused() -> None:
    with pytest.raises(BackendError, match=r"mixed .* takes 32 bytes of arguments, not 8"):
        run(emulator(), SOURCE, "mixed", (1, 1, 1), 32, x=np.zeros(1, np.float32))


def test_kernels_that_are_not_there_or_do_not_compile(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no kernel nonesuch"):
        emulator().kernels(SOURCE, {}, ["nonesuch"])
    with pytest.raises(BackendError, match="cannot be read"):
        emulator().kernels("nonesuch.cu", {}, ["x"])
    bad = tmp_path / "bad.cu"
    bad.write_text('#include "common.cuh"\nKERNEL(f, Step, 32) { what; }\n')
    with pytest.raises(BackendError, match=r"(?s)does not compile for the emulator:.*what"):
        emulator().kernels(str(bad), {}, ["f"])


def test_one_kernel_on_several_threads_of_the_host() -> None:
    """Each has a state of its own, though they run the same file."""
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            x = np.random.default_rng(seed).normal(0, 1, (40, 256)).astype(np.float32)
            out = np.zeros((40, 7), np.float32)
            for _ in range(3):
                call(EmulatedLauncher, "reductions", out, x, grid=(40, 1, 1), block=256, n=0)
                np.testing.assert_allclose(out[:, 0], x.sum(1), rtol=1e-4, atol=1e-4)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


@everywhere
def test_memory_copies_and_graphs(device: Device, rng: np.random.Generator) -> None:
    d = device()
    x = rng.normal(0, 1, 96).astype(np.float32)
    a, b = d.allocate(384), d.allocate(384)
    assert a % 256 == b % 256 == 0
    host = d.pinned(384).view(np.float32)
    host[:] = x
    layout = struct(x="ptr", n="int", scale="float", y="ptr", unused="int")
    (kernel,) = d.kernels(SOURCE, {}, ["mixed"])
    args = fill(layout, x=a, n=96, scale=1.0, y=b, unused=0)
    d.zero(a, 384)
    d.launch(kernel, (1, 1, 1), 96, args, 96 * 8)
    with d.capture() as graph:
        d.upload(a, host)
        d.zero(b, 384)
        d.launch(kernel, (1, 1, 1), 96, args, 96 * 8)
        d.copy(a, b, 384)
        args["scale"] = 100.0  # what was captured stays
    out = np.zeros(96, np.float32)
    d.download(out, b, wait=True)
    table = np.tile(np.array([1.5, 2.5, 3.5, 4.5], np.float32), 24)
    np.testing.assert_array_equal(out, table[::-1])  # capturing ran nothing
    for factor in (1, 2):
        host[:] = factor * x
        graph.launch()
        d.download(out, a)
        event = d.record()
        event.wait()
        assert event.done()
        np.testing.assert_allclose(out, (3 * factor * x + table)[::-1], rtol=1e-5, atol=1e-6)
    start = d.record(timing=True)
    end = d.record(timing=True)
    d.stream_wait(end)
    d.synchronize()
    assert end.seconds_since(start) >= 0
    d.release(a)
    d.release(b)


def test_memory_of_an_emulated_device() -> None:
    d, other = EmulatedLauncher(0, memory=1 << 20), EmulatedLauncher(1)
    a = d.allocate(1000)
    assert d.memory() == ((1 << 20) - 1000, 1 << 20)
    with pytest.raises(OutOfMemoryError, match="1,048,576 bytes were wanted"):
        d.allocate(1 << 20)
    out = np.zeros(250, np.float32)
    d.download(out, a)
    assert np.isnan(out).all()  # nobody may rely on what memory holds
    b = other.allocate(1000)
    other.zero(b, 1000)
    d.copy_peer(a, other, b, 1000)
    d.download(out, a)
    assert (out == 0).all()
    with pytest.raises(ValueError, match="contiguous"):
        d.upload(a, np.zeros((4, 4))[:, :2])
    with pytest.raises(BackendError, match="are not within memory of"):
        d.upload(a, np.zeros(1001, np.uint8))
    ctypes.memset(a + 1000, 0, 1)
    with pytest.raises(BackendError, match="wrote outside 1,000 bytes"):
        d.release(a)
    d.release(a)
    d.close()
    d.close()
    with pytest.raises(BackendError, match="closed"):
        d.zero(a, 1)


def test_devices_that_the_environment_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyllm.backends.cuda import device

    monkeypatch.setenv("PYLLM_CUDA_EMULATOR", "2")
    assert [d.name for d in device.devices()] == ["cuda0", "cuda1"]
    assert device.probe().available
    assert device.overhead(1) == 0
    assert open_launcher(1).index == 1
    with pytest.raises(BackendError, match="no emulated device cuda2"):
        open_launcher(2)


def test_sources_know_what_they_include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept on disk is found again exactly when nothing that it is made of has changed."""
    monkeypatch.setattr(compiler, "KERNELS", tmp_path)
    (tmp_path / "a.cu").write_text('#include "b.cuh"\n')
    (tmp_path / "b.cuh").write_text('  #  include "c.cuh"\n#include "a.cu"\n')
    (tmp_path / "c.cuh").write_text("int x;\n")
    first = compiler.source("a.cu")
    assert sorted(first.headers) == ["a.cu", "b.cuh", "c.cuh"]
    assert first.digest(1) == compiler.source("a.cu").digest(1) != first.digest(2)
    (tmp_path / "c.cuh").write_text("int y;\n")
    assert compiler.source("a.cu").digest(1) != first.digest(1)
    assert compiler.options_of({"B": True, "A": "x"}) == ["-DA=x", "-DB=1"]


def test_a_damaged_shared_object_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_KERNEL_CACHE", str(tmp_path))
    defines = {"WORD": "u32", "BRAIN": False}
    path = emulated.build("embed_float.cu", defines)
    whole = path.read_bytes()
    path.write_bytes(b"")
    assert emulated.build("embed_float.cu", defines) == path
    assert path.stat().st_size == len(whole)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
