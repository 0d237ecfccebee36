"""Weights replaced in a compiled model: it is then the model that would have been compiled of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest

from pyllm.errors import BackendError

BACKENDS = oracle.each("cpu", "mlx", "reference")
SHAPES = {"tied": oracle.Shape(tied=True), "bias": oracle.Shape(bias=True), "experts": oracle.Shape(n_experts=4)}
STEPS = [oracle.Step(range(40), 0, [3, 1, 0])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fmt", ["F16", "Q8_0", "IQ4_XS"])
@pytest.mark.parametrize("shape", SHAPES)
def test_replaced_weights_are_those_that_count(backend: str, fmt: str, shape: str) -> None:
    model = oracle.transformer(SHAPES[shape])
    old, new = model.tensors(fmt), model.tensors(fmt, seed=1)
    changed = ["token_embd.weight", "blk.0.attn_k.weight", "blk.1.attn_output.weight"]
    changed.append("blk.1.ffn_up_exps.weight" if shape == "experts" else "blk.1.ffn_up.weight")
    first = oracle.compiled(backend, model, old)
    second = oracle.compiled(backend, model, {**old, **{name: new[name] for name in changed}})
    try:
        before, wanted = (oracle.run(exe, STEPS) for exe in (first, second))
        first.replace({name: new[name] for name in changed})
        np.testing.assert_array_equal(oracle.run(first, STEPS), wanted)
        first.replace({name: old[name] for name in changed})
        np.testing.assert_array_equal(oracle.run(first, STEPS), before)
        assert not np.array_equal(before, wanted)
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused_and_nothing_replaced(backend: str) -> None:
    model = oracle.transformer()
    tensors, other = model.tensors("F16"), model.tensors("F16", seed=1)
    exe = oracle.compiled(backend, model, tensors)
    try:
        before = oracle.run(exe, STEPS)
        fits = other["blk.0.attn_q.weight"]
        for wrong in (
            model.tensors("Q8_0")["blk.0.attn_k.weight"],
            replace(other["blk.0.attn_k.weight"], shape=(64, 512)),
            replace(fits, name="blk.7.attn_q.weight"),
        ):
            with pytest.raises(BackendError):
                exe.replace({fits.name: fits, wrong.name: wrong})
        np.testing.assert_array_equal(oracle.run(exe, STEPS), before)
    finally:
        exe.close()
