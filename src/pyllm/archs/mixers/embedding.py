"""Per-layer embeddings, and factors of the stream."""

from __future__ import annotations

import math

from pyllm.archs.graph import Graph
from pyllm.program import Value, Weight
from pyllm.program.ops.elementwise import MulWeight, Scale
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.select import Slice
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class PerLayerEmbedding:
    """proj(gelu(inp_gate(x)) * a row of the layer): of the token, per_layer_token_embd, and of its embedding, projected
    for all layers and normed by layer. (Gemma 3n, Gemma 4)"""

    n: int
    """Columns of a layer's embedding."""

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        rows = g.once("per layer", lambda: self._rows(g))
        row = g.rec(Slice(x=rows, start=g.rec.layer * self.n, width=self.n))
        gate = g.linear(x, f"{blk}inp_gate", self.n)
        return g.linear(g.rec(GatedActivation(gate=gate, up=row, act="gelu")), f"{blk}proj", g.hp.n_embd)

    def _rows(self, g: Graph) -> Value:
        """[tokens, n_layers * n]; scaled so that each summand contributes half the variance."""
        n_vocab = g.rec.shape("token_embd.weight")[0]
        g.rec.require("per_layer_token_embd.weight", (n_vocab, g.hp.n_layers * self.n))
        of_token = g.rec(Embed(table=Weight("per_layer_token_embd.weight"), scale=math.sqrt(self.n)))
        embedded = g.rec(Scale(x=g.embedded, factor=1 / math.sqrt(g.hp.n_embd)))
        projected = g.rec(Linear(x=embedded, weight=Weight("per_layer_model_proj.weight")))
        projected = g.norm(projected, "per_layer_proj_norm", self.n)
        return g.times(g.add(projected, of_token), 1 / math.sqrt(2))


@dataclass(frozen=True, slots=True)
class Times:
    """The stream times a tensor of the layer."""

    name: str

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        return g.rec(MulWeight(x=x, weight=Weight(f"{blk}{self.name}.weight")))
