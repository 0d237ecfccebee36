"""Sums of squared inputs of matrix products: the reference against their definition, other backends against it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest

from pyllm.backends.base import Batch, ImportanceSums
from pyllm.errors import BackendError
from pyllm.program import Value
from pyllm.program.ops.linear import HeadLinear, Linear

BACKENDS = oracle.each("cpu", "reference")
OPTIONS = replace(oracle.OPTIONS, collect_importance=True)
N_TOKENS = 37 + 21 + 9
"""Of `oracle.ragged_batches`, ..."""
N_ROWS = 33 + 1 + 1 + 1 + 3 + 1 + 3 + 3
"""and how many of them want logits."""


def collected(backend: str, model: oracle.Model, fmt: str, options: object = OPTIONS) -> ImportanceSums:
    exe = oracle.compiled(backend, model, model.tensors(fmt), options)  # type: ignore[arg-type]
    try:
        for batch in oracle.ragged_batches(96):
            oracle.run(exe, batch)
        return exe.importance()
    finally:
        exe.close()


def assert_same(got: ImportanceSums, wanted: ImportanceSums, rtol: float, rms: float | None = None) -> None:
    """Each sum to `rtol` of itself or the mean, all of a weight's to `rms` in the mean square."""
    assert got.keys() == wanted.keys()
    for name, (sums, counts) in wanted.items():
        np.testing.assert_array_equal(got[name][1], counts, err_msg=name)
        assert got[name][0].dtype == np.float64
        scale = np.maximum(sums, sums.mean(axis=-1, keepdims=True))
        errors = np.abs(got[name][0] - sums) / scale
        assert errors.max() <= rtol, name
        assert np.sqrt(np.square(errors).mean()) <= (rms or rtol), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_sum_of_squares(backend: str) -> None:
    def record(b: oracle.Builder, x: Value) -> Value:
        return b(Linear(x=x, weight=b.t("w.weight", 48, 72)))

    model = oracle.one_op(record, width=72)
    table = oracle.decoded(model.tensors()["table"]).astype(np.float64)
    tokens = np.concatenate([s.tokens for batch in oracle.ragged_batches(96) for s in batch])
    sums, counts = collected(backend, model, "F32")["w.weight"]
    np.testing.assert_array_equal(counts, [len(tokens)])
    np.testing.assert_allclose(sums, np.square(table[tokens]).sum(axis=0)[None], rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_head_has_its_own_sums(backend: str) -> None:
    model = oracle.one_op(lambda b, x: b(HeadLinear(x=x, weight=b.t("w.weight", 4, 32, 24), n_heads=4)), width=96)
    table = oracle.decoded(model.tensors()["table"]).astype(np.float64)
    tokens = np.concatenate([s.tokens for batch in oracle.ragged_batches(96) for s in batch])
    sums, counts = collected(backend, model, "F32")["w.weight"]
    np.testing.assert_array_equal(counts, [len(tokens)] * 4)
    np.testing.assert_allclose(sums, np.square(table[tokens]).sum(axis=0).reshape(4, 24), rtol=1e-6)


@pytest.mark.parametrize("fmt", ["F16", "Q4_K", "Q8_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_dense(fmt: str, tied: bool) -> None:
    oracle.need("cpu")
    model = oracle.transformer(oracle.Shape(n_vocab=96, tied=tied))
    wanted = collected("reference", model, fmt)
    # activations of quantized products are rounded to 8 bits, at each layer
    rtol, rms = (1e-4, 1e-5) if fmt == "F16" else (0.1, 0.02)
    assert_same(collected("cpu", model, fmt), wanted, rtol, rms)
    stems = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    names = {f"blk.{i}.{stem}.weight" for i in range(2) for stem in stems}
    assert set(wanted) == names | {"token_embd.weight" if tied else "output.weight"}
    assert wanted["blk.0.ffn_down.weight"][1] == wanted["blk.1.attn_v.weight"][1] == N_TOKENS
    assert wanted["blk.1.attn_output.weight"][1] == wanted["blk.1.ffn_up.weight"][1] == N_ROWS


@pytest.mark.parametrize("fmt", ["F32", "Q8_0"])
def test_experts_count_their_own_tokens(fmt: str) -> None:
    oracle.need("cpu")
    model = oracle.transformer(oracle.Shape(n_vocab=96, n_experts=6, n_used=2, n_ff=272 if fmt == "F32" else 288))
    wanted = collected("reference", model, fmt)
    got = collected("cpu", model, fmt)
    gate, up, down = (wanted[f"blk.0.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
    assert gate[0].shape == (6, 256)
    assert gate[1].sum() == 2 * N_TOKENS
    np.testing.assert_array_equal(gate[0], up[0])
    np.testing.assert_array_equal(gate[1], down[1])
    if fmt == "F32":  # in other formats a token may choose other experts
        assert_same(got, wanted, rtol=1e-3)
    assert {name: s.shape for name, (s, _) in got.items()} == {name: s.shape for name, (s, _) in wanted.items()}
    assert got["blk.1.ffn_down_exps.weight"][1].sum() == 2 * N_ROWS


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_steps_that_were_computed_count(backend: str) -> None:
    model = oracle.transformer(oracle.Shape(n_vocab=96))
    exe = oracle.compiled(backend, model, model.tensors("Q8_0"), OPTIONS)
    tokens = oracle.random_tokens(40, 96)
    try:
        assert not any(counts.any() for _, counts in exe.importance().values())
        oracle.run(exe, [oracle.Step(tokens, 0, [0, 1, 2])], want="hidden")
        first = exe.importance()
        assert first["blk.1.ffn_up.weight"][1] == 40
        assert "output.weight" not in first or not first["output.weight"][1]
        oracle.run(exe, [oracle.Step(tokens, 0, [0, 1, 2])])
        second = exe.importance()
        np.testing.assert_allclose(second["blk.0.attn_q.weight"][0], 2 * first["blk.0.attn_q.weight"][0], rtol=1e-6)
        assert second["output.weight"][1] == 40
    finally:
        exe.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_as_without(backend: str) -> None:
    model = oracle.transformer(oracle.Shape(n_vocab=96, n_experts=4))
    tensors = model.tensors("Q8_0")
    outputs = []
    for options in (OPTIONS, oracle.OPTIONS):
        exe = oracle.compiled(backend, model, tensors, options)
        outputs.append([oracle.run(exe, batch) for batch in oracle.ragged_batches(96)])
        exe.close()
    oracle.assert_close(zip(*outputs, strict=True), 1e-4)


@pytest.mark.parametrize("fmt", ["Q4_K", "Q8_0"])
@pytest.mark.parametrize("shape", [oracle.Shape(n_vocab=103, tied=True), oracle.Shape(n_vocab=96, n_experts=4)])
def test_many_rows(fmt: str, shape: oracle.Shape) -> None:
    """Rows of prompts may take the way of many tokens, with rows of generated tokens and without."""
    oracle.need("cpu")
    model = oracle.transformer(shape)
    tensors, results = model.tensors(fmt), []
    prompts = [oracle.random_tokens(n, 96, n) for n in (40, 30)]
    for options in (replace(oracle.OPTIONS, many_rows=True), oracle.OPTIONS):
        exe = oracle.compiled("cpu", model, tensors, options)
        batch, out = Batch(options), []
        batch.add(prompts[0], 0, [0, 1, 2], "all")
        out.append(exe.run(batch).copy())
        batch.clear()
        batch.add([5], 40, [0, 1, 2], generated=True)
        out.append(exe.run(batch).copy())
        batch.clear()
        batch.add([6], 41, [0, 1, 2], generated=True)
        batch.add(prompts[1], 0, [3, 4], [3, 9, 29])
        out.append(exe.run(batch).copy())
        batch.clear()
        batch.add(prompts[1], 0, [3, 4], "none")
        assert not exe.run(batch).size
        exe.close()
        results.append(out)
    many, few = results
    limit = 2e-2 if shape.n_experts else 2e-3
    oracle.assert_close(zip(many, few, strict=True), limit)
    assert oracle.nmse(many[1], few[1]) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_must_be_asked_for(backend: str) -> None:
    model = oracle.transformer(oracle.Shape(n_vocab=96))
    exe = oracle.compiled(backend, model, model.tensors("F32"))
    try:
        with pytest.raises(BackendError, match="importance"):
            exe.importance()
    finally:
        exe.close()
