"""Models split over devices: whatever is where, logits are those of the whole model on one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
from oracle import OPTIONS, Shape, Step, nmse, transformer

from pyllm import backends
from pyllm.backends import placement, split
from pyllm.backends.base import Batch, DeviceInfo
from pyllm.config import PlacementOptions
from pyllm.errors import BackendError, ClosedError
from pyllm.testing.splitting import EXACT, QUANTIZED, SHAPES, SMALL, check, compiled, device, placed


@pytest.fixture(params=[name for name in backends.names() if name != "cpu"])
def other(request: pytest.FixtureRequest) -> DeviceInfo:
    """A device beside the cpu: of the reference backend, of every GPU backend that is there."""
    oracle.need("cpu")
    oracle.need(request.param)
    return device(request.param)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, "all"])
def test_layers(other: DeviceInfo, n: int | str) -> None:
    model = transformer(SMALL)
    tensors = model.tensors()
    exe = compiled(model, tensors, [device("cpu"), other], n_gpu_layers=n)
    assert isinstance(exe, split.SplitExecutable) == (n in (1, 2, 3))
    check(exe, model, tensors, EXACT)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(other: DeviceInfo, shape: str) -> None:
    model = transformer(SHAPES[shape])
    tensors = model.tensors()
    check(compiled(model, tensors, [device("cpu"), other], n_gpu_layers=3), model, tensors, EXACT)


ODD: dict[str, tuple[Shape, dict[str, Any]]] = {
    "kv_on_cpu": (SMALL, {"kv_offload": False}),
    "kv_on_cpu_norms": (SHAPES["gemma"], {"kv_offload": False}),
    "experts_on_cpu": (SHAPES["experts"], {"n_cpu_moe": 99}),
    "some_experts_on_cpu": (SHAPES["oss"], {"n_cpu_moe": 2}),
    "experts_by_pattern": (SHAPES["oss"], {"override_tensors": ((r"blk\.\d+\.ffn_.*_exps\.", "cpu"),)}),
    "ffn_on_cpu": (SMALL, {"override_tensors": ((r"blk\.[12]\.ffn", "cpu"),)}),
    "values_on_cpu": (SMALL, {"override_tensors": ((r"attn_v", "cpu"), (r"output\.weight", "cpu"))}),
    "a_norm_on_cpu": (SHAPES["gemma"], {"override_tensors": ((r"blk\.1\.attn_q_norm|ffn_norm", "CPU"),)}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_places(other: DeviceInfo, name: str) -> None:
    shape, choice = ODD[name]
    model = transformer(shape)
    tensors = model.tensors()
    exe = compiled(model, tensors, [device("cpu"), other], n_gpu_layers="all", **choice)
    assert isinstance(exe, split.SplitExecutable)
    check(exe, model, tensors, EXACT)


@pytest.mark.parametrize("shape", ["gemma", "oss"])
@pytest.mark.parametrize("seed", range(3))
def test_any_op_anywhere(other: DeviceInfo, shape: str, seed: int) -> None:
    """Every op on a device drawn for it: a value of any kind crosses, any fusion may be cut apart."""
    model = transformer(replace(SHAPES[shape], n_layers=2))
    tensors = model.tensors()
    devices = [device("cpu"), other]
    drawn = np.random.default_rng(seed).integers(0, 2, len(model.program.ops))
    check(placed(model, tensors, devices, [devices[i].name for i in drawn]), model, tensors, EXACT)


def test_three_devices(other: DeviceInfo) -> None:
    model = transformer(SHAPES["experts"])
    tensors = model.tensors()
    devices = list(dict.fromkeys([device("cpu"), other, device("reference")]))
    rng = np.random.default_rng(5)
    drawn = rng.integers(0, len(devices), len(model.program.ops))
    check(placed(model, tensors, devices, [devices[i].name for i in drawn]), model, tensors, EXACT)


@pytest.mark.parametrize(("fmt", "limit"), [("F16", 1e-5), ("Q8_0", QUANTIZED), ("Q4_K", QUANTIZED)])
def test_formats(other: DeviceInfo, fmt: str, limit: float) -> None:
    model = transformer(Shape(n_layers=2, n_ff=256, n_vocab=80))
    tensors = model.tensors(fmt)
    check(compiled(model, tensors, [device("cpu"), other], n_gpu_layers=2), model, tensors, limit, "cpu")


def test_quantized_anywhere(other: DeviceInfo) -> None:
    """Forms of activations that one device keeps beside float32 do not survive a crossing; nothing may rely on it."""
    model = transformer(Shape(n_layers=2, n_ff=256, n_vocab=80, n_experts=3))
    tensors = model.tensors("Q4_K") | {n: t for n, t in model.tensors().items() if "gate_inp" in n}
    devices = [device("cpu"), other]
    drawn = np.random.default_rng(7).integers(0, 2, len(model.program.ops))
    exe = placed(model, tensors, devices, [devices[i].name for i in drawn])
    check(exe, model, tensors, QUANTIZED, "cpu")


def test_hidden(other: DeviceInfo) -> None:
    """Also where the head, which is not run then, is elsewhere."""
    model = transformer(SMALL)
    tensors = model.tensors()
    exe = compiled(
        model, tensors, [device("cpu"), other], n_gpu_layers="all", override_tensors=(("^output.weight", "cpu"),)
    )
    check(exe, model, tensors, EXACT, want="hidden")
    check(compiled(model, tensors, [device("cpu"), other], n_gpu_layers=2), model, tensors, EXACT, want="hidden")


def test_no_rows_wanted(other: DeviceInfo) -> None:
    model = transformer(SMALL)
    tensors, tokens = model.tensors(), oracle.random_tokens(20, 80)
    batches = [[Step(tokens[:19], 0, [4, 2], "none")], [Step(tokens[19:], 19, [4, 2])]]
    exe = compiled(model, tensors, [device("cpu"), other], n_gpu_layers=3)
    check(exe, model, tensors, EXACT, batches=batches)


def test_shared_pages(other: DeviceInfo) -> None:
    model = transformer(SMALL)
    tensors, tokens = model.tensors(), oracle.random_tokens(50, 80)
    prefix = Step(tokens[:32], 0, [6, 3], "last")
    tails = [Step(tokens[32:40], 32, [6, 3, 10]), Step(tokens[30:50], 32, [6, 3, 1, 12])]
    exe = compiled(model, tensors, [device("cpu"), other], n_gpu_layers=2)
    check(exe, model, tensors, EXACT, batches=[[prefix], tails])


def test_generated_tokens_and_many_rows() -> None:
    """A part takes the ways for few tokens and for many that the whole model takes, token for token."""
    oracle.need("cpu")
    model = transformer(Shape(n_layers=3, n_ff=256, n_vocab=80))
    tensors, options = model.tensors("Q4_K"), replace(OPTIONS, many_rows=True)
    devices = [device("cpu"), device("reference")]
    names = ["cpu"] * (len(model.program.ops) - 1) + ["reference"]
    plan = placement.cut(model.program, names)
    batch = Batch(options)
    batch.add([3], 0, [1], generated=True)
    batch.add(oracle.random_tokens(40, 80), 0, [2, 3, 4], "all")
    parts, whole = split.compile(plan, tensors, options, devices), oracle.compiled("cpu", model, tensors, options)
    got, wanted = parts.run(batch, "hidden"), whole.run(batch, "hidden")
    np.testing.assert_array_equal(got, wanted)
    parts.close()
    whole.close()


def test_memory() -> None:
    oracle.need("cpu")
    model = transformer(SMALL)
    tensors, devices = model.tensors(), [device("cpu"), device("reference")]
    exe = compiled(model, tensors, devices, n_gpu_layers=3)
    assert isinstance(exe, split.SplitExecutable)
    parts = exe.memory_by_device()
    assert parts["cpu"]["kv"] == parts["reference"]["kv"] > 0
    assert exe.memory()["kv"] == 2 * parts["cpu"]["kv"]
    exe.close()
    exe.close()
    assert not any(exe.memory().values())
    with pytest.raises(ClosedError):
        exe.run(Batch(OPTIONS))


@pytest.mark.parametrize("n", [0, 2])
def test_memory_needed_is_what_is_taken(n: int) -> None:
    oracle.need("cpu")
    model = transformer(replace(SHAPES["oss"], n_layers=3))
    tensors, devices = model.tensors("F16"), [device("cpu"), device("reference")]
    wanted = PlacementOptions(n_gpu_layers=n, devices=("reference",))
    plan = placement.cut(model.program, placement.place(model.program, tensors, wanted, devices, OPTIONS).device_of_op)
    exe = split.compile(plan, tensors, OPTIONS, devices)
    taken = exe.memory_by_device()["cpu"] if isinstance(exe, split.SplitExecutable) else exe.memory()
    assert taken == placement.memory_needed(plan, tensors, OPTIONS, devices)["cpu"]
    exe.close()


def test_replace_and_importance() -> None:
    oracle.need("cpu")
    model = transformer(replace(SMALL, tied=True))
    tensors, other = model.tensors(), model.tensors(seed=1)
    options = replace(OPTIONS, collect_importance=True)
    devices = [device("cpu"), device("reference")]
    exe = compiled(model, tensors, devices, options, n_gpu_layers=3)
    whole = oracle.compiled("reference", model, tensors, options)
    changed = {name: other[name] for name in ("blk.0.attn_q.weight", "blk.3.ffn_down.weight", "token_embd.weight")}
    batch = oracle.ragged_batches(80)[0]
    for e in (exe, whole):
        oracle.run(e, batch)
        e.replace(changed)
    assert nmse(oracle.run(exe, batch), oracle.run(whole, batch)) <= EXACT
    got, wanted = exe.importance(), whole.importance()
    assert got.keys() == wanted.keys()
    for name, (sums, counts) in wanted.items():
        np.testing.assert_allclose(got[name][0], sums, rtol=1e-4)
        np.testing.assert_array_equal(got[name][1], counts)
    with pytest.raises(BackendError, match="no matrix"):
        exe.replace({"blk.9.x": other["blk.0.attn_q.weight"]})
    exe.close()
    whole.close()
