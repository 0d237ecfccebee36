"""What a stressed device finds: mistakes that an emulated one, and often a card, would not show."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
from cuda_tools import run
from numpy.typing import NDArray
from oracle import OPTIONS, Shape, Step, transformer

from pyllm import backends
from pyllm.backends import placement, split
from pyllm.errors import BackendError
from pyllm.testing.cuda.stressed import StressedLauncher

SOURCE = str(Path(__file__).with_name("cuda_mistakes.cu"))
SEEDS = range(1, 13)
pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "c++", "clang++")), reason="emulating CUDA takes a C++ compiler"
)


def result(seed: int, name: str, n: int, blocks: int = 1, extra: int = 0) -> NDArray[np.float32]:
    """What a kernel makes of 0, 1, 2, …"""
    threads = n // blocks
    x, out = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
    run(StressedLauncher(seed=seed), SOURCE, name, (blocks, 1, 1), threads, {}, 4 * threads, x=x, out=out, n=n + extra)
    return out


def test_what_is_right_does_not_depend_on_the_seed() -> None:
    for seed in SEEDS:
        assert result(seed, "right", 256).tolist() == list(range(256))[::-1]


@pytest.mark.parametrize(
    ("name", "n", "blocks"),
    [
        ("no_barrier", 256, 1),
        ("no_warp_barrier", 32, 1),
        ("one_barrier_in_a_loop", 256, 1),
        ("order_of_blocks", 256, 8),
        ("no_wait", 32, 1),
        ("early_overwrite", 32, 1),
    ],
)
def test_reliance_on_an_order(name: str, n: int, blocks: int) -> None:
    """Two seeds are enough to see it more often than not; any of a dozen surely."""
    assert len({result(seed, name, n, blocks).tobytes() for seed in SEEDS}) > 1


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("beyond", 1000, r"beyond, block \(0, 0, 0\), thread \(\d+, 0, 0\): a read from .*behind memory of 128 bytes"),
        ("beyond_writing", 1000, r"beyond_writing.*: a write to .*behind memory of 128 bytes"),
        ("misaligned", -31, "misaligned.*not aligned"),
        ("writes_constants", 0, "writes_constants: it wrote what it also reads with stream4"),
    ],
)
def test_what_a_card_does_not_forgive(name: str, extra: int, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        result(1, name, 32, extra=extra)
    assert result(1, "right", 256)[0] == 255  # and the process lives on


def test_static_shared_memory_holds_nothing_of_the_block_before() -> None:
    for seed in SEEDS:
        assert np.isnan(result(seed, "left_over_static", 256, 8)[32:]).all()


def test_copies_happen_as_late_as_they_may() -> None:
    """Memory of the host that changes before an event says that it may, and downloads that nobody waits for."""
    uploaded, downloaded = set(), set()
    for seed in SEEDS:
        device = StressedLauncher(seed=seed)
        at, x, out = device.allocate(4), np.ones(1, np.float32), np.zeros(1, np.float32)
        device.upload(at, x)
        x[0] = 2
        device.download(out, at)
        downloaded.add(bool(np.isnan(out[0])))
        device.record().wait()
        uploaded.add(float(out[0]))
        device.close()
    assert uploaded == {1.0, 2.0}
    assert downloaded == {True, False}


def test_devices_do_not_wait_for_each_other_unasked() -> None:
    seen = {}
    for asked in (False, True):
        seen[asked] = set()
        for seed in SEEDS:
            a, b = StressedLauncher(0, seed=seed), StressedLauncher(1, seed=seed)
            x, y, out = a.allocate(4), b.allocate(4), np.zeros(1, np.float32)
            a.upload(x, np.ones(1, np.float32), wait=True)
            a.zero(x, 4)
            ready = a.record()
            if asked:
                b.stream_wait(ready)
            b.copy_peer(y, a, x, 4)
            b.download(out, y, wait=True)
            seen[asked].add(float(out[0]))
            a.close()
            b.close()
    assert seen == {False: {0.0, 1.0}, True: {0.0}}


def test_graphs_and_failures_come_late_too() -> None:
    device = StressedLauncher(seed=3)
    at, out = device.allocate(4), np.ones(1, np.float32)
    with device.capture() as graph:
        device.zero(at, 4)
        device.download(out, at)
    assert out[0] == 1
    graph.launch()
    event = device.record()
    while not event.done():
        pass
    assert out[0] == 0
    (kernel,) = device.kernels(SOURCE, {}, ["right"])
    with pytest.raises(BackendError, match="bytes of arguments"):
        device.launch(kernel, (1, 1, 1), 32, np.zeros((), [("x", np.int32)]))
    device.close()
    assert event.done()


TINY = Shape(n_layers=2, n_embd=64, n_heads=2, n_kv_heads=1, head_dim=32, n_rot=32, n_ff=64, n_vocab=64)
MIXTURE = replace(TINY, n_layers=1, n_experts=4)
SMALL = replace(OPTIONS, max_tokens=32, max_rows=32)
STEPS = [
    [Step(oracle.random_tokens(13, 64), 0, [2], "none"), Step([5], 0, [1])],
    [Step([7], 13, [2]), Step([9], 1, [1])],
    [Step([8], 14, [2])],
    [Step([6], 15, [2])],
    [Step([4], 16, [2, 3])],
]


@pytest.mark.parametrize(
    ("shape", "fmt", "n_devices"),
    [(TINY, "Q8_0", 1), (TINY, "Q8_0", 2), (MIXTURE, "Q4_0", 1)],
    ids=["whole", "split", "experts"],
)
def test_steps_do_not_depend_on_the_seed(
    shape: Shape, fmt: str, n_devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt beside a token, tokens, graphs, and a split: the same bits whatever the order of all that may be ordered
    differently."""
    model = transformer(shape)
    tensors, where = model.tensors(fmt), [f"cuda{int(op.layer > 0) % n_devices}" for op in model.program.ops]
    monkeypatch.setenv("PYLLM_CUDA_EMULATOR", str(n_devices))
    results = set()
    for seed in (0, 1, 2):
        monkeypatch.setenv("PYLLM_CUDA_EMULATOR_STRESS", str(seed))
        devices = backends.get("cuda").devices()
        exe = split.compile(placement.cut(model.program, where), tensors, SMALL, devices)
        try:
            results.add(b"".join(oracle.run(exe, step).tobytes() for step in STEPS))
        finally:
            exe.close()
    assert len(results) == 1
