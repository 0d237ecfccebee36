"""Mixers made of mixers."""

from __future__ import annotations

from pyllm.archs.decoder import Mixer, Norm
from pyllm.archs.graph import Graph
from pyllm.program import Value
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class Sum:
    """scale * (a(x) + b(x) + ...). Attention comes first: output rows are selected after the last attention."""

    mixers: tuple[Mixer, ...]
    scale: float = 1.0

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        first, *others = (mix(g, blk, x) for mix in self.mixers)
        for other in others:
            first = g.add(first, other)
        return g.times(first, self.scale)


@dataclass(frozen=True, slots=True)
class Normed:
    """post(mix(norm(x))). Norms are named by their tensors, None: no norm. `kind`: of norms, None: the model's."""

    mix: Mixer
    norm: str | None = None
    post: str | None = None
    kind: Norm | None = None

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        y = self.mix(g, blk, g.norm(x, self.norm and blk + self.norm, kind=self.kind))
        return g.norm(y, self.post and blk + self.post, kind=self.kind)


@dataclass(frozen=True, slots=True)
class Beside:
    """mix(x) + scale * x: the residual is of the part's input, after its norm."""

    mix: Mixer
    scale: float

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        return g.add(self.mix(g, blk, x), g.times(x, self.scale))


@dataclass(frozen=True, slots=True)
class Gated:
    """mix(x) * act(gate(x)), with one number for each token; the gate is a vector of the file."""

    mix: Mixer
    gate: str
    act: str = "sigmoid"

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        gate = g.rec(Linear(x=x, weight=g.row(f"{blk}{self.gate}.weight")))
        return g.rec(GatedActivation(gate=gate, up=self.mix(g, blk, x), act=self.act))


@dataclass(frozen=True, slots=True)
class OfEmbedding:
    """mix(the stream before the first layer), whatever the part's input."""

    mix: Mixer

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        return self.mix(g, blk, g.embedded)


@dataclass(frozen=True, slots=True)
class OfLayerInput:
    """mix(the layer's input), whatever the part's input."""

    mix: Mixer

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        return self.mix(g, blk, g.layer_input)


@dataclass(frozen=True, slots=True)
class Projection:
    """x @ `name`.weight.T, one matrix in place of a mixer."""

    name: str

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        return g.linear(x, blk + self.name, g.hp.n_embd)


@dataclass(frozen=True, slots=True)
class Factor:
    """x * factor."""

    factor: float

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        return g.times(x, self.factor)


@dataclass(frozen=True, slots=True)
class FinalNorm:
    """The norm before the head."""

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        return g.norm(x, "output_norm")
