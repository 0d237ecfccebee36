"""GroveMoE: after the experts, smaller ones that several of them share."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import Experts
from pyllm.errors import ModelError
from pyllm.program import Value
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class _Grove:
    """y + scale * shared(y), y = experts(x); x chooses both."""

    experts: Experts
    shared: Experts
    scale: float

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        router = self.experts.route(g, blk, x)
        y = self.experts.mix(g, blk, x, router)
        return g.add(y, g.times(self.shared.mix(g, blk, y, router), self.scale))


def grovemoe(hp: HParams) -> Decoder:
    sharing, scale = hp.integer("experts_per_group"), hp.number("expert_group_scale")
    if hp.n_experts % sharing:
        raise ModelError(f"{hp.arch}.experts_per_group is {sharing}, which does not divide {hp.n_experts} experts")

    def experts(il: int) -> _Grove:
        n_used = min(hp.n_experts_used(il), hp.n_experts // sharing)
        n_ff = hp.integer("expert_chunk_feed_forward_length", hp.head_dims()[0])
        usual = Experts.read(hp, il)
        shared = Experts.read(hp, il, n_ff=n_ff, n_used=n_used, kind="_chexps", sharing=sharing)
        return _Grove(usual, shared, scale)

    return transformer(hp, lambda il: Attention.read(hp, il, qk_norm="head"), experts)


ARCHITECTURES = {"grovemoe": grovemoe}
