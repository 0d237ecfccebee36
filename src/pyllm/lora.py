"""Low-rank adapters (LoRA): GGUF files that add scale * alpha / rank * B(A x) to products of a model's matrices.

A recorded program is taken as it is, and the products are added to it as ops that every backend has. So weights may
be in any format, nothing is merged into them, and architectures and backends know nothing of adapters.

Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021); the files are llama.cpp's
(convert_lora_to_gguf.py): `general.type` "adapter", `adapter.type` "lora", and for a matrix [rows, columns] called NAME
the tensors NAME.lora_a [rank, columns] and NAME.lora_b [rows, rank]. Of a token table [n_vocab, n_embd], lora_a is
[n_vocab, rank] and lora_b [n_embd, rank].
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pyllm.errors import ModelError
from pyllm.gguf import GGUFFile, TensorInfo, open_gguf
from pyllm.program import Add, Embed, Linear, Op, Program, Scale, Value

AdapterChoice = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]
"""An adapter to load: its file, or file and scale."""

_TOKENS = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Pair:
    """What an adapter adds to one matrix: `factor` * b @ a, where a has `rank` rows."""

    a: TensorInfo
    b: TensorInfo
    factor: float

    @property
    def rank(self) -> int:
        return self.b.shape[1]


class Adapter:
    """An open adapter. `pairs` are by the name of the matrix that they are for; `arch` is the model's architecture.

    Raises GGUFError for a damaged file, ModelError for one that holds no LoRA adapter, or one with parts that cannot
    be applied: norms, invocation tokens.
    """

    def __init__(self, path: Path, scale: float = 1.0) -> None:
        if not math.isfinite(scale):
            raise ModelError(f"the scale of {path} is {scale}; it must be a finite number")
        if not path.is_file():
            raise ModelError(f"there is no adapter {path}; `pyllm convert --lora` makes one of a PEFT folder")
        self.path, self.scale = path, scale
        self._file: GGUFFile = open_gguf(path)
        try:
            self.arch, alpha = self._read_metadata()
            self.pairs: dict[str, Pair] = self._read_pairs(alpha)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def error(self, text: str) -> ModelError:
        return ModelError(f"adapter {self.path}: {text}")

    def _read_metadata(self) -> tuple[str, float]:
        metadata = self._file.metadata
        kind, method = metadata.get("general.type"), metadata.get("adapter.type")
        if kind != "adapter" or method != "lora":
            raise self.error(
                f"this is no LoRA adapter (general.type is {kind!r}, adapter.type {method!r}); `pyllm convert --lora` "
                "makes one of a PEFT folder"
            )
        if metadata.get("adapter.alora.invocation_tokens") is not None:
            raise self.error("it begins to work at certain tokens only (activated LoRA), which pyllm cannot do")
        alpha = metadata.get("adapter.lora.alpha", 0.0)
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise self.error(f"adapter.lora.alpha is {alpha!r}, not a finite number")
        return str(metadata.get("general.architecture")), float(alpha)

    def _read_pairs(self, alpha: float) -> dict[str, Pair]:
        halves: dict[str, dict[str, TensorInfo]] = {}
        for tensor in self._file.tensors.values():
            name, _, half = tensor.name.rpartition(".")
            if half not in ("lora_a", "lora_b") or not name:
                raise self.error(
                    f"tensor {tensor.name} is neither lora_a nor lora_b of a matrix, and cannot be applied"
                )
            halves.setdefault(name, {})[half] = tensor
        if not halves:
            raise self.error("it holds no tensors")
        pairs = {}
        for name, pair in halves.items():
            if len(pair) < 2:
                raise self.error(f"tensor {name} has no {'lora_b' if 'lora_a' in pair else 'lora_a'}")
            a, b = pair["lora_a"], pair["lora_b"]
            if len(a.shape) == 3 or len(b.shape) == 3:
                raise self.error(f"it adapts experts ({name}), which pyllm cannot do")
            rank = b.shape[-1] if len(b.shape) == 2 == len(a.shape) else 0
            if rank < 1 or rank != a.shape[1 if name == _TOKENS else 0]:
                raise self.error(f"lora_a {list(a.shape)} and lora_b {list(b.shape)} of {name} do not go together")
            pairs[name] = Pair(a, b, self.scale * (alpha / rank if alpha else 1.0))
        return pairs


def open_adapters(choices: Sequence[AdapterChoice]) -> list[Adapter]:
    """Open adapter files. Raises GGUFError, ModelError; none is left open then."""
    opened: list[Adapter] = []
    try:
        for choice in choices:
            path, scale = choice if isinstance(choice, tuple) else (choice, 1.0)
            opened.append(Adapter(Path(path).expanduser(), float(scale)))
    except BaseException:
        for adapter in opened:
            adapter.close()
        raise
    return opened


def adapt(
    program: Program, tensors: Mapping[str, TensorInfo], arch: str, adapters: Sequence[Adapter]
) -> tuple[Program, Mapping[str, TensorInfo]]:
    """The program with what adapters add, and all tensors that it needs.

    Raises ModelError where an adapter was made for another model: another architecture, a matrix that is not there or
    of another shape, or one that cannot be adapted (experts).
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
        if isinstance(op, Linear) and name == _TOKENS:
            continue  # a tied output matrix: the adapter is for the table's rows
        for i, adapter in enumerate(adapters):
            pair = adapter.pairs.get(name)
            if pair is not None:
                a, b = (replace(half, name=f"{half.name}.{i}") for half in (pair.a, pair.b))
                more |= {a.name: a, b.name: b}
                out = writer.add_product(op, out, a, b, pair)
    return writer.finish(program), more


def _check(adapter: Adapter, program: Program, tensors: Mapping[str, TensorInfo], arch: str) -> None:
    if adapter.arch != arch:
        raise adapter.error(f"it is for models of the architecture {adapter.arch!r}, this one is {arch!r}")
    used = {op.weight if isinstance(op, Linear) else op.table for op in program.ops if isinstance(op, Linear | Embed)}
    others = set(program.weights()) - used
    for name, pair in adapter.pairs.items():
        if name in others:
            raise adapter.error(f"{name} cannot be adapted; only matrices that all tokens are multiplied by can be")
        if name not in used:
            raise adapter.error(f"the model uses no matrix {name}; the adapter was made for another model")
        wanted = tensors[name].shape
        found = pair.b.shape[:1] + pair.a.shape[1:]
        if name == _TOKENS:
            found = pair.a.shape[:1] + pair.b.shape[:1]
        if tuple(found) != tuple(wanted):
            raise adapter.error(
                f"it adds {list(found)} to {name}, which is {list(wanted)} here; it was made for another model"
            )


class _Writer:
    """Writes a program's ops anew, with values of their own."""

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
        """`out` plus the pair's product with the input of `op`; from here on it stands for the value of `op`."""
        if isinstance(op, Embed):
            inner = self._op(Embed, pair.rank, op, table=a.name, scale=op.scale * pair.factor)
        else:
            assert isinstance(op, Linear)
            inner = self._op(Linear, pair.rank, op, x=self._new[op.x.id], weight=a.name)
            if pair.factor != 1.0:  # here, where it takes the fewest multiplications
                inner = self._op(Scale, pair.rank, op, x=inner, factor=pair.factor)
        product = self._op(Linear, out.width, op, x=inner, weight=b.name)
        total = self._op(Add, out.width, op, a=out, b=product)
        self._new[op.out.id] = total
        return total

    def finish(self, program: Program) -> Program:
        hidden, logits = self._new[program.hidden.id], self._new[program.logits.id]
        return replace(program, ops=tuple(self.ops), hidden=hidden, logits=logits)

    def _op(self, kind: type[Op], width: int, like: Op, **arguments: Any) -> Value:
        return self._write(width, lambda out: kind(out=out, layer=like.layer, **arguments))

    def _write(self, width: int, make: Callable[[Value], Op]) -> Value:
        out = Value(len(self.ops), width)
        self.ops.append(make(out))
        return out
