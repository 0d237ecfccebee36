"""The recorder: an architecture writes its pass through one, op by op, and each op is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm.program.ops import (
    ACTIVATIONS,
    GATINGS,
    Add,
    Attention,
    Embed,
    GatedActivation,
    KVSpec,
    Linear,
    MixtureOfExperts,
    Op,
    Program,
    RMSNorm,
    Rope,
    Scale,
    SelectRows,
    Slice,
    SoftCap,
    Value,
    inputs,
)


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass
class Recorder:
    """Records ops as an architecture calls them; checks widths and that weights exist with the shapes they need.

    `tensors` maps names to anything with a shape (outermost first), such as a file's `TensorInfo`s. One method per
    op, named after it, with the op's fields as arguments; each returns the op's value. Set `layer` before recording
    a block. Everything that does not fit raises ModelError and names the tensor.
    """

    tensors: Mapping[str, _Shaped]
    layer: int = -1
    ops: list[Op] = field(default_factory=list)
    kv: list[KVSpec] = field(default_factory=list)
    _n_values: int = 0
    _selected: set[int] = field(default_factory=set)
    """Values that have one row per wanted row, not one per token."""

    def embed(self, table: str, *, scale: float = 1.0) -> Value:
        """[tokens, n_embd]; `table` may be any matrix."""
        shape = self.shape(table)
        if len(shape) != 2:
            raise ModelError(f"tensor {table} has shape {list(shape)}, but an embedding table has two axes")
        return self._add(Embed, shape[1], table=table, scale=scale)

    def rms_norm(self, x: Value, weight: str | None, *, eps: float, group: int | None = None) -> Value:
        """[tokens, x.width]; `group` None: the whole width."""
        group = x.width if group is None else group
        if group < 1 or x.width % group:
            raise ModelError(f"a norm over groups of {group} columns does not divide {x.width} columns")
        if weight is not None and self.shape(weight) not in ((group,), (x.width,)):
            self._refuse(weight, (group,))
        return self._add(RMSNorm, x.width, x=x, weight=weight, eps=eps, group=group)

    def linear(self, x: Value, weight: str, bias: str | None = None, *, width: int | None = None) -> Value:
        """[tokens, rows of weight]; `width`, where given, is the number of rows that the weight must have."""
        shape = self.shape(weight)
        if len(shape) != 2 or shape[1] != x.width or (width is not None and shape[0] != width):
            self._refuse(weight, (width if width is not None else shape[0], x.width))
        if bias is not None:
            self.require(bias, (shape[0],))
        return self._add(Linear, shape[0], x=x, weight=weight, bias=bias)

    def rope(
        self, x: Value, *, head_dim: int, inv_freq: tuple[float, ...], mscale: float = 1.0, interleaved: bool = False
    ) -> Value:
        """[tokens, x.width]."""
        if head_dim < 1 or x.width % head_dim or not 0 < 2 * len(inv_freq) <= head_dim:
            raise ModelError(f"cannot rotate {2 * len(inv_freq)} of {head_dim} columns a head, {x.width} in all")
        if x.id in self._selected:
            raise ModelError("positions belong to tokens, not to selected rows")
        return self._add(
            Rope, x.width, x=x, head_dim=head_dim, inv_freq=inv_freq, mscale=mscale, interleaved=interleaved
        )

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        v_head_dim: int,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: str | None = None,
    ) -> Value:
        """[tokens, n_heads * v_head_dim]; takes the next KV cache."""
        if min(n_heads, n_kv_heads, head_dim, v_head_dim) < 1 or n_heads % n_kv_heads:
            raise ModelError(f"{n_heads} heads cannot share {n_kv_heads} key/value heads")
        if (q.width, k.width, v.width) != (n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * v_head_dim):
            raise ModelError(
                f"queries, keys and values of {q.width}, {k.width} and {v.width} columns do not make "
                f"{n_heads} and {n_kv_heads} heads of {head_dim} and {v_head_dim} columns"
            )
        if self._selected & {q.id, k.id, v.id}:
            raise ModelError("attention needs every token, not selected rows")
        if sinks is not None:
            self.require(sinks, (n_heads,))
        self.kv.append(KVSpec(n_kv_heads, head_dim, v_head_dim, window))
        return self._add(
            Attention,
            n_heads * v_head_dim,
            q=q,
            k=k,
            v=v,
            cache=len(self.kv) - 1,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            scale=scale,
            window=window,
            softcap=softcap,
            sinks=sinks,
        )

    def add(self, a: Value, b: Value) -> Value:
        """[tokens, width of both]."""
        self._same_width("added", a, b)
        return self._add(Add, a.width, a=a, b=b)

    def scale(self, x: Value, factor: float) -> Value:
        """[tokens, x.width]."""
        return self._add(Scale, x.width, x=x, factor=factor)

    def slice(self, x: Value, start: int, width: int) -> Value:
        """[tokens, width]."""
        if start < 0 or width < 1 or start + width > x.width:
            raise ModelError(f"columns {start} to {start + width} are not within {x.width} columns")
        return self._add(Slice, width, x=x, start=start)

    def gated_activation(self, gate: Value, up: Value, *, act: str = "silu") -> Value:
        """[tokens, width of both]."""
        self._same_width("gated", gate, up)
        return self._add(GatedActivation, gate.width, gate=gate, up=up, act=_known(act, ACTIVATIONS))

    def mixture_of_experts(
        self,
        x: Value,
        router: Value,
        *,
        gate: str,
        up: str,
        down: str,
        n_used: int,
        n_ff: int,
        gating: str = "softmax",
        normalize: bool = False,
        weight_scale: float = 1.0,
        act: str = "silu",
        choice_bias: str | None = None,
        gate_bias: str | None = None,
        up_bias: str | None = None,
        down_bias: str | None = None,
        gate_scale: str | None = None,
        up_scale: str | None = None,
        down_scale: str | None = None,
    ) -> Value:
        """[tokens, x.width]; the number of experts is the router's width."""
        n_experts = router.width
        if not 0 < n_used <= n_experts:
            raise ModelError(f"cannot use {n_used} of {n_experts} experts")
        self._same_rows(x, router)
        for weight, bias, rows, columns in (
            (gate, gate_bias, n_ff, x.width),
            (up, up_bias, n_ff, x.width),
            (down, down_bias, x.width, n_ff),
        ):
            self.require(weight, (n_experts, rows, columns))
            if bias is not None:
                self.require(bias, (n_experts, rows))
        for name in (choice_bias, gate_scale, up_scale, down_scale):
            if name is not None:
                self.require(name, (n_experts,))
        return self._add(
            MixtureOfExperts,
            x.width,
            x=x,
            router=router,
            gate=gate,
            up=up,
            down=down,
            n_experts=n_experts,
            n_used=n_used,
            n_ff=n_ff,
            gating=_known(gating, GATINGS),
            normalize=normalize,
            weight_scale=weight_scale,
            act=_known(act, ACTIVATIONS),
            choice_bias=choice_bias,
            gate_bias=gate_bias,
            up_bias=up_bias,
            down_bias=down_bias,
            gate_scale=gate_scale,
            up_scale=up_scale,
            down_scale=down_scale,
        )

    def select_rows(self, x: Value) -> Value:
        """[rows wanted, x.width]."""
        if x.id in self._selected:
            raise ModelError("rows are selected once")
        out = self._add(SelectRows, x.width, x=x)
        self._selected.add(out.id)
        return out

    def soft_cap(self, x: Value, cap: float) -> Value:
        """[tokens, x.width]."""
        return self._add(SoftCap, x.width, x=x, cap=cap)

    def finish(self, hidden: Value, logits: Value, *, n_layers: int) -> Program:
        """The program that computes `hidden` and `logits`, both of selected rows."""
        if not {hidden.id, logits.id} <= self._selected:
            raise ModelError("a program's results must be of selected rows")
        return Program(
            ops=tuple(self.ops),
            n_layers=n_layers,
            n_embd=hidden.width,
            n_vocab=logits.width,
            kv=tuple(self.kv),
            hidden=hidden,
            logits=logits,
        )

    def has(self, name: str) -> bool:
        """Is there a tensor of this name?"""
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, outermost first; ModelError when there is none of this name."""
        try:
            return tuple(self.tensors[name].shape)
        except KeyError:
            raise ModelError(f"tensor {name} is missing: the file is incomplete, or of another architecture") from None

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """ModelError unless there is a tensor of this name and shape."""
        if self.shape(name) != shape:
            self._refuse(name, shape)

    def _refuse(self, name: str, wanted: tuple[int, ...]) -> NoReturn:
        raise ModelError(f"tensor {name} has shape {list(self.shape(name))}, but the model needs {list(wanted)}")

    def _same_width(self, verb: str, a: Value, b: Value) -> None:
        if a.width != b.width:
            raise ModelError(f"{a.width} and {b.width} columns cannot be {verb}")
        self._same_rows(a, b)

    def _same_rows(self, a: Value, b: Value) -> None:
        if (a.id in self._selected) != (b.id in self._selected):
            raise ModelError("selected rows and all tokens do not go together")

    def _add(self, op: type[Op], width: int, **arguments: Any) -> Value:
        out = Value(self._n_values, width)
        self._n_values += 1
        recorded = op(out=out, layer=self.layer, **arguments)
        if any(v.id in self._selected for v in inputs(recorded)):
            self._selected.add(out.id)
        self.ops.append(recorded)
        return out


def _known(word: str, words: tuple[str, ...]) -> str:
    if word not in words:
        raise ModelError(f"{word!r} is unknown; known are {', '.join(words)}")
    return word


def as_inv_freq(values: NDArray[np.floating] | list[float]) -> tuple[float, ...]:
    """Rotary frequencies as a hashable tuple of float32-representable numbers."""
    return tuple(float(v) for v in np.asarray(values, np.float32))
