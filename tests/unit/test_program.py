"""The recorder: what it records, and that it refuses what does not fit, naming the tensor."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from pyllm.errors import ModelError
from pyllm.program import KVSpec, Recorder, Value, inputs, weight_names
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.dot import Dot
from pyllm.program.ops.elementwise import Add, MulWeight, Scale
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.gate import Activation, GatedActivation
from pyllm.program.ops.linear import HeadLinear, Linear
from pyllm.program.ops.linear_attention import LinearAttention
from pyllm.program.ops.norm import LayerNorm, RMSNorm
from pyllm.program.ops.rope import Rope
from pyllm.program.ops.select import JoinHeads, SelectRows, Slice
from pyllm.program.ops.shift import TokenShift
from pyllm.program.ops.store import StoreKV

SHAPES: dict[str, tuple[int, ...]] = {
    "table": (100, 32),
    "flat": (32,),
    "norm": (32,),
    "head_norm": (8,),
    "w": (48, 32),
    "b": (48,),
    "sinks": (4,),
    "biases": (4, 5),
    "even_biases": (4, 6),
    "gate": (3, 16, 32),
    "down": (3, 32, 16),
    "gate_b": (3, 16),
    "down_b": (3, 32),
    "scale": (3,),
    "router": (3, 32),
}


@pytest.fixture
def rec() -> Recorder:
    return Recorder({name: SimpleNamespace(shape=shape) for name, shape in SHAPES.items()})


@pytest.fixture
def x(rec: Recorder) -> Value:
    return rec(Embed(table="table"))


def attend(rec: Recorder, x: Value, **changes: object) -> Value:
    options = {"n_heads": 4, "n_kv_heads": 4, "head_dim": 8, "v_head_dim": 8, "scale": 1.0} | changes
    return rec(Attention(**{"q": x, "k": x, "v": x, **options}))  # type: ignore[arg-type]


def store(rec: Recorder, x: Value, **changes: object) -> Value:
    options = {"n_kv_heads": 4, "head_dim": 8, "v_head_dim": 8} | changes
    return rec(StoreKV(k=x, v=x, **options))  # type: ignore[arg-type]


def experts(rec: Recorder, x: Value, **changes: object) -> Value:
    options = {"gate": "gate", "up": "gate", "down": "down", "n_used": 2, "n_ff": 16} | changes
    return rec(MixtureOfExperts(x=x, router=rec(Linear(x=x, weight="router")), **options))  # type: ignore[arg-type]


def linear_attention(rec: Recorder, x: Value, **changes: object) -> Value:
    options = {"n_heads": 4, "n_key_heads": 4, "key_dim": 8, "value_dim": 8, "decay": x} | changes
    return rec(LinearAttention(**{"q": x, "k": x, "v": x, **options}))  # type: ignore[arg-type]


def test_a_small_program() -> None:
    rec = Recorder({"t": SimpleNamespace(shape=(100, 32)), "n": SimpleNamespace(shape=(32,))})
    x = rec(Embed(table="t", scale=2.0))
    rec.layer = 0
    a = attend(rec, x, window=3)
    rec.layer = 1
    hidden = rec(RMSNorm(x=rec(SelectRows(x=rec(Add(a=x, b=a)))), weight="n", eps=1e-5))
    program = rec.finish(hidden, rec(Linear(x=hidden, weight="t")), n_layers=1)
    assert [type(op).__name__ for op in program.ops] == ["Embed", "Attention", "Add", "SelectRows", "RMSNorm", "Linear"]
    assert [op.layer for op in program.ops] == [-1, 0, 1, 1, 1, 1]
    assert [op.out.id for op in program.ops] == list(range(6))
    assert program.kv == (KVSpec(4, 8, 8, 3),)
    assert (program.n_embd, program.n_vocab, program.n_layers) == (32, 100, 1)
    assert program.weights() == ["t", "n"]
    assert [v.id for v in inputs(program.ops[2])] == [0, 1]
    assert program.ops[0] == Embed(out=x, layer=-1, table="t", scale=2.0)


def test_each_attention_takes_the_next_cache(rec: Recorder, x: Value) -> None:
    attend(rec, x)
    attend(rec, x, n_heads=8, head_dim=4, n_kv_heads=8, v_head_dim=4)
    assert [op.cache for op in rec.ops if isinstance(op, Attention)] == [0, 1]
    assert [spec.head_dim for spec in rec.states if isinstance(spec, KVSpec)] == [8, 4]


def test_widths_of_results(rec: Recorder, x: Value) -> None:
    assert rec(Linear(x=x, weight="w", bias="b")).width == 48
    assert rec(Slice(x=x, start=8, width=24)).width == 24
    assert rec(RMSNorm(x=x, weight="head_norm", eps=1e-6, group=8)).width == 32
    assert rec(RMSNorm(x=x, weight="norm", eps=1e-6, group=8)).width == 32  # one weight per column, normed by head
    assert experts(rec, x).width == 32
    assert rec(GatedActivation(gate=x, up=x, act="gelu")).width == 32


def test_weight_names_of_every_field(rec: Recorder, x: Value) -> None:
    biases = {"gate_bias": "gate_b", "up_bias": "gate_b", "down_bias": "down_b"}
    scales = {"gate_scale": "scale", "up_scale": "scale", "down_scale": "scale", "choice_bias": "scale"}
    experts(rec, x, **biases, **scales)
    assert set(weight_names(rec.ops[-1])) == {"gate", "down", "gate_b", "down_b", "scale"}
    attend(rec, x, sinks="sinks")
    assert weight_names(rec.ops[-1]) == ["sinks"]
    rec(GatedActivation(gate=x, up=x))
    assert weight_names(rec.ops[-1]) == []


REFUSED: dict[str, tuple[Callable[[Recorder, Value], object], str]] = {
    "missing": (lambda r, x: r(Linear(x=x, weight="nowhere")), "nowhere is missing"),
    "missing bias": (lambda r, x: r(Linear(x=x, weight="w", bias="nowhere")), "nowhere is missing"),
    "flat table": (lambda r, x: r(Embed(table="flat")), "flat"),
    "columns": (
        lambda r, x: r(Linear(x=r(Slice(x=x, start=0, width=16)), weight="w")),
        r"tensor w has shape \[48, 32\].*\[48, 16\]",
    ),
    "rows": (lambda r, x: r.require_rows("w", 49), r"tensor w .*\[49, 32\]"),
    "bias": (lambda r, x: r(Linear(x=x, weight="w", bias="norm")), r"tensor norm .*\[48\]"),
    "vector as matrix": (lambda r, x: r(Linear(x=x, weight="flat")), "flat"),
    "norm": (lambda r, x: r(RMSNorm(x=x, weight="b", eps=1e-5)), r"tensor b .*\[32\]"),
    "norm groups": (lambda r, x: r(RMSNorm(x=x, weight=None, eps=1e-5, group=5)), "5 columns"),
    "no groups": (lambda r, x: r(RMSNorm(x=x, weight=None, eps=1e-5, group=-1)), "-1 columns"),
    "rope too wide": (lambda r, x: r(Rope(x=x, head_dim=4, inv_freq=(1.0,) * 3)), "rotate 6 of 4"),
    "rope of nothing": (lambda r, x: r(Rope(x=x, head_dim=4, inv_freq=())), "rotate 0 of 4"),
    "rope heads": (lambda r, x: r(Rope(x=x, head_dim=5, inv_freq=(1.0,))), "32 in all"),
    "no heads": (lambda r, x: attend(r, x, n_heads=0), "0 heads"),
    "shared heads": (lambda r, x: attend(r, x, n_kv_heads=3), "3 key/value heads"),
    "head width": (lambda r, x: attend(r, x, head_dim=16), "16"),
    "sinks": (lambda r, x: attend(r, x, sinks="norm"), "norm"),
    "biases": (lambda r, x: attend(r, x, biases="w"), "tensor w has shape"),
    "even biases": (lambda r, x: attend(r, x, biases="even_biases"), "tensor even_biases has shape"),
    "source with keys": (lambda r, x: attend(r, x, reach="source"), "another op stores"),
    "keys of a width": (lambda r, x: store(r, x, head_dim=4), "do not make 4 heads"),
    "keys in no cache": (lambda r, x: store(r, x, cache=3), "KV cache 3"),
    "slopes and biases": (lambda r, x: attend(r, x, biases="biases", slopes=(1.0,) * 4), "not both"),
    "add": (lambda r, x: r(Add(a=x, b=r(Slice(x=x, start=0, width=8)))), "32 and 8"),
    "gate": (lambda r, x: r(GatedActivation(gate=x, up=r(Slice(x=x, start=0, width=8)))), "32 and 8"),
    "activation": (lambda r, x: r(GatedActivation(gate=x, up=x, act="swish")), "'swish' is unknown.*silu"),
    "narrow gate": (lambda r, x: r(GatedActivation(gate=r(Slice(x=x, start=0, width=5)), up=x)), "5 and 32"),
    "unary": (lambda r, x: r(Activation(x=x, act="swiglu_oai")), "'swiglu_oai' is unknown"),
    "parameters": (lambda r, x: r(Activation(x=x, act="xielu")), "4 parameters, not 0"),
    "factors": (lambda r, x: r(MulWeight(x=x, weight="b")), r"tensor b .*\[32\]"),
    "layer norm": (lambda r, x: r(LayerNorm(x=x, weight="norm", bias="b", eps=1e-5)), r"tensor b .*\[32\]"),
    "no cache to share": (lambda r, x: attend(r, x, k=None, v=None), "KV cache -1"),
    "another shape's cache": (
        lambda r, x: (attend(r, x), attend(r, x, k=None, v=None, cache=0, n_kv_heads=2))[1],
        "cannot read KV cache 0",
    ),
    "keys alone": (lambda r, x: (attend(r, x), attend(r, x, v=None, cache=0))[1], "cannot read KV cache 0"),
    "slice": (lambda r, x: r(Slice(x=x, start=30, width=3)), "30 to 33"),
    "negative slice": (lambda r, x: r(Slice(x=x, start=-1, width=3)), "-1"),
    "heads of columns": (lambda r, x: r(HeadLinear(x=x, weight="gate", n_heads=5)), "32 columns .* 5 heads"),
    "matrices of heads": (lambda r, x: r(HeadLinear(x=x, weight="gate", n_heads=4)), r"tensor gate .*\[4, 16, 8\]"),
    "joined heads": (lambda r, x: r(JoinHeads(a=x, b=x, n_heads=3)), "32 and 32 columns .* 3 heads"),
    "joined rows": (lambda r, x: r(JoinHeads(a=x, b=r(SelectRows(x=x)), n_heads=2)), "output rows"),
    "groups of experts": (lambda r, x: experts(r, x, n_groups=2, n_groups_used=1), "3 experts .* 1 of 2 groups"),
    "experts of groups": (lambda r, x: experts(r, x, n_groups=1, n_groups_used=2), "2 of 1 groups"),
    "too many experts": (lambda r, x: experts(r, x, n_used=4), "4 of 3"),
    "no experts": (lambda r, x: experts(r, x, n_used=0), "0 of 3"),
    "experts' width": (lambda r, x: experts(r, x, n_ff=17), r"tensor gate .*\[3, 17, 32\]"),
    "experts' bias": (lambda r, x: experts(r, x, down_bias="gate_b"), r"tensor gate_b .*\[3, 32\]"),
    "experts' scale": (lambda r, x: experts(r, x, up_scale="sinks"), r"tensor sinks .*\[3\]"),
    "gating": (lambda r, x: experts(r, x, gating="hash"), "'hash' is unknown"),
    "rows and tokens": (lambda r, x: r(Add(a=x, b=r(SelectRows(x=x)))), "output rows"),
    "attention of rows": (lambda r, x: attend(r, r(SelectRows(x=x))), "every token"),
    "rope of rows": (lambda r, x: r(Rope(x=r(SelectRows(x=x)), head_dim=8, inv_freq=(1.0,))), "tokens"),
    "rows of rows": (lambda r, x: r(SelectRows(x=r(SelectRows(x=x)))), "already"),
    "rows of what rows gave": (
        lambda r, x: r(SelectRows(x=r(Scale(x=r(SelectRows(x=x)), factor=2.0)))),
        "selected already",
    ),
    "dot": (lambda r, x: r(Dot(a=x, b=r(Slice(x=x, start=0, width=8)), group=8)), "32 and 8"),
    "dot of groups": (lambda r, x: r(Dot(a=x, b=x, group=5)), "5 columns do not divide 32"),
    "shift of rows": (lambda r, x: r(TokenShift(x=r(SelectRows(x=x)))), "every token"),
    "key heads": (lambda r, x: linear_attention(r, x, n_key_heads=3), "4 heads cannot share 3"),
    "no key heads": (lambda r, x: linear_attention(r, x, n_key_heads=0), "4 heads cannot share 0"),
    "linear attention's width": (lambda r, x: linear_attention(r, x, value_dim=4), "of 32, 32 and 32 columns"),
    "no decay": (lambda r, x: linear_attention(r, x, decay=None), "needs a decay"),
    "two decays": (lambda r, x: linear_attention(r, x, decays=(-1.0,) * 4), "needs a decay"),
    "too few decays": (lambda r, x: linear_attention(r, x, decay=None, decays=(-1.0,) * 3), "needs a decay"),
    "narrow decay": (
        lambda r, x: linear_attention(r, x, decay=r(Slice(x=x, start=0, width=4))),
        "decay has 4 columns, not 32",
    ),
    "erase alone": (lambda r, x: linear_attention(r, x, erase=x), "erase comes with insert"),
    "linear attention of rows": (
        lambda r, x: (lambda y: linear_attention(r, y, decay=y))(r(SelectRows(x=x))),
        "every token",
    ),
    "unselected result": (lambda r, x: r.finish(x, x, n_layers=0), "output rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(rec: Recorder, x: Value, case: str) -> None:
    record, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        record(rec, x)
