"""Low-rank adapters (LoRA): scale * alpha / rank * B(A x) is added to products of a model's matrices.

The products are added to a recorded program as ops that every backend has. So weights may be in any format, nothing is
merged into them, and architectures and backends do not know of adapters.

Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

from pyllm.errors import ModelError
from pyllm.gguf.tensor import TensorInfo, file_name
from pyllm.program.op import Op
from pyllm.program.ops.elementwise import Add, Scale
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.linear import Linear
from pyllm.program.program import Program
from pyllm.program.values import Value
from pyllm.records import dataclass

TOKENS = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Pair:
    """Addition to one matrix: `factor` * b @ a, where a has `rank` rows."""

    a: TensorInfo
    b: TensorInfo
    factor: float

    @property
    def rank(self) -> int:
        return self.b.shape[1]


class Adapter(Protocol):
    """An adapter's additions to a model; `pyllm.llm.adapters` reads it from a file."""

    arch: str
    scale: float
    pairs: dict[str, Pair]
    """By the name of the adapted matrix."""

    def error(self, text: str) -> ModelError:
        """An error that names the adapter."""
        ...


def adapt(
    program: Program, tensors: Mapping[str, TensorInfo], arch: str, adapters: Sequence[Adapter]
) -> tuple[Program, Mapping[str, TensorInfo]]:
    """The program with adapters' additions, and all tensors that it needs.

    Raises ModelError where an adapter is for another model: another architecture, a missing matrix or another shape, or
    one that cannot be adapted (experts).
    """
    adapters = [adapter for adapter in adapters if adapter.scale]
    if not adapters:
        return program, tensors
    for adapter in adapters:
        _check(adapter, program, tensors, arch)
    more = dict(tensors)
    writer = _Writer()
    for op in program.ops:
        out = writer.copy(op)
        name = op.weight if isinstance(op, Linear) else op.table if isinstance(op, Embed) else ""
        if isinstance(op, Linear) and name == TOKENS:
            continue  # a tied output matrix: the adapter is for the table's rows
        for i, adapter in enumerate(adapters):
            pair = adapter.pairs.get(file_name(name))
            if pair is not None:
                b = pair.b.part(name)  # of some rows of a matrix, those of the adapter
                a, b = (replace(half, name=f"{half.name}.{i}") for half in (pair.a, b))
                more |= {a.name: a, b.name: b}
                out = writer.add_product(op, out, a, b, pair)
    return writer.finish(program), more


def _check(adapter: Adapter, program: Program, tensors: Mapping[str, TensorInfo], arch: str) -> None:
    if adapter.arch != arch:
        raise adapter.error(f"it is for models of the architecture {adapter.arch!r}, this one is {arch!r}")
    used = {
        file_name(op.weight if isinstance(op, Linear) else op.table)
        for op in program.ops
        if isinstance(op, Linear | Embed)
    }
    others = {file_name(name) for name in program.weights()} - used
    for name, pair in adapter.pairs.items():
        if name in others:
            raise adapter.error(f"{name} cannot be adapted; only matrices that all tokens are multiplied by can be")
        if name not in used:
            raise adapter.error(f"the model uses no matrix {name}; the adapter was made for another model")
        wanted = tensors[name].shape
        found = pair.b.shape[:1] + pair.a.shape[1:]
        if name == TOKENS:
            found = pair.a.shape[:1] + pair.b.shape[:1]
        if tuple(found) != tuple(wanted):
            raise adapter.error(
                f"it adds {list(found)} to {name}, which is {list(wanted)} here; it was made for another model"
            )


class _Writer:
    """Rewrites a program's ops, with new values."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self._new: dict[int, Value] = {}

    def copy(self, op: Op) -> Value:
        given = {f.name: getattr(op, f.name) for f in fields(op)}
        given |= {name: self._new[v.id] for name, v in given.items() if isinstance(v, Value) and name != "out"}
        out = self._write(op.out.width, lambda out: type(op)(**{**given, "out": out}))
        self._new[op.out.id] = out
        return out

    def add_product(self, op: Op, out: Value, a: TensorInfo, b: TensorInfo, pair: Pair) -> Value:
        """`out` plus the pair's product with the input of `op`; it replaces the value of `op` from here on."""
        if isinstance(op, Embed):
            inner = self._op(Embed, pair.rank, op, table=a.name, scale=op.scale * pair.factor)
        else:
            assert isinstance(op, Linear)
            inner = self._op(Linear, pair.rank, op, x=self._new[op.x.id], weight=a.name)
            if pair.factor != 1.0:  # applied here, where it takes the fewest multiplications
                inner = self._op(Scale, pair.rank, op, x=inner, factor=pair.factor)
        product = self._op(Linear, out.width, op, x=inner, weight=b.name)
        total = self._op(Add, out.width, op, a=out, b=product)
        self._new[op.out.id] = total
        return total

    def finish(self, program: Program) -> Program:
        logits = program.logits and self._new[program.logits.id]
        features = None
        if program.features is not None:
            of_rows, of_tokens = program.features
            features = self._new[of_rows.id], self._new[of_tokens.id]
        hidden = self._new[program.hidden.id]
        return replace(program, ops=tuple(self.ops), hidden=hidden, logits=logits, features=features)

    def _op(self, kind: type[Op], width: int, like: Op, **arguments: Any) -> Value:
        return self._write(width, lambda out: kind(out=out, layer=like.layer, **arguments))

    def _write(self, width: int, make: Callable[[Value], Op]) -> Value:
        out = Value(len(self.ops), width)
        self.ops.append(make(out))
        return out
