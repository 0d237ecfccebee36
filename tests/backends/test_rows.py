"""Matrices that are parts of a file's: rows of each group of rows, such as each head's queries and gate, or items of a
stack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import oracle
import pytest
from test_lora import random_halves, write_adapter

from pyllm.gguf import TensorInfo
from pyllm.llm.adapters import open_adapters
from pyllm.program import Program, Recorder, Value, Weight
from pyllm.program.lora import adapt
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.select import SelectRows

N_VOCAB, WIDTH, GROUPS, HEAD = 96, 256, 3, 24


def gated(tensors: Mapping[str, TensorInfo], *names: str) -> Program:
    """silu(a(x)) * b(x) of the matrices a and b."""
    rec = Recorder(tensors)
    x = rec(Embed(table=Weight("table")))
    a, b = (rec(Linear(x=x, weight=Weight(name))) for name in names)
    y: Value = rec(SelectRows(x=rec(GatedActivation(gate=a, up=b))))
    return rec.finish(y, y, n_layers=1)


def file_tensors(fmt: str) -> dict[str, TensorInfo]:
    """A table, and a matrix of which each group's rows are HEAD of a, then HEAD of b; and both as `rows` gives them."""
    w = oracle.random_tensor("w", (GROUPS * 2 * HEAD, WIDTH), fmt, std=WIDTH**-0.5)
    table = oracle.random_tensor("table", (N_VOCAB, WIDTH), "F32", std=1.0)
    views = w.rows(0, HEAD, 2 * HEAD), w.rows(HEAD, 2 * HEAD, 2 * HEAD)
    return {t.name: t for t in (w, table, *views)}


def apart(tensor: TensorInfo) -> dict[str, TensorInfo]:
    """The matrices a and b, copied out of the file's."""
    rows = tensor.data.reshape(GROUPS, 2, -1)
    copies = {name: np.ascontiguousarray(rows[:, i]).reshape(-1) for i, name in enumerate("ab")}
    return {name: TensorInfo(name, (GROUPS * HEAD, WIDTH), tensor.format, data) for name, data in copies.items()}


def run(backend: str, program: Program, tensors: Mapping[str, TensorInfo]) -> np.ndarray:
    exe = oracle.compiled(backend, oracle.Model({}, program), tensors)
    try:
        return oracle.run(exe, [oracle.Step(oracle.random_tokens(20, N_VOCAB), 0, [1, 2])])
    finally:
        exe.close()


@pytest.mark.parametrize("fmt", ["F32", "BF16", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS", "NVFP4"])
@pytest.mark.parametrize("backend", oracle.each())
def test_rows_of_groups_are_what_a_matrix_of_these_rows_is(backend: str, fmt: str) -> None:
    tensors = file_tensors(fmt)
    copied = {"table": tensors["table"]} | apart(tensors["w"])
    names = [name for name in tensors if name.startswith("w[")]
    assert [tensors["w"].part(name).shape for name in names] == [(GROUPS * HEAD, WIDTH)] * 2
    np.testing.assert_array_equal(
        run(backend, gated(tensors, *names), tensors), run(backend, gated(copied, "a", "b"), copied)
    )


@pytest.mark.parametrize("fmt", ["F32", "Q4_0", "Q6_K"])
@pytest.mark.parametrize("backend", oracle.each())
def test_items_of_a_stack_are_matrices(backend: str, fmt: str) -> None:
    w = oracle.random_tensor("w", (GROUPS, HEAD, WIDTH), fmt, std=WIDTH**-0.5)
    table = oracle.random_tensor("table", (N_VOCAB, WIDTH), "F32", std=1.0)
    items = [w.item(i) for i in (2, 0)]
    assert [(w.part(t.name).name, t.shape) for t in items] == [("w[2]", (HEAD, WIDTH)), ("w[0]", (HEAD, WIDTH))]
    tensors = {t.name: t for t in (w, table, *items)}
    matrices = w.data.reshape(GROUPS, -1)
    copied = {n: TensorInfo(n, (HEAD, WIDTH), fmt, matrices[i].copy()) for n, i in (("a", 2), ("b", 0))}
    copied["table"] = table
    np.testing.assert_array_equal(
        run(backend, gated(tensors, "w[2]", "w[0]"), tensors), run(backend, gated(copied, "a", "b"), copied)
    )


def test_an_item_loses_axes_of_one() -> None:
    t = oracle.random_tensor("lerp", (5, 1, 1, 32), "F32", std=1.0)
    assert t.item(3).shape == (32,)
    np.testing.assert_array_equal(oracle.decoded(t.item(3)), oracle.decoded(t)[3, 0, 0])


@pytest.mark.parametrize("backend", oracle.each())
def test_an_adapter_of_the_matrix_is_for_its_rows(backend: str, tmp_path: Path) -> None:
    tensors = file_tensors("F32")
    path = write_adapter(tmp_path / "a.gguf", random_halves({"w": tensors["w"].shape}, 8))
    adapters = open_adapters([path])
    program, more = adapt(gated(tensors, *list(tensors)[2:]), tensors, "llama", adapters)
    pair = adapters[0].pairs["w"]
    whole = oracle.decoded(tensors["w"]) + pair.factor * oracle.decoded(pair.b) @ oracle.decoded(pair.a)
    merged = TensorInfo("w", tensors["w"].shape, "F32", whole.astype(np.float32).view(np.uint8).reshape(-1))
    copied = {"table": tensors["table"]} | apart(merged)
    wanted = run("reference", gated(copied, "a", "b"), copied)
    assert oracle.nmse(run(backend, program, more), wanted) <= 1e-6
    assert oracle.nmse(run(backend, gated(tensors, *list(tensors)[2:]), tensors), wanted) > 1e-2
