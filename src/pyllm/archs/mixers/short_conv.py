"""The gated short convolution of LFM2 (arXiv:2511.23404)."""

from __future__ import annotations

from typing import Self

from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.program import Value, Weight
from pyllm.program.ops.conv import ShortConv
from pyllm.program.ops.gate import GatedActivation
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class GatedConvolution:
    """out_proj(c * convolution(b * y)) of in_proj(x), which is b, c and y side by side."""

    kernel: int
    """Tokens that the convolution reads."""

    @classmethod
    def read(cls, hp: HParams) -> Self:
        """The mixer with the file's size."""
        return cls(hp.integer("shortconv.l_cache"))

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        n, stem = g.hp.n_embd, f"{blk}shortconv"
        b, c, y = g.split(g.linear(x, f"{stem}.in_proj", 3 * n), n, n, n)
        g.rec.require(f"{stem}.conv.weight", (n, self.kernel))
        y = g.rec(GatedActivation(gate=b, up=y, act="identity"))
        y = g.rec(ShortConv(x=y, weight=Weight(f"{stem}.conv.weight"), bias=g.optional(f"{stem}.conv.bias")))
        y = g.rec(GatedActivation(gate=c, up=y, act="identity"))
        return g.linear(y, f"{stem}.out_proj", n)
