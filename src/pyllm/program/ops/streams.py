"""Sums of streams: parts of a value's columns, as wide as each other."""

from __future__ import annotations

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes
from pyllm.program.values import Value, Weight
from pyllm.records import dataclass

_MOST_STREAMS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMix(Op):
    """out's stream j = sum over streams i of c[j, i] * stream i; a stream has `width` columns (AltUp).

    Streams are x's, then y's, n in all; out [tokens, m * width]. c[t] = coefs[t] + weight: coefs [tokens, m * n], a
    number for each pair, i fastest; weight [m, n]; at least one of both is there.
    """

    x: Value
    y: Value | None = None
    coefs: Value | None = None
    weight: Weight | None = None
    width: int

    @property
    def n_in(self) -> int:
        """Streams that are read."""
        return (self.x.width + (self.y.width if self.y else 0)) // self.width

    @property
    def n_out(self) -> int:
        """Streams that are made."""
        return self.out.width // self.width

    def infer(self, shapes: Shapes) -> int:
        values = [v for v in (self.x, self.y) if v]
        if self.width < 1 or any(v.width % self.width for v in values):
            raise ModelError(f"{' and '.join(str(v.width) for v in values)} columns are not streams of {self.width}")
        if self.coefs is None and self.weight is None:
            raise ModelError("streams cannot be mixed without coefficients")
        n = self.n_in
        pairs = shapes.shape(self.weight)[0] * n if self.coefs is None and self.weight else 0
        pairs = pairs or (self.coefs.width if self.coefs else 0)
        if pairs % n or not 0 < pairs // n <= _MOST_STREAMS or n > _MOST_STREAMS:
            raise ModelError(f"{pairs} coefficients do not mix {n} streams")
        shapes.require(self.weight, (pairs // n, n))
        for v in (self.y, self.coefs):
            if v:
                shapes.same_rows(self.x, v)
        return pairs // n * self.width
