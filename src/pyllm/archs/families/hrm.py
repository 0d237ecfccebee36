"""HRM-Text: two stacks of layers, low and high, over two streams that are added where a stack begins."""

from __future__ import annotations

from pyllm.archs.decoder import RMS, Decoder, Layer, Part
from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN
from pyllm.errors import ModelError
from pyllm.program import Value, Weight
from pyllm.program.ops.elementwise import AddWeight
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class _First:
    """The sum of both streams where the first stack begins: the embeddings, and a learned vector."""

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        g.kept["high"] = x
        return g.rec(AddWeight(x=x, weight=Weight("hrm.z_l_init")))


@dataclass(frozen=True, slots=True)
class _Next:
    """The sum of both streams where the next stack begins; `stream` is what the last one has computed."""

    stream: str

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        g.kept[self.stream] = x
        return g.add(g.kept["high"], g.kept["low"])


def hrm_text(hp: HParams) -> Decoder:
    """Each high cycle is some runs of the low stack and one of the high stack. Norms have no weights; a stack ends with
    one. Attention is causal, also where the model was trained with prefixes that see all of themselves."""
    n, n_high, n_low = (hp.integer(f"hrm.{key}", most=1024) for key in ("layers_per_stack", "h_cycles", "l_cycles"))
    if n * n_high * (n_low + 1) != hp.n_layers:
        raise ModelError(
            f"hrm_text.block_count is {hp.n_layers}, but its stacks make {n * n_high * (n_low + 1)} layers"
        )
    stacks = (["low"] * n_low + ["high"]) * n_high
    layers: list[Layer] = []
    for i, name in enumerate(stacks):
        begin = Part(_Next(stacks[i - 1]) if i else _First(), residual=False)
        end = Part(_Norm(), residual=False)
        for j in range(n):
            index = j + (n if name == "high" else 0)
            parts = (
                Part(Attention.read(hp, index, gate="sigmoid", out_bias=False), ""),
                Part(FFN.read(hp, index, biases=False), ""),
            )
            layers.append(Layer(index, (*(begin,) * (j == 0), *parts, *(end,) * (j == n - 1))))
    scale = hp.number("embedding_scale", 1.0)
    return Decoder(layers=layers, norm=RMS.read(hp), embed_scale=scale, final_norm=None)


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm without weights."""

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        return g.norm(x, "")


ARCHITECTURES = {"hrm_text": hrm_text}
