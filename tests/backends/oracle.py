"""Tiny random models and batches, and two backends compared on them.

Programs are recorded over declared shapes; the weights come after, random in any format: raw block bytes are random,
their float scales set so that decoded weights have a sane size. So a format needs nothing here beyond its layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from cuda_devices import cuda_devices, unavailable
from pyllm import backends
from pyllm.backends.base import Batch, Executable
from pyllm.config import ExecutionOptions
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Recorder, Value, as_inv_freq
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.elementwise import Add, SoftCap
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.rope import Rope
from pyllm.program.ops.select import SelectRows
from pyllm.quant import formats

F32 = NDArray[np.float32]

OPTIONS = ExecutionOptions(
    n_pages=16, page_size=16, max_tokens=96, max_seqs=4, max_rows=96, kv_dtype="f32", n_threads=2
)


def available() -> list[str]:
    """Backends that run on this machine."""
    return [name for name in backends.names() if why_not(name) is None]


@cache
def why_not(name: str) -> str | None:
    """Why a backend does not run here, None when it does."""
    with cuda_devices():
        return unavailable(name)


def need(name: str) -> None:
    """Skip the test, with the reason, unless the backend runs here."""
    if (reason := why_not(name)) is not None:
        pytest.skip(f"backend {name}: {reason}")


def nmse(got: F32, wanted: F32) -> float:
    """mean((got - wanted)^2) / mean(wanted^2)."""
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    return float(np.mean((a - b) ** 2) / np.mean(b**2))


# --- weights


def random_tensor(
    name: str, shape: tuple[int, ...], fmt: str = "F32", *, std: float, mean: float = 0.0, seed: int = 0
) -> TensorInfo:
    """Random weights of about this spread. Float formats are normal; blocks of others are random bytes."""
    rng = np.random.default_rng([seed, *name.encode()])
    if fmt in ("F32", "F16", "BF16"):
        values = (mean + std * rng.standard_normal(shape)).astype(np.float32)
        data = _encode_float(values, fmt)
    else:
        data = _random_blocks(rng, shape, fmt, std)
    return TensorInfo(name, shape, fmt, data.view(np.uint8).reshape(-1))


def _encode_float(values: F32, fmt: str) -> NDArray[Any]:
    if fmt == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16 if fmt == "F16" else np.float32)


def _random_blocks(rng: np.random.Generator, shape: tuple[int, ...], fmt: str, std: float) -> NDArray[Any]:
    quant = formats.get(fmt)
    blocks = np.frombuffer(rng.bytes(int(np.prod(shape)) // quant.block_size * quant.block_bytes), quant.layout).copy()
    other = _OTHER_SCALES.get(fmt)
    halves = [name for name in quant.layout.names or () if quant.layout[name] == np.dtype("<f2")]
    scales = ["scale"] if other else halves

    def weights(size: Mapping[str, float | F32]) -> F32:
        for name in scales:
            value = np.broadcast_to(np.float32(size.get(name, 0.0)), len(blocks))
            if other:
                other(rng, blocks, value)
            else:
                blocks[name] = value
        return quant.decode(blocks.view(np.uint8).reshape(1, -1))

    # weights are linear in the scales: the second (a minimum) gets the size that centres what the first gives
    size = {scales[0]: 1.0}
    if len(scales) > 1:
        size[scales[1]] = -float(np.mean(weights(size)) / np.mean(weights({scales[1]: 1.0})))
    spread = float(np.std(weights(size)))
    sign = np.where(rng.random(len(blocks)) < 0.5, -1.0, 1.0)
    weights({n: v * std / spread * sign * rng.uniform(0.7, 1.3, len(blocks)) for n, v in size.items()})
    return blocks


# Scales that are no halves of their own: about `value`, positive where the format has no others.


def _scale_mxfp4(rng: np.random.Generator, blocks: NDArray[Any], value: F32) -> None:
    blocks["e"] = 128 + np.floor(np.log2(np.abs(value)) + rng.random(len(value)))


def _scale_nvfp4(rng: np.random.Generator, blocks: NDArray[Any], value: F32) -> None:
    codes = np.arange(127)
    halved = np.where(codes < 8, codes / 1024, (8 + codes % 8) * 2.0 ** (codes // 8 - 11))
    blocks["d"] = np.searchsorted(halved, np.abs(value))[:, None]


def _scale_iq1_m(rng: np.random.Generator, blocks: NDArray[Any], value: F32) -> None:
    nibbles = value.astype(np.float16).view(np.uint16)[:, None] >> np.arange(0, 16, 4, dtype=np.uint16)
    blocks["scales"] = (blocks["scales"] & 0x0FFF) | (nibbles << 12)


def _scale_d(rng: np.random.Generator, blocks: NDArray[Any], value: F32) -> None:
    blocks["d"] = value


_OTHER_SCALES = {
    "MXFP4": _scale_mxfp4, "NVFP4": _scale_nvfp4, "IQ1_M": _scale_iq1_m, "Q8_1": _scale_d, "Q8_K": _scale_d,
}  # fmt: skip


def decoded(tensor: TensorInfo) -> F32:
    """A tensor as float32, of its shape."""
    return formats.get(tensor.format).decode(tensor.data).reshape(tensor.shape)


# --- programs


@dataclass
class Model:
    """A program over declared tensors; `tensors(format)` makes them up, so that one program serves all formats.

    Matrices take the format that is asked for, vectors stay F32.
    """

    shapes: dict[str, tuple[int, ...]]
    program: Program
    scales: dict[str, float] = field(default_factory=dict)
    """Spread of a tensor's values, where 1 / sqrt(columns) is not it."""

    def tensors(self, fmt: str = "F32", seed: int = 0) -> dict[str, TensorInfo]:
        out = {}
        for name, shape in self.shapes.items():
            vector = len(shape) == 1
            std = self.scales.get(name, 0.2 if vector else shape[-1] ** -0.5)
            norm = name.endswith("norm.weight")
            out[name] = random_tensor(
                name, shape, "F32" if vector else fmt, std=std, mean=1.0 if norm else 0.0, seed=seed
            )
        return out


class Builder(Recorder):
    """A recorder to which tensors are declared as the program is written: `b.t("w", 64, 32)` returns the name."""

    def __init__(self) -> None:
        super().__init__(tensors={})

    def t(self, name: str, *shape: int) -> str:
        self.tensors[name] = SimpleNamespace(shape=shape)  # type: ignore[index]
        return name

    def model(self, hidden: Value, logits: Value, n_layers: int = 1, **scales: float) -> Model:
        program = self.finish(hidden, logits, n_layers=n_layers)
        return Model({n: tuple(s.shape) for n, s in self.tensors.items()}, program, scales)


def one_op(
    record: Callable[[Builder, Value], Value], *, width: int = 64, n_vocab: int = 96, embed_std: float = 1.0
) -> Model:
    """A program that embeds, does what `record(builder, x [tokens, width])` says, and gives that as its logits.

    The table is F32 unless asked otherwise, so that what is tested is the op.
    """
    b = Builder()
    x = b(Embed(table=b.t("table", n_vocab, width)))
    b.layer = 0
    y = record(b, x)
    b.layer = 1
    rows = b(SelectRows(x=y))
    return b.model(rows, rows, table=embed_std)


MIXED = {
    "output.": "Q8_0", "token_embd": "Q5_0", "attn_q": "Q4_1", "attn_k": "IQ4_XS", "attn_v": "NVFP4",
    "attn_output": "Q2_K", "ffn_gate": "Q3_K", "ffn_up": "IQ2_XS", "ffn_down": "Q6_K", "blk.1.attn_q": "Q1_0",
    "blk.1.attn_k": "MXFP4", "blk.1.attn_v": "Q5_K",
}  # fmt: skip
"""Formats of all kinds, by parts of tensors' names, the last that fits: every way in which weights are packed."""


def mixed_tensors(model: Model) -> dict[str, TensorInfo]:
    """A transformer's tensors in the formats of MIXED, those that it does not name in F32."""
    made = {f: model.tensors(f) for f in {*MIXED.values(), "F32"}}
    chosen = {name: [f for part, f in MIXED.items() if part in name] for name in model.shapes}
    return {name: made[fs[-1] if fs else "F32"][name] for name, fs in chosen.items()}


@dataclass(frozen=True)
class Shape:
    """Sizes and options of `transformer`; a whole small model in the manner of the real ones."""

    n_layers: int = 2
    n_embd: int = 256
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    n_ff: int = 512
    n_vocab: int = 160
    n_rot: int = 64
    interleaved: bool = False
    bias: bool = False
    qk_norm: bool = False
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    n_experts: int = 0
    n_used: int = 2
    act: str = "silu"
    tied: bool = False
    logit_cap: float = 0.0


def transformer(shape: Shape = Shape()) -> Model:
    """A decoder of these sizes; rows are selected after the last attention, as architectures do."""
    s, b = shape, Builder()
    x = b(Embed(table=b.t("token_embd.weight", s.n_vocab, s.n_embd)))
    for il in range(s.n_layers):
        b.layer = il
        x = _block(b, s, il, x)
    b.layer = s.n_layers
    hidden = b(RMSNorm(x=x, weight=b.t("output_norm.weight", s.n_embd), eps=1e-5))
    table = "token_embd.weight" if s.tied else b.t("output.weight", s.n_vocab, s.n_embd)
    logits = b(Linear(x=hidden, weight=table))
    if s.logit_cap:
        logits = b(SoftCap(x=logits, cap=s.logit_cap))
    return b.model(hidden, logits, s.n_layers, **{"token_embd.weight": 0.5})


def _block(b: Builder, s: Shape, il: int, x: Value) -> Value:
    def name(stem: str, *shape: int) -> str:
        return b.t(f"blk.{il}.{stem}", *shape)

    def linear(y: Value, stem: str, rows: int) -> Value:
        bias = name(f"{stem}.bias", rows) if s.bias else None
        return b(Linear(x=y, weight=name(f"{stem}.weight", rows, y.width), bias=bias))

    h = b(RMSNorm(x=x, weight=name("attn_norm.weight", s.n_embd), eps=1e-5))
    q, k, v = (
        linear(h, f"attn_{n}", heads * s.head_dim)
        for n, heads in (("q", s.n_heads), ("k", s.n_kv_heads), ("v", s.n_kv_heads))
    )
    if s.qk_norm:
        q, k = (
            b(RMSNorm(x=y, weight=name(f"attn_{n}_norm.weight", s.head_dim), eps=1e-5, group=s.head_dim))
            for n, y in (("q", q), ("k", k))
        )
    inv_freq = as_inv_freq([10000.0 ** (-2 * i / s.n_rot) for i in range(s.n_rot // 2)])
    q, k = (b(Rope(x=y, head_dim=s.head_dim, inv_freq=inv_freq, interleaved=s.interleaved)) for y in (q, k))
    a = b(Attention(
        q=q, k=k, v=v, n_heads=s.n_heads, n_kv_heads=s.n_kv_heads, head_dim=s.head_dim, v_head_dim=s.head_dim,
        scale=s.head_dim**-0.5, window=s.window if il % 2 == 0 else 0, softcap=s.softcap,
        sinks=name("attn_sinks.weight", s.n_heads) if s.sinks else None,
    ))  # fmt: skip
    if il == s.n_layers - 1:
        x, a = b(SelectRows(x=x)), b(SelectRows(x=a))
    x = b(Add(a=x, b=linear(a, "attn_output", s.n_embd)))
    h = b(RMSNorm(x=x, weight=name("ffn_norm.weight", s.n_embd), eps=1e-5))
    if s.n_experts:
        router = b(Linear(x=h, weight=name("ffn_gate_inp.weight", s.n_experts, s.n_embd)))
        inner, outer = (s.n_experts, s.n_ff, s.n_embd), (s.n_experts, s.n_embd, s.n_ff)
        f = b(MixtureOfExperts(
            x=h, router=router, gate=name("ffn_gate_exps.weight", *inner), up=name("ffn_up_exps.weight", *inner),
            down=name("ffn_down_exps.weight", *outer), n_used=s.n_used, n_ff=s.n_ff, normalize=True, act=s.act,
        ))  # fmt: skip
    else:
        gate, up = linear(h, "ffn_gate", s.n_ff), linear(h, "ffn_up", s.n_ff)
        f = linear(b(GatedActivation(gate=gate, up=up, act=s.act)), "ffn_down", s.n_embd)
    return b(Add(a=x, b=f))


# --- running


@dataclass(frozen=True)
class Step:
    """A sequence's next tokens in one batch."""

    tokens: Sequence[int]
    position: int
    pages: Sequence[int]
    want: Literal["none", "last", "all"] | Sequence[int] = "all"


def compiled(
    backend: str, model: Model, tensors: Mapping[str, TensorInfo], options: ExecutionOptions = OPTIONS
) -> Executable:
    """The model on a backend; close it when done."""
    return backends.get(backend).compile(model.program, tensors, options)


def run(exe: Executable, steps: Iterable[Step], want: Literal["logits", "hidden"] = "logits") -> F32:
    """One batch of these sequences; a copy of the result."""
    batch = Batch(exe.options)
    for step in steps:
        batch.add(step.tokens, step.position, step.pages, step.want)
    return exe.run(batch, want).copy()


def random_tokens(n: int, n_vocab: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, n_vocab, n)]


def ragged_batches(n_vocab: int, seed: int = 0) -> list[list[Step]]:
    """Batches as an engine would send them: a prompt; two prompts in chunks of odd sizes beside single tokens;
    pages out of order, shared by nobody."""
    a, b, c = (random_tokens(n, n_vocab, seed + i) for i, n in enumerate((37, 21, 9)))
    pa, pb, pc = [9, 2, 11], [5, 1], [15, 3]
    return [
        [Step(a[:33], 0, pa)],
        [Step(a[33:34], 33, pa), Step(b[:17], 0, pb, "last"), Step(c[:1], 0, pc)],
        [Step(a[34:37], 34, pa), Step(b[17:18], 17, pb), Step(c[1:9], 1, pc, [0, 3, 7])],
        [Step(b[18:21], 18, pb)],
    ]


def run_both(
    backend: str,
    model: Model,
    fmt: str = "F32",
    batches: Sequence[Sequence[Step]] | None = None,
    options: ExecutionOptions = OPTIONS,
    want: Literal["logits", "hidden"] = "logits",
    tensors: Mapping[str, TensorInfo] | None = None,
) -> list[tuple[F32, F32]]:
    """(what `backend` gives, what the reference gives) for each batch in turn, KV in float32 for both."""
    tensors = model.tensors(fmt) if tensors is None else tensors
    batches = ragged_batches(_n_tokens(model)) if batches is None else batches
    results = []
    for name, opts in ((backend, options), ("reference", replace(options, kv_dtype="f32"))):
        exe = compiled(name, model, tensors, opts)
        try:
            results.append([run(exe, batch, want) for batch in batches])
        finally:
            exe.close()
    return list(zip(*results, strict=True))


def assert_close(pairs: Iterable[tuple[F32, F32]], limit: float) -> None:
    """NMSE of each pair at most `limit`, everything finite."""
    for i, (got, wanted) in enumerate(pairs):
        assert got.shape == wanted.shape
        assert np.isfinite(wanted).all(), f"batch {i}: the reference is not finite"
        assert np.isfinite(got).all(), f"batch {i}: not finite"
        error = nmse(got, wanted)
        assert error <= limit, f"batch {i}: NMSE {error:.2e} > {limit:.0e}"


def _n_tokens(model: Model) -> int:
    table = next(op for op in model.program.ops if hasattr(op, "table"))
    return model.shapes[table.table][0]
