"""Files of a named size: that they have it, that wishes are kept, and that what matters gets more bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from arch_models import ArchModel
from pyllm.errors import FormatError, RequestError
from pyllm.gguf import open_gguf
from pyllm.gguf.types import by_name
from pyllm.quant.calibrate.sensitivity import along, sensitivities
from pyllm.quant.calibrate.target_size import formats_for_size, quantize_to_size
from pyllm.quant.imatrix import ImportanceMatrix, Sums
from pyllm.quant.recipes import RecipeOptions
from pyllm.quant.sizing import Task, candidates, choose_for_size, measure_errors
from pyllm.quant.source import SourceTensor, sources_of

TOKENS = np.random.default_rng(0).integers(0, 96, 600).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers, 256 wide, with random weights; those of the second are small."""
    path = tmp_path_factory.mktemp("sized") / "model.gguf"
    random = np.random.default_rng(1)
    writer = GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_context_length, 256), (writer.add_embedding_length, 256), (writer.add_block_count, 2),
        (writer.add_feed_forward_length, 512), (writer.add_head_count, 4), (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_dimension_count, 64), (writer.add_vocab_size, 96),
    ):  # fmt: skip
        add(value)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (96, 256), "output": (96, 256), "output_norm": (256,)}
    for i in range(2):
        for name, rows, columns in (
            ("attn_q", 256, 256), ("attn_k", 128, 256), ("attn_v", 128, 256), ("attn_output", 256, 256),
            ("ffn_gate", 512, 256), ("ffn_up", 512, 256), ("ffn_down", 256, 512),
        ):  # fmt: skip
            shapes[f"blk.{i}.{name}"] = (rows, columns)
        shapes |= {f"blk.{i}.attn_norm": (256,), f"blk.{i}.ffn_norm": (256,)}
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
            continue
        scale = 0.03 if name.startswith("blk.1.") else 1.0
        values = scale * random.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sources(shape: tuple[int, ...], name: str = "blk.0.ffn_up.weight") -> SourceTensor:
    rows = np.random.default_rng(2).standard_normal(shape, np.float32).reshape(-1, shape[-1]).view(np.uint8)
    return SourceTensor(name, shape, "F32", lambda start, stop: rows[start:stop])


def bits(path: Path) -> float:
    with open_gguf(path) as file:
        tensors = file.tensors.values()
        return 8 * sum(t.n_bytes for t in tensors) / sum(t.n_elements for t in tensors)


@pytest.mark.parametrize("wanted", [3.0, 4.25, 6.0])
def test_tensors_have_the_bits_that_were_named(model: Path, tmp_path: Path, wanted: float) -> None:
    target = tmp_path / "out.gguf"
    summary = quantize_to_size(model, target, bits_per_weight=wanted, text=TOKENS, fast=wanted != 4.25, n_threads=1)
    assert 0.99 * wanted <= bits(target) <= wanted
    assert summary.bits_per_weight == pytest.approx(bits(target))


def test_a_file_has_the_size_that_was_named(model: Path, tmp_path: Path) -> None:
    target, n_bytes = tmp_path / "out.gguf", 700_000
    matrix = ImportanceMatrix({"blk.0.attn_q.weight": Sums(np.ones((1, 256)), np.ones(1, np.int64))}, ["some text"])
    matrix.save(tmp_path / "imatrix.gguf")
    quantize_to_size(model, target, n_bytes=n_bytes, imatrix=tmp_path / "imatrix.gguf", fast=True, n_threads=1)
    assert 0.99 * n_bytes <= target.stat().st_size <= n_bytes


def test_what_matters_gets_more_bits(model: Path) -> None:
    with open_gguf(model) as file:
        groups = [[t.name for t in group] for group in Task.of(sources_of(file)).groups()]
        found = sensitivities(file, groups, TOKENS, n_threads=1)
        assert all(found[a] == found[b] for a, b in (g for g in groups if len(g) == 2))
        assert found["blk.0.ffn_up.weight"] > 10 * found["blk.1.ffn_up.weight"]
        assert sensitivities(file, [["blk.7.ffn_up.weight"]], TOKENS, n_threads=1) == {}
        chosen = formats_for_size(file, bits_per_weight=4.5, text=TOKENS, n_threads=1)
        formats = {c.name: by_name(c.format) for c in chosen}
        for name in ("attn_v", "attn_output", "ffn_up", "ffn_down"):
            first, second = (formats[f"blk.{i}.{name}.weight"] for i in (0, 1))
            assert first.block_bytes / first.block_size > second.block_bytes / second.block_size


def test_what_changes_little_from_layer_to_layer_is_measured_now_and_then() -> None:
    measured: list[int] = []

    def smooth(i: int) -> float:
        measured.append(i)
        return 0.01 * 1.1**i

    assert along(range(32), smooth) == pytest.approx([0.01 * 1.1**i for i in range(32)])
    assert sorted(measured) == [0, 1, 16, 31]
    assert along([], smooth) == []
    assert along(range(1), smooth) == pytest.approx([0.01])


def test_what_changes_is_measured_where_it_does() -> None:
    measured: list[int] = []

    def step(i: int) -> float:
        measured.append(i)
        return 5.0 if i < 11 else 0.2

    found = along(range(40), step)
    assert found == pytest.approx([step(i) for i in range(40)], rel=0.5)
    assert {10, 11} <= set(measured)
    assert len(measured[:-40]) < 20


def test_sensitivities_are_kl_divergences(model: Path) -> None:
    """By the definition: logits of the model as it is and with one matrix quantized."""
    name = "blk.0.ffn_down.weight"
    with open_gguf(model) as file:
        found = sensitivities(file, [[name]], TOKENS[:64], n_windows=1, n_ctx=64, n_threads=1, backend="reference")
        from pyllm.quant import formats

        tensor = file.tensors[name]
        weights = formats.get("F32").decode(tensor.data).reshape(tensor.shape)
        probed = formats.get("Q3_K").decode(formats.get("Q3_K").encode(weights))
        error = float(np.sum((probed - weights) ** 2) / np.sum(weights**2))
        q8 = formats.get("Q8_0")
        p, q = (_logprobs(file, {name: q8.encode(w)}) for w in (weights, probed))
    divergence = float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)[1::2]))
    assert found[name] == pytest.approx(divergence / error, rel=1e-3)


def test_matrices_of_which_the_program_uses_rows_are_measured(tmp_path: Path) -> None:
    """Experts' gate and up in one tensor, as Gemma 4's files have them, matter as much as the two of their rows do."""
    tiny = ArchModel.load("gemma4-moe")
    fused, n_ff = "blk.0.ffn_gate_up_exps.weight", tiny.shapes["blk.0.ffn_down_exps.weight"][-1]
    apart = ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"]
    whole = tiny.weights[fused]
    parts = dict(zip(apart, (whole[:, :n_ff].copy(), whole[:, n_ff:].copy()), strict=True))
    other = replace(
        tiny, shapes={k: v for k, v in tiny.shapes.items() if k != fused} | {k: v.shape for k, v in parts.items()}
    )
    found = {}
    for path, names in (
        (tiny.write(tmp_path / "fused.gguf"), [fused]),
        (other.write(tmp_path / "apart.gguf", parts), apart),
    ):
        with open_gguf(path) as file:
            found |= sensitivities(file, [names], TOKENS[:64], n_windows=1, n_ctx=64, n_threads=1, backend="reference")
    # The same divergence, over one relative error and over the sum of two.
    assert found[fused] == pytest.approx(2 * found[apart[0]], rel=0.01)
    assert found[fused] > 0


def _logprobs(file: Any, replaced: dict[str, Any]) -> np.ndarray:
    from pyllm import archs, backends
    from pyllm.backends.base import Batch
    from pyllm.config import ExecutionOptions
    from pyllm.gguf import TensorInfo

    tensors = dict(file.tensors)
    for name, data in replaced.items():
        tensors[name] = TensorInfo(name, tensors[name].shape, "Q8_0", data.reshape(-1))
    options = ExecutionOptions(n_pages=2, max_tokens=64, max_seqs=1, max_rows=64)
    executable = backends.get("reference").compile(archs.load(file.metadata, tensors, 64).program, tensors, options)
    batch = Batch(options)
    batch.add(TOKENS[:64], 0, [0, 1], "all")
    logits = executable.run(batch).astype(np.float64)
    executable.close()
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def test_pairs_have_one_format_and_wishes_are_kept(model: Path) -> None:
    options = RecipeOptions(tensor_types=[("blk.1.ffn_down", "Q8_0")], embedding_format="Q5_0", leave_output=True)
    with open_gguf(model) as file:
        chosen = formats_for_size(file, bits_per_weight=5.0, options=options, fast=True, n_threads=1)
        assert [c.name for c in chosen] == list(file.tensors)
    formats = {c.name: c.format for c in chosen}
    assert formats["blk.1.ffn_down.weight"] == "Q8_0"
    assert formats["token_embd.weight"] == "Q5_0"
    assert formats["output.weight"] == "F32"
    assert formats["output_norm.weight"] == "F32"
    for i in range(2):
        assert formats[f"blk.{i}.ffn_gate.weight"] == formats[f"blk.{i}.ffn_up.weight"]
        assert formats[f"blk.{i}.attn_q.weight"] == formats[f"blk.{i}.attn_k.weight"]


def test_rows_get_only_what_they_divide_into() -> None:
    assert "Q4_K" in candidates(sources((8, 512)))
    narrow = candidates(sources((8, 96)))
    assert all(96 % by_name(f).block_size == 0 for f in narrow)
    assert {"Q4_0", "IQ4_NL", "Q8_0", "F16"} <= set(narrow)
    assert candidates(sources((8, 50))) == ["F32", "F16"]
    assert candidates(sources((8, 256)), 5.0) == ["F32", "Q4_1", "Q5_K", "Q6_K", "Q8_0", "F16"]


def test_errors_of_a_sample_are_those_of_the_whole() -> None:
    tensor = sources((4, 2048, 256), "blk.0.ffn_up_exps.weight")
    importance = np.random.default_rng(3).random((4, 256)) + 0.5
    matrix = ImportanceMatrix({tensor.name: Sums(importance, np.ones(4, np.int64))})
    sampled = measure_errors([tensor], imatrix=matrix, n_threads=1)[tensor.name]
    from pyllm.quant import formats

    weights = formats.get("F32").decode(tensor.read(0, tensor.n_rows)).reshape(4, 2048, 256)
    for name in ("Q4_0", "Q6_K"):
        squared = power = 0.0
        for matrix_weights, w in zip(weights, importance.astype(np.float32), strict=True):
            decoded = formats.get(name).decode(formats.get(name).encode(matrix_weights, w))
            squared += float(np.sum(w * (decoded - matrix_weights) ** 2))
            power += float(np.sum(w * matrix_weights**2))
        assert sampled[name] == pytest.approx(squared / power, rel=0.05)
    assert sampled["F32"] == 0


def test_what_cannot_be_is_refused(model: Path) -> None:
    with open_gguf(model) as file:
        with pytest.raises(FormatError, match=r"with the smallest formats they take \d+ \(1\.\d+ bits per weight\)"):
            formats_for_size(file, bits_per_weight=1.0)
        with pytest.raises(FormatError, match="name a size"):
            formats_for_size(file)
        with pytest.raises(RequestError, match="the text has 100 tokens"):
            formats_for_size(file, bits_per_weight=4.0, text=TOKENS[:100], n_threads=1)
        with pytest.raises(FormatError, match="not a tensor format"):
            formats_for_size(file, bits_per_weight=4.0, options=RecipeOptions(output_format="Q4"))


def test_what_is_quantized_stays_unless_it_is_allowed(model: Path, tmp_path: Path) -> None:
    quantized, again = tmp_path / "q.gguf", tmp_path / "again.gguf"
    quantize_to_size(model, quantized, bits_per_weight=8.5, fast=True, n_threads=1)
    with pytest.raises(FormatError, match="already"):
        quantize_to_size(quantized, again, bits_per_weight=7.5, fast=True, n_threads=1)
    quantize_to_size(quantized, again, bits_per_weight=7.5, fast=True, n_threads=1, allow_requantize=True)
    assert 7.4 <= bits(again) <= 7.5


def test_unknown_errors_are_typical_ones() -> None:
    """Without measuring, embeddings that serve as output matrix count as an output matrix."""
    tensors = [sources((4, 256), "token_embd.weight"), sources((4, 256), "blk.0.attn_q.weight")]
    task = Task.of(tensors)
    errors = measure_errors(tensors, n_threads=1)
    embedding, query = choose_for_size(task, errors, 2 * 4 * 256 * 5 // 8)
    assert by_name(embedding.format).block_bytes > by_name(query.format).block_bytes
