"""Every op, and every format through the ops that take weights: each backend that runs here against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import oracle
import pytest
from oracle import OPTIONS, Builder, Shape, Step, assert_close, one_op, run_both, transformer

from pyllm import backends
from pyllm.program import Value, as_inv_freq
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.elementwise import Add, Scale, SoftCap
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.rope import Rope
from pyllm.program.ops.select import Slice
from pyllm.quant import formats

OTHERS = [name for name in backends.names() if name != "reference"]
INV_FREQ = as_inv_freq([1000.0 ** (-i / 16) for i in range(16)])

LIMITS = {"F32": 1e-9, "F16": 1e-6, "BF16": 1e-5}
"""NMSE of one product. Where weights are integers, backends may quantize activations to 8 bits as well: 1e-4 each."""
QUANTIZED = 2e-4

Record = Callable[[Builder, Value], Value]


def _two_steps(n_vocab: int) -> list[list[Step]]:
    """Many rows, then few: a kernel of each kind, for every format. Ragged steps are the ops' business."""
    tokens = oracle.random_tokens(23, n_vocab)
    return [[Step(tokens[:20], 0, [9, 2])], [Step(tokens[20:], 20, [9, 2])]]


def _limit(fmt: str) -> float:
    return LIMITS.get(fmt, QUANTIZED)


@pytest.fixture(params=OTHERS)
def backend(request: pytest.FixtureRequest) -> str:
    oracle.need(request.param)
    return str(request.param)


def _qkv(b: Builder, x: Value, head_dim: int, n_heads: int, n_kv: int) -> tuple[Value, Value, Value]:
    q, k, v = (b.t(n, heads * head_dim, x.width) for n, heads in (("q", n_heads), ("k", n_kv), ("v", n_kv)))
    return b(Linear(x=x, weight=q)), b(Linear(x=x, weight=k)), b(Linear(x=x, weight=v))


def _attention(n_heads: int, n_kv: int, head_dim: int, *, sinks: bool = False, **options: float | int) -> Record:
    def record(b: Builder, x: Value) -> Value:
        q, k, v = _qkv(b, x, head_dim, n_heads, n_kv)
        name = b.t("attn_sinks.weight", n_heads) if sinks else None
        return b(Attention(
            q=q, k=k, v=v, n_heads=n_heads, n_kv_heads=n_kv, head_dim=head_dim, v_head_dim=head_dim,
            scale=head_dim**-0.5, sinks=name, **options,  # type: ignore[arg-type]
        ))  # fmt: skip

    return record


def _narrow_values(b: Builder, x: Value) -> Value:
    q, k = b(Linear(x=x, weight=b.t("q", 4 * 32, x.width))), b(Linear(x=x, weight=b.t("k", 2 * 32, x.width)))
    v = b(Linear(x=x, weight=b.t("v", 2 * 16, x.width)))
    return b(Attention(q=q, k=k, v=v, n_heads=4, n_kv_heads=2, head_dim=32, v_head_dim=16, scale=0.2))


def _experts(*, bias: bool = False, scale: bool = False, choice_bias: bool = False, **options: object) -> Record:
    def record(b: Builder, x: Value) -> Value:
        n, n_ff, parts = 4, 96, ("gate", "up", "down")
        sizes = {"gate": (n_ff, x.width), "up": (n_ff, x.width), "down": (x.width, n_ff)}
        names = {part: b.t(part, n, *sizes[part]) for part in parts}
        if bias:
            names |= {f"{part}_bias": b.t(f"{part}.bias", n, sizes[part][0]) for part in parts}
        if scale:
            names |= {f"{part}_scale": b.t(f"{part}.scale", n) for part in parts}
        if choice_bias:
            names["choice_bias"] = b.t("choice", n)
        router = b(Linear(x=x, weight=b.t("router", n, x.width)))
        return b(MixtureOfExperts(x=x, router=router, **{"n_used": 2, "n_ff": n_ff, **names, **options}))  # type: ignore[arg-type]

    return record


OPS: dict[str, Record] = {
    "embed": lambda b, x: x,
    "add": lambda b, x: b(Add(a=x, b=b(Scale(x=x, factor=-0.25)))),
    "scale": lambda b, x: b(Scale(x=x, factor=1.75)),
    "soft_cap": lambda b, x: b(SoftCap(x=b(Scale(x=x, factor=20.0)), cap=30.0)),
    "slice": lambda b, x: b(Slice(x=x, start=16, width=40)),
    "slice_odd": lambda b, x: b(Slice(x=x, start=7, width=33)),
    "rms_norm": lambda b, x: b(RMSNorm(x=x, weight=b.t("a_norm.weight", x.width), eps=1e-5)),
    "rms_norm_plain": lambda b, x: b(RMSNorm(x=x, weight=None, eps=1e-6)),
    "rms_norm_heads": lambda b, x: b(RMSNorm(x=x, weight=b.t("a_norm.weight", 16), eps=1e-5, group=16)),
    "rms_norm_columns": lambda b, x: b(RMSNorm(x=x, weight=b.t("a_norm.weight", x.width), eps=1e-5, group=16)),
    "linear": lambda b, x: b(Linear(x=x, weight=b.t("w", 80, x.width))),
    "linear_bias": lambda b, x: b(Linear(x=x, weight=b.t("w", 80, x.width), bias=b.t("b", 80))),
    "linear_ragged_rows": lambda b, x: b(Linear(x=x, weight=b.t("w", 37, x.width), bias=b.t("b", 37))),
    "linear_one_row": lambda b, x: b(Linear(x=x, weight=b.t("w", 1, x.width))),
    "rope": lambda b, x: b(Rope(x=x, head_dim=32, inv_freq=INV_FREQ)),
    "rope_interleaved": lambda b, x: b(Rope(x=x, head_dim=32, inv_freq=INV_FREQ, interleaved=True)),
    "rope_part": lambda b, x: b(Rope(x=x, head_dim=64, inv_freq=INV_FREQ, mscale=1.2)),
    "rope_part_interleaved": lambda b, x: b(
        Rope(x=x, head_dim=64, inv_freq=INV_FREQ[:5], mscale=0.8, interleaved=True)
    ),
    "silu": lambda b, x: b(GatedActivation(gate=x, up=b(Scale(x=x, factor=2.0)), act="silu")),
    "gelu": lambda b, x: b(GatedActivation(gate=x, up=b(Scale(x=x, factor=2.0)), act="gelu")),
    "gelu_erf": lambda b, x: b(GatedActivation(gate=x, up=b(Scale(x=x, factor=2.0)), act="gelu_erf")),
    "relu": lambda b, x: b(GatedActivation(gate=x, up=b(Scale(x=x, factor=2.0)), act="relu")),
    "swiglu_oai": lambda b, x: b(
        GatedActivation(gate=b(Scale(x=x, factor=4.0)), up=b(Scale(x=x, factor=-5.0)), act="swiglu_oai")
    ),
    "silu_far": lambda b, x: b(GatedActivation(gate=b(Scale(x=x, factor=100.0)), up=x, act="silu")),
    "attention": _attention(4, 4, 32),
    "attention_grouped": _attention(8, 2, 16),
    "attention_one_kv": _attention(6, 1, 32),
    "attention_wide": _attention(2, 1, 128),
    "attention_head_80": _attention(2, 2, 80),
    "attention_window": _attention(4, 2, 32, window=7),
    "attention_window_1": _attention(4, 2, 32, window=1),
    "attention_softcap": _attention(4, 2, 32, softcap=2.0),
    "attention_sinks": _attention(4, 2, 32, sinks=True),
    "attention_all": _attention(4, 2, 64, sinks=True, window=9, softcap=3.0),
    "attention_narrow_values": _narrow_values,
    "experts": _experts(),
    "experts_normalized": _experts(normalize=True, weight_scale=2.5),
    "experts_all": _experts(n_used=4),
    "experts_sigmoid": _experts(gating="sigmoid", normalize=True, choice_bias=True),
    "experts_oai": _experts(gating="softmax_chosen", act="swiglu_oai", bias=True),
    "experts_scaled": _experts(scale=True),
    "experts_gelu": _experts(act="gelu"),
}


@pytest.mark.parametrize("name", OPS)
def test_op(backend: str, name: str) -> None:
    assert_close(run_both(backend, one_op(OPS[name])), 1e-7)


@pytest.mark.parametrize("fmt", formats.names())
@pytest.mark.parametrize("rows", [96, 37])
def test_linear_format(backend: str, fmt: str, rows: int) -> None:
    model = one_op(lambda b, x: b(Linear(x=x, weight=b.t("w", rows, x.width), bias=b.t("b", rows))), width=512)
    tensors = model.tensors(fmt) | {"table": model.tensors("F32")["table"]}
    assert_close(run_both(backend, model, batches=_two_steps(96), tensors=tensors), _limit(fmt))


@pytest.mark.parametrize("fmt", formats.names())
def test_embed_format(backend: str, fmt: str) -> None:
    model = one_op(lambda b, x: x, width=256)
    assert_close(run_both(backend, model, fmt), 1e-12)


@pytest.mark.parametrize("fmt", formats.names())
def test_experts_format(backend: str, fmt: str) -> None:
    def record(b: Builder, x: Value) -> Value:
        names = {"gate": b.t("gate", 3, 256, 256), "up": b.t("up", 3, 256, 256), "down": b.t("down", 3, 256, 256)}
        return b(
            MixtureOfExperts(x=x, router=b(Linear(x=x, weight=b.t("router", 3, 256))), n_used=2, n_ff=256, **names)
        )

    model = one_op(record, width=256)
    floats = model.tensors("F32")
    tensors = model.tensors(fmt) | {n: floats[n] for n in ("table", "router")}  # a router must choose alike
    assert_close(run_both(backend, model, batches=_two_steps(96), tensors=tensors), 4 * _limit(fmt))


SHAPES = {
    "plain": Shape(),
    "qwen": Shape(bias=True, tied=True, n_heads=6, n_kv_heads=2, n_embd=512),
    "gemma": Shape(qk_norm=True, window=9, softcap=20.0, logit_cap=10.0, act="gelu"),
    "llama": Shape(interleaved=True, n_rot=32),
    "oss": Shape(sinks=True, window=6, bias=True, n_experts=4, act="swiglu_oai"),
    "experts": Shape(n_experts=5, n_used=3),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_transformer_f32(backend: str, shape: str) -> None:
    model = transformer(SHAPES[shape])
    assert_close(run_both(backend, model), 1e-7)
    assert_close(run_both(backend, model, want="hidden"), 1e-7)


@pytest.mark.parametrize("fmt", formats.names())
def test_transformer_format(backend: str, fmt: str) -> None:
    assert_close(run_both(backend, transformer(), fmt, _two_steps(160)), 10 * _limit(fmt))


def test_f16_cache(backend: str) -> None:
    assert_close(run_both(backend, transformer(), options=replace(OPTIONS, kv_dtype="f16")), 1e-5)


def test_no_rows_wanted(backend: str) -> None:
    tokens = oracle.random_tokens(20, 160)
    batches = [[Step(tokens[:19], 0, [4, 2, 7], "none")], [Step(tokens[19:], 19, [4, 2, 7])]]
    pairs = run_both(backend, transformer(), batches=batches)
    assert pairs[0][0].shape == pairs[0][1].shape == (0, 160)
    assert_close(pairs[1:], 1e-7)


def test_shared_pages(backend: str) -> None:
    """Two sequences go on from one prefix whose pages they share."""
    tokens = oracle.random_tokens(50, 160)
    prefix = Step(tokens[:32], 0, [6, 3], "last")
    tails = [Step(tokens[32:40], 32, [6, 3, 10]), Step(tokens[30:50], 32, [6, 3, 1, 12])]
    assert_close(run_both(backend, transformer(), batches=[[prefix], tails]), 1e-7)


def test_decoded_weights_are_sane() -> None:
    """The random blocks test something: finite, of the spread that was asked for, and not one-sided."""
    for fmt in formats.names():
        w = oracle.decoded(oracle.random_tensor("w", (64, 512), fmt, std=0.05))
        assert np.isfinite(w).all()
        assert w.std() == pytest.approx(0.05, rel=0.25)
        assert abs(w.mean()) < 0.01
