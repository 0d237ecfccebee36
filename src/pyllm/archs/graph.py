"""Recording of a decoder: ops by the tensor names of GGUF files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.archs.hparams import HParams
from pyllm.errors import ModelError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Recorder, Value, Weight
from pyllm.program.ops.elementwise import Add, Scale
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.select import Slice
from pyllm.quant import formats

if TYPE_CHECKING:
    from pyllm.archs.decoder import Norm

_SCALED_FORMATS = ("NVFP4",)
"""Formats whose matrices have their own scale, the tensor `.scale`."""


class Graph:
    """The recording interface of mixers: `g.rec` records any op, the methods here those that depend on the file's
    tensors.

    `kept`: values that mixers keep for later layers, by name; `embedded`: the stream before the first layer;
    `layer_input`: the stream at the input of the current layer; `caches`: the number of the KV cache of each layer that
    has one.
    """

    embedded: Value
    layer_input: Value

    def __init__(self, hp: HParams, norm: Norm) -> None:
        self.hp = hp
        self._norm = norm
        self.tensors: dict[str, TensorInfo] = dict(hp.tensors)
        self.rec = Recorder(self.tensors)
        self.caches: dict[int, int] = {}
        self.kept: dict[str, Value] = {}
        self._once: dict[object, Value] = {}

    def linear(self, x: Value, stem: str, width: int, *, scaled: bool = True, bias: str | None = "") -> Value:
        """x @ `stem`.weight.T, times `stem`.scale, plus `stem`.bias, as far as the file has them → [tokens, width].
        Files have a matrix of one row as a vector.

        `bias`: name of another tensor for the bias; None: no bias, whatever the file has.
        """
        name = f"{stem}.weight"
        one_row = self.rec.shape(name) == (x.width,) != (width,)
        weight = self.row(name) if one_row else Weight(name)
        self.rec.require_rows(weight, width)
        vector = Weight(bias) if bias else None if bias is None else self.optional(f"{stem}.bias")
        return self.rec(Linear(x=self._scaled(x, stem, scaled), weight=weight, bias=vector))

    def linears(
        self,
        x: Value,
        stem: str,
        widths: Sequence[int],
        n: int,
        biases: Sequence[str | None] | None = None,
        *,
        scaled: bool = True,
    ) -> list[Value]:
        """Several products out of one matrix, whose rows are `n` groups of as many rows of each product as `widths`
        says → a value [tokens, n * width] for each. `biases`: names of their vectors; None: those parts of the matrix's
        own, where the file has one."""
        period = sum(widths)
        self.rec.require(f"{stem}.weight", (n * period, x.width))
        x, start, out = self._scaled(x, stem, scaled), 0, []
        for width, name in zip(widths, biases or [None] * len(widths), strict=True):
            stop = start + width
            weight = self.rows(f"{stem}.weight", start, stop, period)
            bias = Weight(name) if name else self._part_of_bias(stem, start, stop, period) if biases is None else None
            out.append(self.rec(Linear(x=x, weight=weight, bias=bias)))
            start = stop
        return out

    def _part_of_bias(self, stem: str, start: int, stop: int, period: int) -> Weight | None:
        """Numbers `start` to `stop` of each `period` of a bias, if the file has it."""
        vector = self.tensors.get(f"{stem}.bias")
        if vector is None:
            return None
        self.rec.require(vector.name, (self.rec.shape(f"{stem}.weight")[0],))
        groups = vector.data.reshape(vector.n_elements // period, period, -1)[:, start:stop]
        shape = (len(groups) * (stop - start),)
        part = TensorInfo(f"{vector.name}[{start}:{stop}/{period}]", shape, vector.format, groups.reshape(-1))
        self.tensors[part.name] = part
        return Weight(part.name)

    def _scaled(self, x: Value, stem: str, used: bool) -> Value:
        scale = self.scale(stem, used)
        return self.rec(Scale(x=x, factor=scale)) if scale else x

    def norm(self, x: Value, stem: str | None, group: int = 0, kind: Norm | None = None) -> Value:
        """The model's norm, or another one, with `stem`'s tensors over the width, or over groups of columns.

        None: x as it is. "": a norm without weights.
        """
        return x if stem is None else (kind or self._norm)(self, x, stem, group)

    def once(self, key: object, make: Callable[[], Value]) -> Value:
        """A value shared by several layers, recorded at its first use."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def add(self, a: Value, b: Value) -> Value:
        return self.rec(Add(a=a, b=b))

    def split(self, x: Value, *widths: int) -> list[Value]:
        """Consecutive columns of x, of these widths."""
        starts = accumulate(widths, initial=0)
        return [self.rec(Slice(x=x, start=start, width=width)) for start, width in zip(starts, widths, strict=False)]

    def times(self, x: Value, factor: float) -> Value:
        return x if factor == 1 else self.rec(Scale(x=x, factor=factor))

    def weight(self, stem: str) -> Weight:
        """`stem`.weight, or `stem` if the file has that name."""
        return Weight(stem if self.rec.has(stem) else f"{stem}.weight")

    def optional(self, *names: str) -> Weight | None:
        """The first of these tensors that the file has, or None."""
        return next((Weight(name) for name in names if self.rec.has(name)), None)

    def scale(self, stem: str, used: bool) -> float | None:
        """The number `stem`.scale, if the file has it and it is used."""
        name = f"{stem}.scale"
        if not self.rec.has(name) or not self.uses_scale(stem, used):
            return None
        value = float(self.hp.read(name, 1)[0])
        if not math.isfinite(value):
            raise ModelError(f"tensor {name} holds {value}")
        return value

    def rows(self, name: str, start: int, stop: int, period: int = 0) -> Weight:
        """Rows `start` to `stop` of a matrix, or of each matrix of a stack, as a tensor without a copy; with a period,
        those of each `period` rows."""
        view = self.tensors[name].rows(start, stop, period)
        self.tensors[view.name] = view
        return Weight(view.name)

    def columns(self, name: str, start: int, stop: int) -> Weight:
        """Columns `start` to `stop` of a matrix, copied. Raises ModelError where they are no whole blocks."""
        tensor = self.tensors[name]
        n_rows, n_columns = tensor.shape
        size = formats.get(tensor.format).block_size
        if start % size or stop % size:
            raise ModelError(f"columns {start} to {stop} of {name} are no whole blocks of {tensor.format}")
        blocks = tensor.data.reshape(n_rows, n_columns // size, -1)[:, start // size : stop // size]
        part = TensorInfo(f"{name}[,{start}:{stop}]", (n_rows, stop - start), tensor.format, blocks.reshape(-1))
        self.tensors[part.name] = part
        return Weight(part.name)

    def joined(self, stem: str, width: int, *sides: Value) -> Value:
        """`stem`.weight times values side by side → [tokens, width], times `stem`.scale if the file has it: the sum of
        the products of its parts."""
        starts = list(accumulate((side.width for side in sides), initial=0))
        self.rec.require(f"{stem}.weight", (width, starts[-1]))
        total: Value | None = None
        for side, start in zip(sides, starts, strict=False):
            part = self.columns(f"{stem}.weight", start, start + side.width)
            product = self.rec(Linear(x=side, weight=part))
            total = product if total is None else self.add(total, product)
        assert total is not None, "at least one value"
        return self.times(total, self.scale(stem, True) or 1.0)

    def row(self, name: str) -> Weight:
        """A vector as a matrix of one row."""
        vector = self.tensors[name]
        view = TensorInfo(f"{name}[0:1]", (1, vector.n_elements), vector.format, vector.data)
        self.tensors[view.name] = view
        return Weight(view.name)

    def matrix(self, name: str) -> Weight:
        """A stack of matrices as one, below each other, without a copy."""
        stack = self.tensors[name]
        view = TensorInfo(
            f"{name}[:]", (stack.n_elements // stack.shape[-1], stack.shape[-1]), stack.format, stack.data
        )
        self.tensors[view.name] = view
        return Weight(view.name)

    def item(self, name: str, i: int) -> Weight:
        """The i-th matrix of a stack, or vector of a matrix, without a copy."""
        view = self.tensors[name].item(i)
        self.tensors[view.name] = view
        return Weight(view.name)

    def shaped(self, name: str, *shape: int) -> Weight:
        """A tensor whose shape is this one but for axes of length 1, in this shape, without a copy."""
        if [n for n in self.rec.shape(name) if n > 1] != [n for n in shape if n > 1]:
            self.rec.require(name, shape)
        given = self.tensors[name]
        view = TensorInfo(f"{name}[:]", shape, given.format, given.data)
        self.tensors[view.name] = view
        return Weight(view.name)

    def inverse(self, name: str) -> Weight:
        """A vector of 1 divided by each number of another. Raises ModelError where one is zero or not finite."""
        with np.errstate(all="ignore"):
            values = 1 / self.hp.read(name, *self.rec.shape(name))
        if not np.isfinite(values).all():
            raise ModelError(f"tensor {name} holds numbers that cannot be divided by")
        return self.made(f"1/{name}", values)

    def made(self, name: str, values: NDArray[np.floating]) -> Weight:
        """A tensor of float32 numbers that is not the file's."""
        data = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8)
        self.tensors[name] = TensorInfo(name, values.shape, "F32", data)
        return Weight(name)

    def vector(self, weight: Weight | None) -> Weight | None:
        """The same weight as a vector, where the file has it as a matrix of one row, or with more axes of length 1."""
        if weight is None or (shape := self.rec.shape(weight))[:-1] != (1,) * max(1, len(shape) - 1):
            return weight
        return self.item(weight, 0)

    def finish(self, hidden: Value, logits: Value | None, feature: Value | None = None) -> Program:
        """The program; output rows are selected as early as possible. `feature`: what heads read of every token."""
        n_vocab = self.rec.shape("token_embd.weight")[0]
        found = [value for value in (hidden, logits, feature) if value is not None]
        found = list(self.rec.select_rows(*found, whole=feature))
        features = None if feature is None else (found[-2], found[-1])
        logits = None if logits is None else found[1]
        return self.rec.finish(found[0], logits, n_layers=self.hp.n_layers, n_vocab=n_vocab, features=features)

    def uses_scale(self, stem: str, used: bool) -> bool:
        """Whether a matrix's scale is used: in families whose matrices have scales, and with formats that need one."""
        return used or self.tensors[f"{stem}.weight"].format in _SCALED_FORMATS
