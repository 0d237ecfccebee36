"""Loading architectures from metadata: hostile hyper-parameters and broken tensors are refused, with names."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arch_models import ArchModel
from pyllm import archs
from pyllm.archs.describe import describe
from pyllm.archs.hparams import HParams
from pyllm.errors import ModelError, PyllmError
from pyllm.gguf.tensor import TensorInfo, file_name
from pyllm.program import Program
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.elementwise import Scale
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.position import PositionScale
from pyllm.program.ops.rope import Rope
from pyllm.program.ops.select import SelectRows, Slice

T = TypeVar("T")

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 48,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def shapes(n_layers: int = 2) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, 32), "output_norm.weight": (32,)}
    for i in range(n_layers):
        out |= {
            f"blk.{i}.attn_norm.weight": (32,),
            f"blk.{i}.attn_q.weight": (32, 32),
            f"blk.{i}.attn_k.weight": (16, 32),
            f"blk.{i}.attn_v.weight": (16, 32),
            f"blk.{i}.attn_output.weight": (32, 32),
            f"blk.{i}.ffn_norm.weight": (32,),
            f"blk.{i}.ffn_gate.weight": (48, 32),
            f"blk.{i}.ffn_up.weight": (48, 32),
            f"blk.{i}.ffn_down.weight": (32, 48),
        }
    return out


def infos(of: dict[str, tuple[int, ...]], **values: Any) -> dict[str, TensorInfo]:
    out = {}
    for name, shape in of.items():
        data = np.full(shape, values.get(name, 1.0), np.float32)
        out[name] = TensorInfo(name, shape, "F32", data.reshape(-1).view(np.uint8))
    return out


def load(metadata: dict[str, Any] | None = None, of: dict[str, tuple[int, ...]] | None = None) -> archs.Architecture:
    return archs.load(LLAMA | (metadata or {}), infos(of or shapes()), 64)


def test_what_is_loaded() -> None:
    model = load()
    assert (model.name, model.n_ctx_train, model.n_vocab, model.n_embd, model.n_layers) == ("llama", 128, 64, 32, 2)
    assert len(model.program.kv) == 2
    assert set(model.program.weights()) == set(shapes())


def test_rows_are_selected_before_the_last_feed_forward() -> None:
    ops = load().program.ops
    first = next(i for i, op in enumerate(ops) if isinstance(op, SelectRows))
    assert isinstance(ops[first - 1], Attention)
    assert ops[first].layer == 1


def test_known_names() -> None:
    required = {"llama", "qwen2", "qwen3", "qwen3moe", "gemma3"}
    assert required <= set(archs.names())


def test_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(ModelError, match=r"'no-such' is unknown; known are .*llama.*qwen2"):
        archs.load({"general.architecture": "no-such"}, {}, 16)


@pytest.mark.parametrize("value", [None, "", 3])
def test_no_architecture(value: object) -> None:
    with pytest.raises(ModelError, match=r"general\.architecture"):
        archs.load({"general.architecture": value}, {}, 16)


def test_zero_means_not_used() -> None:
    unused = {"expert_count": 0, "attention.key_length": 0, "rope.scaling.factor": 0.0, "attention.scale": 0.0}
    assert load({f"llama.{key}": value for key, value in unused.items()}).program == load().program


@pytest.mark.parametrize("name", list(shapes(1)))
def test_missing_tensor_is_named(name: str) -> None:
    of = {n: s for n, s in shapes().items() if n != name}
    with pytest.raises(ModelError, match=f"{name} is missing"):
        load(of=of)


@pytest.mark.parametrize("name", [n for n in shapes(1) if n != "token_embd.weight"])
def test_ill_shaped_tensor_is_named(name: str) -> None:
    shape = shapes()[name]
    for wrong in (tuple(d + 1 for d in shape), (*shape, 2), ()):
        with pytest.raises(ModelError, match=name):
            load(of=shapes() | {name: wrong})


@pytest.mark.parametrize("key", [k for k in LLAMA if "." in k and "general" not in k and "head_count_kv" not in k])
@pytest.mark.parametrize("value", [None, 0, -1, 1 << 40, math.nan, math.inf, "4", [1.5, 2.5], b"", {}, 1.5, True])
def test_hostile_values(key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key.removeprefix("llama.").split(".")[-1]):
        load({key: value})


HOSTILE = {
    "more kv heads than heads": {"attention.head_count_kv": 8},
    "heads not shared evenly": {"attention.head_count_kv": 3},
    "more heads than columns": {"attention.head_count": 64},
    "rotates more than a head": {"rope.dimension_count": 64},
    "rotates an odd count": {"rope.dimension_count": 3},
    "negative base": {"rope.freq_base": -1.0},
    "base of one": {"rope.freq_base": 1.0},
    "base is no number": {"rope.freq_base": math.nan},
    "tiny scaling factor": {"rope.scaling.factor": 1e-300},
    "negative scaling factor": {"rope.scaling.factor": -2.0},
    "unknown scaling": {"rope.scaling.type": "wild"},
    "scaling type is a number": {"rope.scaling.type": 7},
    "attention scale is infinite": {"attention.scale": math.inf},
    "experts without tensors": {"expert_count": 4, "expert_used_count": 2},
    "uses more experts than there are": {"expert_count": 2, "expert_used_count": 3},
    "uses no expert": {"expert_count": 2},
    "heads of too few layers": {"attention.head_count": np.array([4], np.uint32)},
    "heads are words": {"attention.head_count": ["a", "b"]},
    "one layer without heads": {"attention.head_count": np.array([4, 0], np.uint32)},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_combinations(case: str) -> None:
    with pytest.raises(ModelError):
        load({f"llama.{key}": value for key, value in HOSTILE[case].items()})


@pytest.mark.parametrize("n_ctx", [0, -5])
def test_hostile_context(n_ctx: int) -> None:
    with pytest.raises(ModelError, match="context"):
        archs.load(LLAMA, infos(shapes()), n_ctx)


KEYS = ["block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
        "attention.value_length", "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "expert_count",
        "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "context_length",
        "attention.sliding_window", "attention.sliding_window_pattern", "expert_used_count", "feed_forward_length",
        "attention.layer_norm_rms_epsilon", "final_logit_softcapping", "attention.scale"]  # fmt: skip
VALUES = st.one_of(
    st.integers(-3, 70),
    st.integers(-(1 << 63), 1 << 64),
    st.floats(width=32),
    st.sampled_from(["yarn", "longrope", "none", "linear", "", "x"]),
    st.booleans(),
    st.lists(st.integers(-1, 8), max_size=4),
    st.lists(st.integers(0, 8), max_size=4).map(lambda v: np.array(v, np.uint32)),
    st.lists(st.floats(width=32), max_size=3).map(lambda v: np.array(v, np.float32)),
    st.lists(st.text(max_size=3), max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(archs.names())), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_any_metadata_loads_or_is_refused(name: str, changes: dict[str, Any]) -> None:
    metadata = {k.replace("llama.", f"{name}."): v for k, v in LLAMA.items()} | {"general.architecture": name}
    with contextlib.suppress(PyllmError):
        archs.load(metadata | {f"{name}.{k}": v for k, v in changes.items()}, infos(shapes()), 64)


def test_fused_projections() -> None:
    of = shapes()
    for i in range(2):
        del of[f"blk.{i}.attn_q.weight"], of[f"blk.{i}.attn_k.weight"], of[f"blk.{i}.attn_v.weight"]
        del of[f"blk.{i}.ffn_gate.weight"]
        of |= {f"blk.{i}.attn_qkv.weight": (64, 32), f"blk.{i}.ffn_up.weight": (96, 32)}
    slices = [(op.start, op.out.width) for op in load(of=of).program.ops if isinstance(op, Slice) and op.layer == 0]
    assert slices == [(0, 32), (32, 16), (48, 16), (0, 48), (48, 48)]


def test_biases_and_own_output_are_used_where_they_are() -> None:
    model = load(of=shapes() | {"output.weight": (64, 32), "blk.1.attn_q.bias": (32,)})
    linears = {op.weight: op.bias for op in model.program.ops if isinstance(op, Linear)}
    assert linears["blk.1.attn_q.weight"] == "blk.1.attn_q.bias"
    assert linears["blk.0.attn_q.weight"] is None
    assert list(linears)[-1] == "output.weight"


def test_heads_that_differ_by_layer() -> None:
    of = shapes() | {"blk.1.attn_k.weight": (32, 32), "blk.1.attn_v.weight": (32, 32)}
    model = load({"llama.attention.head_count_kv": np.array([2, 4], np.uint32)}, of)
    assert [spec.n_kv_heads for spec in model.program.kv] == [2, 4]


def test_rope_factors_divide_frequencies() -> None:
    tensors = infos(shapes() | {"rope_freqs.weight": (4,)}, **{"rope_freqs.weight": [1.0, 2.0, 4.0, 8.0]})
    plain, divided = (
        next(op for op in archs.load(LLAMA, t, 64).program.ops if isinstance(op, Rope)).inv_freq
        for t in (infos(shapes()), tensors)
    )
    np.testing.assert_allclose(np.divide(plain, divided), [1, 2, 4, 8], rtol=1e-6)


@pytest.mark.parametrize("factor", [0.0, math.nan])
def test_broken_rope_factors(factor: float) -> None:
    tensors = infos(shapes() | {"rope_freqs.weight": (4,)}, **{"rope_freqs.weight": factor})
    with pytest.raises(ModelError, match="rope factors"):
        archs.load(LLAMA, tensors, 64)


def test_mistral3_scales_queries_beyond_its_first_context() -> None:
    metadata = {k.replace("llama.", "mistral3."): v for k, v in LLAMA.items()} | {
        "general.architecture": "mistral3",
        "mistral3.attention.temperature_scale": 0.1,
        "mistral3.rope.scaling.original_context_length": 64,
    }
    short, long = (archs.load(metadata, infos(shapes()), n_ctx).program for n_ctx in (64, 129))
    assert not any(isinstance(op, PositionScale) for op in short.ops)
    (factors,) = {op.factors for op in long.ops if isinstance(op, PositionScale)}
    assert factors == pytest.approx((1.0, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3)))


def test_mixtral_counts_feed_forward_columns_of_an_expert() -> None:
    of = {n: s for n, s in shapes().items() if ".ffn_" not in n or "ffn_norm" in n}
    for i in range(2):
        of |= {
            f"blk.{i}.ffn_gate_inp.weight": (4, 32),
            f"blk.{i}.ffn_gate_exps.weight": (4, 48, 32),
            f"blk.{i}.ffn_up_exps.weight": (4, 48, 32),
            f"blk.{i}.ffn_down_exps.weight": (4, 32, 48),
        }
    model = load({"llama.expert_count": 4, "llama.expert_used_count": 2}, of)
    op = next(op for op in model.program.ops if isinstance(op, MixtureOfExperts))
    assert (op.n_experts, op.n_used, op.n_ff, op.normalize) == (4, 2, 48, True)


@pytest.mark.parametrize(
    ("value", "period", "flags"),
    [
        (None, 3, [True, True, False, True]),
        (None, 0, [False] * 4),
        (2, 3, [True, False, True, False]),
        (1, 3, [False] * 4),
        (np.array([0, 1, 1, 0], np.uint32), 3, [False, True, True, False]),
        ([True, False, False, True], 3, [True, False, False, True]),
        (0, 2, [True, False, True, False]),
    ],
)
def test_window_pattern(value: object, period: int, flags: list[bool]) -> None:
    assert HParams({"a.pattern": value}, "a").pattern("pattern", 4, period) == flags


EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24}


def of_arch(name: str, **values: Any) -> dict[str, Any]:
    """Metadata of another architecture; keys with double underscores for dots."""
    base = {k.replace("llama.", f"{name}."): v for k, v in LLAMA.items()} | {"general.architecture": name}
    return base | {f"{name}.{key.replace('__', '.')}": value for key, value in values.items()}


def ops_of(program: Program, kind: type[T]) -> list[T]:
    return [op for op in program.ops if isinstance(op, kind)]


def test_fused_experts_are_rows_without_a_copy() -> None:
    of = {n: s for n, s in shapes().items() if ".ffn_" not in n or "ffn_norm" in n}
    for i in range(2):
        of |= {
            f"blk.{i}.ffn_gate_inp.weight": (4, 32),
            f"blk.{i}.ffn_gate_up_exps.weight": (4, 48, 32),
            f"blk.{i}.ffn_down_exps.weight": (4, 32, 24),
        }
    tensors = infos(of)
    model = archs.load(LLAMA | {f"llama.{key}": value for key, value in EXPERTS.items()}, tensors, 64)
    op = ops_of(model.program, MixtureOfExperts)[1]
    fused = "blk.1.ffn_gate_up_exps.weight"
    assert (op.gate, op.up) == (f"{fused}[0:24]", f"{fused}[24:48]")
    assert set(model.program.weights()) <= set(model.tensors)
    for name, first in ((op.gate, 0), (op.up, 24)):
        view = model.tensors[name]
        assert (view.shape, view.n_bytes) == ((4, 24, 32), 4 * 24 * 32 * 4)
        assert np.shares_memory(view.data, tensors[fused].data)
        assert file_name(view.name) == fused
        assert view.data.ctypes.data - tensors[fused].data.ctypes.data == first * 32 * 4


def test_a_fused_matrix_may_have_biases_of_its_parts() -> None:
    of = {n: s for n, s in shapes(1).items() if not n.startswith(("blk.0.attn_q.", "blk.0.attn_k.", "blk.0.attn_v."))}
    of |= {"blk.0.attn_qkv.weight": (64, 32), "blk.0.attn_q.bias": (32,), "blk.0.attn_k.bias": (16,)}
    of |= {"blk.0.attn_v.bias": (16,)}
    linears = ops_of(load({"llama.block_count": 1}, of).program, Linear)
    assert [(op.weight, op.bias) for op in linears[:3]] == [
        ("blk.0.attn_qkv.weight[0:32]", "blk.0.attn_q.bias"),
        ("blk.0.attn_qkv.weight[32:48]", "blk.0.attn_k.bias"),
        ("blk.0.attn_qkv.weight[48:64]", "blk.0.attn_v.bias"),
    ]


@pytest.mark.parametrize(("format", "factors"), [("F32", []), ("NVFP4", [0.5])])
def test_scales_that_a_format_needs_are_used_by_all_families(format: str, factors: list[float]) -> None:
    tensors = infos(shapes() | {"blk.0.ffn_up.scale": (1,)}, **{"blk.0.ffn_up.scale": 0.5})
    data = np.zeros(48 * 32 // 64 * 36, np.uint8)
    tensors["blk.0.ffn_up.weight"] = TensorInfo("blk.0.ffn_up.weight", (48, 32), format, data)
    assert [op.factor for op in ops_of(archs.load(of_arch("qwen2"), tensors, 64).program, Scale)] == factors


def test_layers_that_predict_further_tokens_are_not_of_the_trunk() -> None:
    model = load({"llama.block_count": 3, "llama.nextn_predict_layers": 1})
    assert (model.n_layers, len(model.program.kv)) == (2, 2)
    with pytest.raises(ModelError, match="nextn_predict_layers"):
        load({"llama.nextn_predict_layers": 2})


def test_layers_without_attention_or_feed_forward() -> None:
    """DeciLM: layer 0 as usual, 1 has a matrix in place of attention, 2 no attention, 3 no feed-forward."""
    of = shapes(4)
    kept = {1: ("attn_norm", "attn_output", "ffn_"), 2: ("ffn_",), 3: ("attn_",)}
    of = {n: s for n, s in of.items() if n[4:5] in ("", "0") or n[:4] != "blk." or n[6:].startswith(kept[int(n[4])])}
    heads, kv_heads = np.array([4, 4, 0, 4], np.uint32), np.array([2, 0, 0, 2], np.uint32)
    values = {"block_count": 4, "attention__head_count": heads, "attention__head_count_kv": kv_heads}
    metadata = of_arch("deci", **values, feed_forward_length=np.array([48, 48, 48, 0], np.uint32))
    program = archs.load(metadata, infos(of), 64).program
    assert set(program.weights()) == set(of)
    assert [op.layer for op in ops_of(program, Attention)] == [0, 3]
    assert [op.layer for op in ops_of(program, GatedActivation)] == [0, 1, 2]


def test_rows_are_selected_after_the_last_layer_that_attends() -> None:
    of = {n: s for n, s in shapes().items() if not n.startswith("blk.1.attn")}
    heads = np.array([4, 0], np.uint32)
    metadata = of_arch("deci", attention__head_count=heads, attention__head_count_kv=heads // 2)
    ops = archs.load(metadata, infos(of), 64).program.ops
    last = max(i for i, op in enumerate(ops) if isinstance(op, Attention))
    assert [i for i, op in enumerate(ops) if isinstance(op, SelectRows)] == [last + 1, last + 2]
    assert {op.layer for op in ops[: last + 3]} == {-1, 0}


def test_a_start_token_of_minus_one_is_none() -> None:
    assert [load({"llama.decoder_start_token_id": n}).start for n in (-1, 0, 7)] == [0, 0, 7]
    with pytest.raises(ModelError, match="decoder_start_token_id is 64"):
        load({"llama.decoder_start_token_id": 64})


def test_a_stack_that_is_run_twice_has_keys_and_values_of_both_runs() -> None:
    program = archs.load(of_arch("nanbeige", num_loops=2), infos(shapes()), 64).program
    assert [op.cache for op in ops_of(program, Attention)] == [0, 1, 2, 3]
    assert [op.layer for op in ops_of(program, Attention)] == [0, 1, 0, 1]
    assert [op.weight for op in ops_of(program, RMSNorm)].count("output_norm.weight") == 2
    once = archs.load(of_arch("nanbeige", num_loops=2, skip_loop_final_norm=True), infos(shapes()), 64).program
    assert [op.weight for op in ops_of(once, RMSNorm)].count("output_norm.weight") == 1


def test_layers_with_equal_parts_are_described_together() -> None:
    assert describe(load().decoder) == [
        "token_embd",
        "layers 0-1",
        "  x + Attention(n_heads 4, n_kv_heads 2, head_dim 8, v_head_dim 8, scale 0.353553, "
        "rope 8 columns, neighbours, base 10000) of attn_norm(x)",
        "  x + FFN(n_ff 48, scaled True) of ffn_norm(x)",
        "output_norm: RMS(eps 1e-05)",
        "Head",
    ]
    metadata = of_arch("granite", embedding_scale=12.0, residual_scale=0.5, logit_scale=8.0)
    model = archs.load(metadata, infos(shapes()), 64)
    lines = describe(model.decoder)
    assert lines[0] == "token_embd * 12"
    assert lines[3] == "  x + 0.5 * FFN(n_ff 48) of ffn_norm(x)"
    assert lines[-1] == "Head(scale 0.125)"
    pattern = np.array([1, 0, 1, 1], np.uint32)
    metadata = of_arch("olmo2", block_count=4, attention__sliding_window=16, attention__sliding_window_pattern=pattern)
    of = shapes(4) | {f"blk.{i}.{n}.weight": (32,) for i in range(4) for n in ("post_attention_norm", "post_ffw_norm")}
    of |= {f"blk.{i}.attn_q_norm.weight": (32,) for i in range(4)} | {
        f"blk.{i}.attn_k_norm.weight": (16,) for i in range(4)
    }
    lines = describe(archs.load(metadata, infos(of), 64).decoder)
    assert [line for line in lines if line.startswith("layer")] == ["layers 0, 2-3", "layer 1"]


def test_an_entry_point_adds_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyllm.archs.families.llama import llama

    point = SimpleNamespace(name="my-llama", load=lambda: llama)

    def of_group(group: str) -> dict[str, SimpleNamespace]:
        return {point.name: point} if group == "pyllm.archs" else {}

    monkeypatch.setattr("pyllm.entry_points.of_group", of_group)
    metadata = {k.replace("llama.", "my-llama."): v for k, v in LLAMA.items()} | {"general.architecture": "my-llama"}
    assert archs.load(metadata, infos(shapes()), 64).name == "my-llama"
    assert "my-llama" in archs.names()


@pytest.mark.parametrize(
    ("name", "n_ctx", "changes", "message"),
    [
        ("gpt2-dense", 257, {}, "knows 256 positions"),
        ("minimax-m3-moe", 65, {"attention.indexer.top_k": 16}, "at most 64"),
        ("grovemoe-moe", 64, {"experts_per_group": 3}, "does not divide 2 experts"),
        ("hrm_text-dense", 64, {"hrm.h_cycles": 3}, "stacks make 18 layers"),
        ("llama-dense", 64, {"attention.causal": False, "attention.sliding_window": 4}, None),
    ],
)
def test_limits_of_architectures(name: str, n_ctx: int, changes: dict[str, object], message: str | None) -> None:
    model = ArchModel.load(name)
    arch = model.metadata["general.architecture"]
    metadata = model.all_metadata | {f"{arch}.{key}": value for key, value in changes.items()}
    if message is None:
        assert archs.load(metadata, model.tensors, n_ctx).program.whole
        return
    with pytest.raises(ModelError, match=message):
        archs.load(metadata, model.tensors, n_ctx)
    if not changes:
        archs.load(metadata, model.tensors, n_ctx - 1)
