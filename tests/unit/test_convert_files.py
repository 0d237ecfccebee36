"""Folders to files: any recipe, straight from the checkpoint, in bounded memory, nothing half-written."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from convert_folders import LLAMA, llama_tensors, write_folder

from pyllm.errors import FormatError, PyllmError
from pyllm.gguf import open_gguf
from pyllm.quant.pipeline import Summary
from pyllm.quant.recipes import RecipeOptions
from pyllm_convert import convert

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "convert"


def write(folder: Path, target: Path, recipe: str | None = None, **options: Any) -> Summary:
    return convert(folder, target, recipe, tokenizer=False, n_threads=1, **options)


def test_without_recipe_values_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    write(write_folder(tmp_path / "in"), tmp_path / "out.gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    found = {t.name: t.data for t in reader.tensors}
    tensors = llama_tensors()
    assert np.array_equal(found["token_embd.weight"], tensors["model.embed_tokens.weight"])
    assert np.array_equal(found["blk.0.ffn_down.weight"], tensors["model.layers.0.mlp.down_proj.weight"])
    assert np.array_equal(found["output_norm.weight"], tensors["model.norm.weight"])
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.rope.freq_base"].types == [gguf.GGUFValueType.FLOAT32]
    assert reader.fields["llama.block_count"].types == [gguf.GGUFValueType.UINT32]


@pytest.mark.parametrize(
    ("case", "recipe", "tensor", "format"),
    [
        ("llama", None, "blk.0.attn_q.weight", "BF16"),
        ("llama-bias-f16", None, "blk.0.attn_q.weight", "F16"),
        ("llama-f32-tied", "F16", "blk.0.attn_q.weight", "F16"),
        ("llama-fp8-blocks", None, "blk.0.attn_q.weight", "BF16"),
        ("llama-fp8-channels", "Q8_0", "blk.0.attn_q.weight", "Q8_0"),
        ("qwen3moe", "Q4_K_M", "blk.0.ffn_down_exps.weight", "Q5_0"),
        ("gpt-oss-mxfp4", None, "blk.1.ffn_gate_exps.weight", "MXFP4"),
        ("gpt-oss-mxfp4", "Q8_0", "blk.1.ffn_gate_exps.weight", "MXFP4"),
        ("gpt-oss-mxfp4", "Q8_0", "blk.1.attn_output.weight", "Q8_0"),
        ("gpt-oss", "Q8_0", "blk.1.ffn_up_exps.weight", "Q8_0"),
    ],
)
def test_recipes(tmp_path: Path, case: str, recipe: str | None, tensor: str, format: str) -> None:
    summary = write(GOLDEN / case, tmp_path / "out.gguf", recipe)
    assert {t.name: t.format for t in summary.tensors}[tensor] == format
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.tensors[tensor].format == format
        assert file.tensors["output_norm.weight"].format == "F32"
        for t in summary.tensors:
            assert t.error.relative < 0.1, t.name


def test_formats_asked_for(tmp_path: Path) -> None:
    options = RecipeOptions(tensor_types=[("ffn_down", "Q8_0")], output_format="F16")
    formats = {t.name: t.format for t in write(GOLDEN / "llama", tmp_path / "a.gguf", options=options).tensors}
    assert formats["blk.0.ffn_down.weight"] == "Q8_0"
    assert formats["output.weight"] == "F16"
    assert formats["blk.0.ffn_up.weight"] == "BF16"
    assert formats["blk.0.ffn_norm.weight"] == "F32"
    options = RecipeOptions(tensor_types=[("_exps", "Q8_0")])
    with pytest.raises(FormatError, match="--allow-requantize"):
        write(GOLDEN / "gpt-oss-mxfp4", tmp_path / "b.gguf", "Q4_0", options=options)
    done = write(GOLDEN / "gpt-oss-mxfp4", tmp_path / "b.gguf", "Q4_0", options=options, allow_requantize=True)
    formats = {t.name: t.format for t in done.tensors}
    assert formats["blk.0.ffn_up_exps.weight"] == "Q8_0"
    assert formats["blk.0.attn_q.weight"] == "Q4_0"


def test_the_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(PyllmError):
        write(folder, folder / "model.safetensors", overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before


def test_file_type_is_the_recipes(tmp_path: Path) -> None:
    write(GOLDEN / "llama", tmp_path / "a.gguf", "Q8_0")
    with open_gguf(tmp_path / "a.gguf") as file:
        assert file.metadata["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    write(GOLDEN / "llama", tmp_path / "b.gguf", "F32")
    with open_gguf(tmp_path / "b.gguf") as file:
        assert file.metadata["general.file_type"] == gguf.LlamaFileType.ALL_F32
        assert {t.format for t in file.tensors.values()} == {"F32"}


def test_weights_that_are_no_numbers_leave_nothing_behind(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = np.nan
    folder = write_folder(tmp_path / "in", tensors=tensors)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(PyllmError, match=r"no number|not finite|infinite"):
        write(folder, out / "x.gguf", "Q8_0")
    assert list(out.iterdir()) == []


_MEASURE = """
import resource, sys
from pathlib import Path
from pyllm_convert import Conversion, convert
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
with Conversion(Path(sys.argv[1]), tokenizer=False):
    before = peak()
convert(sys.argv[1], sys.argv[2], "Q8_0", tokenizer=False, n_threads=1)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is counted in KiB on Linux only")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Float8 times scales, 420 MB as floats, with 34 MB of weights in the largest tensor."""
    hidden, inner, vocab = 1024, 8192, 32768
    config = LLAMA | {"hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocab, "num_hidden_layers": 2}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"model.norm.weight": ("F32", (hidden,))}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = ("F8_E4M3", (vocab, hidden))
    for il in range(2):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{il}.{norm}.weight"] = ("F32", (hidden,))
        for part, shape in (
            ("self_attn.q", (hidden, hidden)),
            ("self_attn.k", (hidden // 2, hidden)),
            ("self_attn.v", (hidden // 2, hidden)),
            ("self_attn.o", (hidden, hidden)),
            ("mlp.gate", (inner, hidden)),
            ("mlp.up", (inner, hidden)),
            ("mlp.down", (hidden, inner)),
        ):
            shapes[f"model.layers.{il}.{part}_proj.weight"] = ("F8_E4M3", shape)
    for name, (dtype, shape) in list(shapes.items()):
        if dtype == "F8_E4M3":
            shapes[f"{name}_scale_inv"] = ("F32", (shape[0] // 128, shape[1] // 128))
    header, at = {}, 0
    for name, (dtype, shape) in shapes.items():
        n = int(np.prod(shape)) * (4 if dtype == "F32" else 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)  # zeros that take no space on disk
    run = [sys.executable, "-c", _MEASURE, str(tmp_path), str(tmp_path / "out.gguf")]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=None)
    assert int(done.stdout) < 200
    assert at * 4 > 400 << 20
