"""Adapters applied by a backend against weights that they were merged into, in float32, on the reference backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.gguf import GGUFWriter, TensorInfo, TensorSpec, Value
from pyllm.llm.adapters import Adapter, open_adapters
from pyllm.program.lora import adapt

LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
EVERYTHING = (*(f"blk.{il}.{stem}.weight" for il in range(2) for stem in LINEAR), "token_embd.weight", "output.weight")
SMALL = oracle.Shape(n_ff=256, head_dim=32, n_rot=32)


def write_adapter(path: Path, halves: Mapping[str, np.ndarray[Any, Any]], alpha: float = 8.0, **keys: Any) -> Path:
    """A file with these tensors (float32 or float16); `keys` replace metadata, None leaves one out."""
    metadata = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    metadata |= {"adapter.lora.alpha": alpha} | {key.replace("__", "."): value for key, value in keys.items()}  # type: ignore[assignment]
    specs = [TensorSpec(name, v.shape, "F16" if v.dtype == np.float16 else "F32") for name, v in halves.items()]
    values = {key: Value.of(value) for key, value in metadata.items() if value is not None}
    with GGUFWriter(path, values, specs, overwrite=True) as writer:
        for v in halves.values():
            writer.write(np.ascontiguousarray(v).view(np.uint8).reshape(-1))
    return path


def random_halves(
    shapes: Mapping[str, tuple[int, ...]], rank: int, dtype: Any = np.float32, seed: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """lora_a and lora_b for these matrices, of a size that matters beside weights of spread 1 / sqrt(columns)."""
    rng = np.random.default_rng(seed)
    halves = {}
    for name, (rows, columns) in shapes.items():
        a, b = rng.standard_normal((rank, columns)), rng.standard_normal((rows, rank))
        if name == "token_embd.weight":
            a, b = rng.standard_normal((rows, rank)), rng.standard_normal((columns, rank))
        halves[f"{name}.lora_a"] = (a * columns**-0.5).astype(dtype)
        halves[f"{name}.lora_b"] = (b * rank**-0.5).astype(dtype)
    return halves


def merged(tensors: Mapping[str, TensorInfo], adapters: list[Adapter], tied: bool = False) -> dict[str, TensorInfo]:
    """All tensors in float32, matrices with what the adapters add to them."""
    out = {}
    for name, tensor in tensors.items():
        values = oracle.decoded(tensor)
        for adapter in adapters:
            if name in adapter.pairs:
                pair = adapter.pairs[name]
                a, b = oracle.decoded(pair.a), oracle.decoded(pair.b)
                values = values + np.float32(pair.factor) * (a @ b.T if name == "token_embd.weight" else b @ a)
        out[name] = TensorInfo(name, tensor.shape, "F32", values.astype(np.float32).view(np.uint8).reshape(-1))
    return out


def adapted(model: oracle.Model, tensors: Mapping[str, TensorInfo], adapters: list[Adapter]) -> Any:
    program, more = adapt(model.program, tensors, "llama", adapters)
    return replace(model, program=program), more


def run_all(backend: str, model: oracle.Model, tensors: Mapping[str, TensorInfo]) -> list[Any]:
    exe = oracle.compiled(backend, model, tensors)
    try:
        return [oracle.run(exe, batch) for batch in oracle.ragged_batches(model.shapes["token_embd.weight"][0])]
    finally:
        exe.close()


@pytest.mark.parametrize("backend", oracle.each())
@pytest.mark.parametrize(("fmt", "limit"), [("F32", 1e-9), ("Q4_0", 2e-3), ("Q4_K", 2e-3), ("Q8_0", 2e-3)])
def test_adapters_do_what_merged_weights_do(backend: str, fmt: str, limit: float, tmp_path: Path) -> None:
    if backend in ("cuda", "mlx"):
        limit = max(limit, 1e-6)  # of products with matrices in half precision
    model = oracle.transformer(oracle.Shape())
    tensors = model.tensors(fmt)
    shapes = {name: model.shapes[name] for name in EVERYTHING}
    first = write_adapter(tmp_path / "a.gguf", random_halves(shapes, 8))
    few = {name: shapes[name] for name in ("blk.0.attn_q.weight", "blk.1.ffn_up.weight", "output.weight")}
    second = write_adapter(tmp_path / "b.gguf", random_halves(few, 16, np.float16, seed=1), alpha=0.0)
    adapters = open_adapters([first, (second, -0.5)])
    wanted = run_all("reference", model, merged(tensors, adapters))
    oracle.assert_close(zip(run_all(backend, *adapted(model, tensors, adapters)), wanted, strict=True), limit)
    assert oracle.nmse(run_all("reference", model, tensors)[0], wanted[0]) > 0.1


@pytest.mark.parametrize("backend", oracle.each())
@settings(max_examples=8, deadline=None)
@given(
    rank=st.sampled_from([1, 2, 3, 5, 16, 24, 64]),
    names=st.sets(st.sampled_from(EVERYTHING), min_size=1),
    scale=st.sampled_from([1.0, 0.25, -2.0]),
)
def test_any_part_of_a_model_can_be_adapted(tmp_path_factory, backend, rank, names, scale) -> None:
    # In full precision, where whatever goes wrong shows; rounded activations are the business of the test above.
    model = oracle.transformer(SMALL)
    tensors = model.tensors("F32")
    path = tmp_path_factory.mktemp("adapter") / "a.gguf"
    write_adapter(path, random_halves({name: model.shapes[name] for name in sorted(names)}, rank))
    adapters = open_adapters([(path, scale)])
    wanted = run_all("reference", model, merged(tensors, adapters))
    oracle.assert_close(zip(run_all(backend, *adapted(model, tensors, adapters)), wanted, strict=True), 1e-6)


@pytest.mark.parametrize("backend", oracle.each())
def test_routers_can_be_adapted(backend: str, tmp_path: Path) -> None:
    model = oracle.transformer(replace(SMALL, n_experts=4))
    tensors = model.tensors("F32")
    name = "blk.0.ffn_gate_inp.weight"
    path = write_adapter(tmp_path / "a.gguf", random_halves({name: model.shapes[name]}, 4))
    adapters = open_adapters([path])
    wanted = run_all("reference", model, merged(tensors, adapters))
    oracle.assert_close(zip(run_all(backend, *adapted(model, tensors, adapters)), wanted, strict=True), 1e-6)


@pytest.mark.parametrize("backend", oracle.each())
def test_requests_in_company_get_what_they_get_alone(backend: str, tmp_path: Path) -> None:
    """Bit for bit, with adapters as without."""
    model = oracle.transformer(SMALL)
    path = write_adapter(tmp_path / "a.gguf", random_halves({n: model.shapes[n] for n in EVERYTHING}, 8))
    exe = oracle.compiled(backend, *adapted(model, model.tensors("Q4_0"), open_adapters([path])))
    try:
        tokens = oracle.random_tokens(20, 160)
        alone = oracle.run(exe, [oracle.Step(tokens, 0, [1, 2], "last")])
        other = oracle.Step(oracle.random_tokens(11, 160, 1), 0, [5], "last")
        together = oracle.run(exe, [oracle.Step(tokens, 0, [3, 4], "last"), other])
    finally:
        exe.close()
    if backend == "reference":
        np.testing.assert_allclose(together[0], alone[0], rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(together[0], alone[0])


def test_a_scale_of_nothing_leaves_the_program_alone(tmp_path: Path) -> None:
    model = oracle.transformer(SMALL)
    path = write_adapter(tmp_path / "a.gguf", random_halves({n: model.shapes[n] for n in EVERYTHING}, 8))
    tensors = model.tensors("F32")
    assert adapt(model.program, tensors, "llama", open_adapters([(path, 0.0)])) == (model.program, tensors)


def test_an_adapted_table_leaves_a_tied_output_alone(tmp_path: Path) -> None:
    model = oracle.transformer(replace(SMALL, tied=True))
    tensors = model.tensors("F32")
    path = write_adapter(tmp_path / "a.gguf", random_halves({"token_embd.weight": (160, 256)}, 8))
    adapters = open_adapters([path])
    untied = oracle.transformer(SMALL)
    apart = merged(tensors, adapters) | {"output.weight": tensors["token_embd.weight"]}
    wanted = run_all("reference", untied, apart)
    got = run_all("reference", *adapted(model, tensors, adapters))
    oracle.assert_close(zip(got, wanted, strict=True), 1e-9)
