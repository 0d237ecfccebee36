"""Adapters: PEFT folders → GGUF against PEFT's own logits, and what is refused, by conversion and by loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_folders import file_bytes, write_tensors

import pyllm
from pyllm.cli import main
from pyllm.errors import GGUFError, ModelError
from pyllm.gguf import GGUFWriter, TensorSpec, Value, open_gguf
from pyllm.llm.adapters import Adapter
from pyllm_convert.conversion import Conversion
from pyllm_convert.lora import convert_adapter

GOLDEN = Path(__file__).parent.parent / "golden" / "lora"
MODELS = ("llama", "qwen2")


def write(path: Path, tensors: dict[str, np.ndarray[Any, Any]], metadata: dict[str, Any]) -> Path:
    values = {key: Value.of(value) for key, value in metadata.items() if value is not None}
    specs = [TensorSpec(name, t.shape, "F32") for name, t in tensors.items()]
    with GGUFWriter(path, values, specs, overwrite=True) as writer:
        for t in tensors.values():
            writer.write(np.ascontiguousarray(t, np.float32).view(np.uint8).reshape(-1))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By name: the golden model as a GGUF file, its adapter as another."""
    made = {}
    for name in MODELS:
        model, adapter = (tmp_path_factory.mktemp(name) / f"{part}.gguf" for part in ("model", "adapter"))
        with Conversion(GOLDEN / name / "model", tokenizer=False) as source:
            tensors = {t.name: t.values.floats(0, t.values.n_rows).reshape(t.shape) for t in source.tensors.values()}
            write(model, tensors, {key: value.value for key, value in source.metadata.items()})
        convert_adapter(GOLDEN / name / "adapter", adapter, GOLDEN / name / "model")
        made[name] = model, adapter
    return made


def nmse(got: Any, wanted: Any) -> float:
    return float(np.mean((got - wanted) ** 2) / np.mean(wanted**2))


@pytest.mark.parametrize("name", MODELS)
def test_adapters_of_classes_without_an_output_head_are_the_same(files: Any, tmp_path: Path, name: str) -> None:
    """Trained on AutoModel: no `model.` in the names of its modules."""
    source = shutil.copytree(GOLDEN / name / "adapter", tmp_path / "adapter")
    path = source / "adapter_model.safetensors"
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = {key.replace(".model.model.", ".model.", 1): entry for key, entry in json.loads(raw[8:start]).items()}
    assert any(key.startswith("base_model.model.layers.") for key in header)
    path.write_bytes(file_bytes(header, raw[start:]))
    target = tmp_path / "adapter.gguf"
    convert_adapter(source, target, GOLDEN / name / "model")
    assert target.read_bytes() == files[name][1].read_bytes()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_logits_are_those_of_peft(files: Any, name: str, backend: str) -> None:
    model, adapter = files[name]
    golden = np.load(GOLDEN / name / "logits.npz")
    ids = golden["ids"].tolist()
    with pyllm.load(model, backend=backend, kv_dtype="f32", n_threads=1, adapters=[adapter]) as llm:
        assert nmse(llm.logits(ids), golden["logits"]) < 1e-10
    with pyllm.load(model, backend=backend, kv_dtype="f32", n_threads=1, adapters=[(adapter, 0.0)]) as llm:
        assert nmse(llm.logits(ids), golden["base"]) < 1e-10
    assert nmse(golden["base"], golden["logits"]) > 0.1


def test_two_halves_are_a_whole(files: Any) -> None:
    model, adapter = files["llama"]
    golden = np.load(GOLDEN / "llama" / "logits.npz")
    with pyllm.load(
        model, backend="reference", kv_dtype="f32", adapters=[(adapter, 0.75), (str(adapter), 0.25)]
    ) as llm:
        assert nmse(llm.logits(golden["ids"].tolist()), golden["logits"]) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_and_a_file_are_the_same_base(files: Any, tmp_path: Path, name: str) -> None:
    model, adapter = files[name]
    convert_adapter(GOLDEN / name / "adapter", tmp_path / "other.gguf", model)
    assert (tmp_path / "other.gguf").read_bytes() == adapter.read_bytes()


def test_the_file_is_as_llama_cpp_wants_it(files: Any) -> None:
    with open_gguf(files["llama"][1]) as file:
        assert {key: file.metadata[key] for key in file.metadata} == {
            "general.type": "adapter",
            "general.architecture": "llama",
            "general.name": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": 6.0,
        }
        assert file.tensors["blk.0.attn_q.weight.lora_a"].shape == (2, 16)
        assert file.tensors["blk.0.attn_q.weight.lora_b"].shape == (16, 2)
        assert file.tensors["token_embd.weight.lora_a"].shape == (24, 4)
        assert file.tensors["output.weight.lora_b"].shape == (24, 4)


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_the_command_converts(files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = GOLDEN / "llama" / "adapter", tmp_path / "out.gguf"
    base = GOLDEN / "llama" / "model"
    code, out, _ = run(capsys, "convert", "--lora", source, target, "--base", base)
    assert (code, out.endswith(": LoRA adapter for llama, 16 matrices, alpha 6, 8.0 KiB\n")) == (0, True), out
    assert target.read_bytes() == files["llama"][1].read_bytes()
    code, _, err = run(capsys, "convert", "--lora", source, target, "--base", base)
    assert code != 0
    assert "out.gguf" in err
    assert run(capsys, "convert", "--lora", source, target)[0] == 2
    assert run(capsys, "convert", source, target, "--base", base)[0] == 2
    assert run(capsys, "convert", "--lora", source, target, "Q8_0", "--base", base)[0] == 2


def test_the_commands_apply(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """bench takes token ids only, so it runs a model without vocabulary."""
    model, adapter = files["llama"]
    few = ("-p", "4", "-n", "0", "-r", "1", "--backend", "reference", "--no-warmup")
    assert run(capsys, "bench", "-m", model, "--lora", adapter, "--lora-scaled", adapter, "-0.5", *few)[0] == 0
    code, _, err = run(capsys, "bench", "-m", model, "--lora-scaled", files["qwen2"][1], "0.5", *few)
    assert code == 1
    assert "'qwen2'" in err
    for command in ("run", "chat", "perplexity"):
        code, out, _ = run(capsys, command, "--help")
        assert "--lora-scaled FILE SCALE" in out


# --- what is refused at load

META = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora", "adapter.lora.alpha": 4.0}
Q = "blk.0.attn_q.weight"


def pair(name: str = Q, rank: int = 2, rows: int = 16, columns: int = 16) -> dict[str, np.ndarray[Any, Any]]:
    return {f"{name}.lora_a": np.ones((rank, columns)), f"{name}.lora_b": np.ones((rows, rank))}


NOT_APPLIED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (pair(), {"general.type": "model"}, "not a LoRA adapter"),
    (pair(), {"adapter.type": "control"}, "not a LoRA adapter"),
    (pair(), {"general.architecture": "qwen2"}, "architecture 'qwen2', this one is 'llama'"),
    (pair(), {"adapter.lora.alpha": float("nan")}, "not a finite number"),
    (pair(), {"adapter.lora.alpha": "4"}, "not a finite number"),
    (pair(), {"adapter.alora.invocation_tokens": [1, 2]}, "activated LoRA"),
    ({}, {}, "no tensors"),
    ({f"{Q}.lora_a": np.ones((2, 16))}, {}, "no lora_b"),
    (pair() | {f"{Q}.lora_b": np.ones((16, 3))}, {}, "do not go together"),
    (pair() | {"blk.0.attn_norm.weight": np.ones(16)}, {}, "tensor blk.0.attn_norm.weight is neither"),
    (pair("blk.7.attn_q.weight"), {}, "no matrix blk.7.attn_q.weight"),
    (pair(rows=8), {}, r"[8, 16] to blk.0.attn_q.weight, which is [16, 16] here"),
    (pair(columns=24), {}, "made for another model"),
    (pair("blk.0.attn_norm.weight"), {}, "blk.0.attn_norm.weight cannot be adapted"),
    ({f"{Q}.lora_a": np.ones((2, 2, 16)), f"{Q}.lora_b": np.ones((2, 16, 2))}, {}, "adapts experts"),
]


@pytest.mark.parametrize(("tensors", "metadata", "message"), NOT_APPLIED)
def test_what_cannot_be_applied_is_one_clear_error(files, tmp_path, tensors, metadata, message) -> None:
    path = write(tmp_path / "bad.gguf", tensors, META | metadata)
    with pytest.raises(ModelError) as caught:
        pyllm.load(files["llama"][0], backend="reference", adapters=[path])
    assert message in str(caught.value)
    assert "bad.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_and_scales_that_are_none(files: Any, tmp_path: Path) -> None:
    model, adapter = files["llama"]
    (tmp_path / "text.gguf").write_bytes(b"no gguf")
    with pytest.raises(GGUFError):
        pyllm.load(model, backend="reference", adapters=[tmp_path / "text.gguf"])
    with pytest.raises(ModelError, match="there is no adapter"):
        pyllm.load(model, backend="reference", adapters=[adapter, tmp_path / "nothing.gguf"])
    with pytest.raises(ModelError, match="finite number"):
        pyllm.load(model, backend="reference", adapters=[(adapter, float("inf"))])


def test_alpha_zero_means_the_scale_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", pair(), META | {"adapter.lora.alpha": None})
    with Adapter(path, 0.5) as adapter:
        assert (adapter.pairs[Q].factor, adapter.pairs[Q].rank) == (0.5, 2)
    with Adapter(write(path, pair(), META), 0.5) as adapter:
        assert adapter.pairs[Q].factor == 1.0


# --- what is refused by conversion


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "llama" / "adapter", tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


NOT_CONVERTED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "'LOHA'"),
    ({"use_dora": True}, "DoRA"),
    ({"fan_in_fan_out": True}, "transposed"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"init_lora_weights": "pissa"}, "'pissa'"),
    ({"lora_alpha": 0}, "lora_alpha is 0"),
    ({"lora_alpha": "6"}, "lora_alpha is '6'"),
    ({"alpha_pattern": {"(a+)+b": 3}}, "alpha_pattern has the key '(a+)+b'"),
    ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern is -1"),
    ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is no table"),
]


@pytest.mark.parametrize(("changes", "message"), NOT_CONVERTED)
def test_settings_that_cannot_be_converted(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ModelError) as caught:
        convert_adapter(folder, folder / "out.gguf", GOLDEN / "llama" / "model")
    assert message in str(caught.value)
    assert not (folder / "out.gguf").exists()


ATTENTION = "base_model.model.model.layers.0.self_attn"
WRONG: list[tuple[dict[str, tuple[int, ...]], str]] = [
    ({}, "no tensors"),
    ({f"{ATTENTION}.q_proj.lora_A.weight": (2, 16)}, "only one of lora_A and lora_B"),
    ({f"{ATTENTION}.q_proj.lora_A.weight": (2, 16), f"{ATTENTION}.q_proj.lora_B.weight": (16, 3)}, "go together"),
    ({f"{ATTENTION}.q_proj.lora_magnitude_vector": (16,)}, "neither lora_A nor lora_B"),
    ({f"{ATTENTION}.z_proj.lora_A.weight": (2, 16), f"{ATTENTION}.z_proj.lora_B.weight": (16, 2)}, "z_proj"),
    ({f"{ATTENTION}.q_proj.lora_A.weight": (2, 2, 16)}, "2 axes"),
    ({"base_model.model.model.layers.0.mlp.experts.0.w1.lora_A.weight": (2, 16)}, "experts"),
    (
        {f"{ATTENTION}.q_proj.lora_A.{a}.weight": (2, 16) for a in ("one", "two")},
        "more than one adapter",
    ),
]


@pytest.mark.parametrize(("shapes", "message"), WRONG)
def test_tensors_that_cannot_be_converted(folder: Path, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    write_tensors(folder / "adapter_model.safetensors", {n: np.ones(s, np.float32) for n, s in shapes.items()})
    with pytest.raises(ModelError) as caught:
        convert_adapter(folder, folder / "out.gguf", GOLDEN / "llama" / "model")
    assert message in str(caught.value)
    assert list(folder.parent.rglob("*.gguf*")) == []


def test_adapters_for_another_model_are_refused(files: Any, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"lm_head.*no matrix of its own"):
        convert_adapter(folder, folder / "out.gguf", files["qwen2"][0])
    shapes = {f"{ATTENTION}.q_proj.lora_A.weight": (2, 24), f"{ATTENTION}.q_proj.lora_B.weight": (16, 2)}
    write_tensors(folder / "adapter_model.safetensors", {n: np.ones(s, np.float32) for n, s in shapes.items()})
    with pytest.raises(ModelError, match=r"\[16, 24\], the model's is \[16, 16\]"):
        convert_adapter(folder, folder / "out.gguf", files["llama"][0])


def test_missing_parts_are_named(folder: Path, files: Any, tmp_path: Path) -> None:
    base = GOLDEN / "llama" / "model"
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: convert_adapter(base, tmp_path / "o.gguf", base), "adapter_config.json"),
        (lambda: convert_adapter(folder, tmp_path / "o.gguf", tmp_path / "none"), "there is no model"),
        (lambda: convert_adapter(folder, files["llama"][0], files["llama"][0], overwrite=True), "another target"),
    ]
    for call, message in cases:
        with pytest.raises(ModelError, match=message):
            call()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        convert_adapter(folder, tmp_path / "o.gguf", base)
