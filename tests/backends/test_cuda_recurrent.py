"""Recurrent states on emulated cards: graphs, slots that a step leaves alone, seeds, sizes, limits, cuts to the bit.

What ops compute, and states after any cut and save, is tested with the other backends (test_ops.py, test_states.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import oracle
import pytest
from oracle import OPTIONS, Step

from pyllm import backends
from pyllm.backends.base import Batch, Executable
from pyllm.backends.cuda.executable import CUDAExecutable
from pyllm.errors import BackendError, OutOfMemoryError, RequestError
from pyllm.program import Value
from pyllm.program.ops.conv import ShortConv
from pyllm.program.ops.delta import DeltaRule
from pyllm.program.ops.elementwise import Scale
from pyllm.program.ops.gate import Activation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.linear_attention import LinearAttention
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.select import Slice
from pyllm.program.ops.shift import TokenShift
from pyllm.program.ops.ssm import SSMScan1, SSMScan2
from pyllm.testing import ops
from pyllm.testing.cuda.emulated import EmulatedLauncher
from pyllm.testing.models import Builder, Model, Record, one_op

N_SLOTS = 6
SMALL = replace(OPTIONS, n_pages=8, max_tokens=32, max_rows=32, n_slots=N_SLOTS)
TOKENS = oracle.random_tokens(30, 64)
LONG, PAGES = oracle.random_tokens(40, 96), [9, 2, 11]
RECURRENT = sorted(name for name, record in ops.cases().items() if one_op(record).program.slots)


@pytest.fixture
def exe() -> Iterator[CUDAExecutable]:
    oracle.need("cuda")
    model = oracle.transformer(
        oracle.Shape(
            n_layers=2, n_embd=64, n_heads=2, n_kv_heads=1, head_dim=32, n_rot=32, n_ff=64, n_vocab=64, recurrent=True
        )
    )
    compiled = oracle.compiled("cuda", model, model.tensors(), SMALL)
    assert isinstance(compiled, CUDAExecutable)
    yield compiled
    compiled.close()


def step(exe: CUDAExecutable, first: int, n: int, state_in: int, *saves: tuple[int, int]) -> np.ndarray:
    batch = Batch(exe.options)
    batch.add(TOKENS[first : first + n], first, [3, 5], "all", generated=n == 1, state_in=state_in, saves=saves)
    batch.check()
    return exe.run(batch).copy()


def slots(exe: CUDAExecutable) -> list[bytes]:
    return [exe.read_slot(slot).tobytes() for slot in range(N_SLOTS)]


def test_one_graph_serves_all_slots(exe: CUDAExecutable) -> None:
    """Which slots a step reads and writes, and after which tokens, is uploaded, not captured."""
    whole = step(exe, 0, 20, -1, (4, 1), (20, 2))
    decoded, state_in = [], 1
    for at in range(4, 20):
        n_graphs = exe.n_graphs
        state_out = 3 + at % 3
        decoded.append(step(exe, at, 1, state_in, (1, state_out)))
        state_in = state_out
        assert at < 6 or exe.n_graphs == n_graphs
    np.testing.assert_allclose(np.concatenate(decoded), whole[4:], rtol=1e-3, atol=1e-4)
    for after in (5, 9, 3):
        step(exe, 0, 20, -1, (after, 4), (20, 5))
        np.testing.assert_allclose(step(exe, after, 1, 4, (1, 0)), whole[after : after + 1], rtol=1e-3, atol=1e-4)


def test_a_step_changes_its_saves_alone(exe: CUDAExecutable) -> None:
    rng = np.random.default_rng(0)
    for slot in range(N_SLOTS):
        exe.write_slot(slot, rng.normal(size=exe.slot_bytes // 4).astype(np.float32).view(np.uint8))
    before = slots(exe)
    first = step(exe, 10, 9, 2, (5, 4), (9, 0))
    after = slots(exe)
    assert [i for i in range(N_SLOTS) if before[i] != after[i]] == [0, 4]
    np.testing.assert_array_equal(step(exe, 10, 9, 2, (5, 1), (9, 3)), first)
    again = slots(exe)
    assert (again[1], again[3]) == (after[4], after[0])


def test_a_sequence_begins_with_zeros(exe: CUDAExecutable) -> None:
    wanted = step(exe, 0, 9, -1, (9, 0))
    for slot in range(N_SLOTS):
        exe.write_slot(slot, np.full(exe.slot_bytes, 0xFF, np.uint8))  # NaN
    np.testing.assert_array_equal(step(exe, 0, 9, -1, (9, 0)), wanted)


def test_a_batch_of_other_slots_is_refused(exe: CUDAExecutable) -> None:
    batch = Batch(replace(SMALL, n_slots=N_SLOTS + 1))
    batch.add([1], 0, [0], saves=[(1, N_SLOTS)])
    with pytest.raises(RequestError, match="7 slots"):
        exe.run(batch)


@pytest.mark.parametrize("case", RECURRENT)
def test_states_do_not_depend_on_the_seed(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts beside tokens, and tokens after them, whatever the order of blocks and threads."""
    oracle.need("cuda")
    model, results = one_op(ops.cases()[case]), set()
    steps = [
        [Step([5], 0, [1]), Step(TOKENS[:13], 0, [2], also_after=[4, 11])],
        [Step([9], 1, [1]), Step([7], 13, [2])],
        [Step([8], 2, [1]), Step([6], 14, [2])],
    ]
    for seed in (0, 1, 2):
        monkeypatch.setenv("PYLLM_CUDA_EMULATOR", "1")
        monkeypatch.setenv("PYLLM_CUDA_EMULATOR_STRESS", str(seed))
        exe = oracle.compiled("cuda", model, model.tensors(), replace(OPTIONS, n_pages=4))
        try:
            results.add(b"".join(oracle.run(exe, step).tobytes() for step in steps))
        finally:
            exe.close()
    assert len(results) == 1


def test_states_of_too_many_rows_are_refused() -> None:
    oracle.need("cuda")

    def record(b: Builder, x: Value) -> Value:
        def linear(name: str, rows: int) -> Any:
            return b(Linear(x=x, weight=b.t(name, rows, x.width)))

        sizes = {"n_heads": 1, "n_key_heads": 1, "key_dim": 640, "value_dim": 8}
        return b(LinearAttention(q=linear("q", 640), k=linear("k", 640), v=linear("v", 8), decays=(-0.1,), **sizes))

    model = one_op(record)
    with pytest.raises(BackendError, match=r"up to 512 rows, not of 640; the CPU takes any"):
        backends.get("cuda").compile(model.program, model.tensors(), SMALL)


# --- ops of columns of the token table: without products, whose kernels depend on the number of rows


def _columns(b: Builder, x: Value, *widths: int) -> list[Value]:
    at = [sum(widths[:i]) for i in range(len(widths))]
    return [b(Slice(x=x, start=start, width=width)) for start, width in zip(at, widths, strict=True)]


def _decay(b: Builder, x: Value) -> Value:
    return b(Scale(x=b(Activation(x=x, act="softplus")), factor=-0.2))


def _keys(b: Builder, x: Value, dim: int) -> Value:
    return b(Scale(x=b(RMSNorm(x=x, weight=None, eps=1e-6, group=dim)), factor=dim**-0.5))


def delta(rows: int, columns: int, n: int = 2, *, by_row: bool = False) -> tuple[Record, int]:
    widths = (n * rows, n * rows, n * columns, n * rows if by_row else n, n)

    def record(b: Builder, x: Value) -> Value:
        q, k, v, decay, beta = _columns(b, x, *widths)
        return b(DeltaRule(
            q=q, k=_keys(b, k, rows), v=v, decay=_decay(b, decay), beta=b(Activation(x=beta, act="sigmoid")),
            n_heads=n, n_key_heads=n, key_dim=rows, value_dim=columns, scale=1 / math.sqrt(rows),
        ))  # fmt: skip

    return record, sum(widths)


def attention(rows: int, columns: int, n: int = 2) -> tuple[Record, int]:
    widths = (n * rows, n * rows, n * columns, n * rows, n * rows, n * rows)

    def record(b: Builder, x: Value) -> Value:
        q, k, v, decay, erase, insert = _columns(b, x, *widths)
        return b(LinearAttention(
            q=q, k=k, v=v, decay=_decay(b, decay), erase=_keys(b, erase, rows),
            insert=b(Scale(x=_keys(b, insert, rows), factor=-0.5)), n_heads=n, n_key_heads=n, key_dim=rows,
            value_dim=columns, scale=1 / math.sqrt(rows),
        ))  # fmt: skip

    return record, sum(widths)


def scan_1(rows: int, width: int) -> tuple[Record, int]:
    def record(b: Builder, x: Value) -> Value:
        value, dt, into, out = _columns(b, x, width, width, rows, rows)
        return b(SSMScan1(x=value, dt=dt, b=into, c=out, a=b.t("ssm_a", width, rows), d=b.t("d", width)))

    return record, 2 * (width + rows)


def scan_2(rows: int, columns: int, n: int = 4) -> tuple[Record, int]:
    def record(b: Builder, x: Value) -> Value:
        value, dt, into, out = _columns(b, x, n * columns, n, 2 * rows, 2 * rows)
        return b(SSMScan2(x=value, dt=dt, b=into, c=out, a=b.t("ssm_a", n), d=b.t("d", n), n_groups=2))

    return record, n * columns + n + 4 * rows


KINDS: dict[str, tuple[Record, int]] = {
    "conv": (lambda b, x: b(ShortConv(x=x, weight=b.t("conv", x.width, 4))), 300),
    "shift": (lambda b, x: b(TokenShift(x=x)), 300),
    "delta": delta(32, 16),
    "delta_by_row": delta(32, 24, by_row=True),
    "attention": attention(16, 20),
    "scan_1": scan_1(16, 36),
    "scan_2": scan_2(16, 12),
}


def _model(kind: tuple[Record, int]) -> Model:
    record, width = kind
    return one_op(record, width=width)


@pytest.fixture(params=KINDS)
def plain(request: pytest.FixtureRequest) -> Iterator[Executable]:
    model = _model(KINDS[request.param])
    executable = oracle.compiled("cuda", model, model.tensors())
    yield executable
    executable.close()


@pytest.mark.parametrize("rows", [1, 3, 16, 20, 64, 72, 129, 200, 300])
@pytest.mark.parametrize("of", [delta, attention, scan_1, scan_2])
def test_states_of_any_size(of: Callable[[int, int], tuple[Record, int]], rows: int) -> None:
    """From one row to hundreds; numbers of rows that fours and blocks do not divide."""
    steps = [[Step(LONG[:6], 0, PAGES)], [Step(LONG[6:7], 6, PAGES), Step(LONG[:3], 0, [4])]]
    oracle.assert_close(oracle.run_both("cuda", _model(of(rows, 5)), batches=steps), 1e-9)


def test_cuts_and_company_do_not_show(plain: Executable) -> None:
    """To the bit."""
    whole = oracle.run(plain, [Step(LONG, 0, PAGES, also_after=(1, 7, 33))])
    for at in (1, 7, 33):
        beside = Step(LONG[at - 1 :], 0, [5, 0, 7])
        np.testing.assert_array_equal(oracle.run(plain, [beside, Step(LONG[at:], at, PAGES)])[41 - at :], whole[at:])
    for cuts in ([*range(9), 40], [0, 1, 3, 29, 39, 40]):
        pieces = [oracle.run(plain, [Step(LONG[a:b], a, PAGES)]) for a, b in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_failed_step_leaves_states(plain: Executable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutOfMemoryError("the device has no memory left")

    oracle.run(plain, [Step(LONG[:10], 0, PAGES)])
    step = Step(LONG[10:14], 10, PAGES)
    wanted = oracle.run(plain, [step])
    with monkeypatch.context() as patch:
        patch.setattr(EmulatedLauncher, "download", fail)
        with pytest.raises(OutOfMemoryError):
            oracle.run(plain, [step])
    np.testing.assert_array_equal(oracle.run(plain, [step]), wanted)
