"""Several residual streams, of which one is computed and the others are predicted and corrected: AltUp
(arXiv:2301.13310) as Gemma 3n has it, with its learned residual of low rank (Laurel)."""

from __future__ import annotations

import math

import numpy as np

from pyllm.archs.decoder import Mixer
from pyllm.archs.graph import Graph
from pyllm.archs.mixers.combine import Normed
from pyllm.archs.mixers.embedding import PerLayerEmbedding
from pyllm.errors import ModelError
from pyllm.program import Value, Weight
from pyllm.program.ops.dot import Dot
from pyllm.program.ops.elementwise import MulWeight, Scale
from pyllm.program.ops.gate import Activation, GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.select import Slice
from pyllm.program.ops.streams import StreamMix
from pyllm.records import dataclass

_LEAST = 1e-30
"""Added to mean squares, so that a row of zeros has a direction."""


def _length(g: Graph, x: Value) -> Value:
    """The root of the mean square of each row, [tokens, 1]."""
    unit = g.rec(RMSNorm(x=x, weight=None, eps=_LEAST))
    return g.rec(Scale(x=g.rec(Dot(a=x, b=unit, group=x.width)), factor=1 / x.width))


def _as_long(g: Graph, x: Value, length: Value) -> Value:
    """Each stream of x in the length of another: [tokens, a multiple of n_embd]."""
    unit = g.rec(RMSNorm(x=x, weight=None, eps=_LEAST, group=g.hp.n_embd))
    return g.rec(GatedActivation(gate=length, up=unit, act="identity"))


@dataclass(frozen=True, slots=True)
class Spread:
    """The streams: the embeddings, and projections of them in their length; [tokens, n * n_embd]."""

    n: int

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        added = g.rec(Linear(x=x, weight=g.matrix("altup_proj.weight")))
        added = _as_long(g, added, _length(g, x))
        return g.rec(StreamMix(x=x, y=added, weight=g.made("streams as they are", np.eye(self.n)), width=x.width))


@dataclass(frozen=True, slots=True)
class Merge:
    """The mean of the first stream and of projections of the others, which get its length."""

    n: int

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        first, *others = g.split(x, *[g.hp.n_embd] * self.n)
        length, total = _length(g, first), first
        for i, other in enumerate(others):
            y = g.rec(Linear(x=other, weight=g.item("altup_unembd_proj.weight", i)))
            total = g.add(total, _as_long(g, y, length))
        return g.times(total, 1 / self.n)


@dataclass(frozen=True, slots=True)
class AltUp:
    """A layer over n streams, [tokens, n * n_embd]. All are predicted; the first prediction goes through attention,
    Laurel and the feed-forward network; what these change about it corrects all streams. An embedding of the layer is
    added to all but the first."""

    n: int
    attention: Mixer
    """Without norms."""
    feed_forward: Mixer
    """With norms."""
    per_layer: PerLayerEmbedding

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        width, predicted = g.hp.n_embd, self._predicted(g, blk, x)
        active = g.rec(Slice(x=predicted, start=0, width=width))
        h = g.norm(active, f"{blk}attn_norm")
        attended = g.add(g.norm(self.attention(g, blk, h), f"{blk}post_attention_norm"), active)
        total = g.times(g.add(attended, _laurel(g, blk, h)), 1 / math.sqrt(2))
        done = g.add(self.feed_forward(g, blk, total), total)
        corrected = self._corrected(g, blk, predicted, done)
        first = g.rec(Slice(x=corrected, start=0, width=width))
        first = g.rec(MulWeight(x=first, weight=Weight(f"{blk}altup_correct_scale.weight")))
        more = Normed(self.per_layer, post="post_norm")(g, blk, first)
        coefs = np.concatenate([np.eye(self.n), np.ones((self.n, 1))], axis=1)
        coefs[0, -1] = 0
        return g.rec(StreamMix(x=corrected, y=more, weight=g.made("streams, one added to others", coefs), width=width))

    def _modalities(self, g: Graph, blk: str, x: Value) -> Value:
        """What coefficients are made of, [tokens, n]."""
        x = g.times(g.norm(x, f"{blk}altup_router_norm"), 1 / g.hp.n_embd)
        return g.rec(Activation(x=g.linear(x, f"{blk}altup_router", self.n), act="tanh"))

    def _predicted(self, g: Graph, blk: str, x: Value) -> Value:
        width = g.hp.n_embd
        modalities = self._modalities(g, blk, g.rec(Slice(x=x, start=0, width=width)))
        coefs = g.linear(modalities, f"{blk}altup_predict_coef", self.n**2)
        return g.rec(StreamMix(x=x, coefs=coefs, weight=g.made("streams as they are", np.eye(self.n)), width=width))

    def _corrected(self, g: Graph, blk: str, predicted: Value, done: Value) -> Value:
        """predicted stream j + (1 + c[j]) * (done - predicted stream 0), where c is linear in the modalities."""
        n, name = self.n, f"{blk}altup_correct_coef.weight"
        of_pairs = np.zeros((n, n + 1, n), np.float32)
        of_pairs[:, n] = g.hp.read(name, n, n).reshape(n, n)
        of_pairs[:, 0] = -of_pairs[:, n]
        fixed = np.concatenate([np.eye(n), np.ones((n, 1))], axis=1)
        fixed[:, 0] -= 1
        weight = g.made(f"{name}, of pairs", of_pairs.reshape(-1, n))
        coefs = g.rec(Linear(x=self._modalities(g, blk, done), weight=weight))
        return g.rec(
            StreamMix(x=predicted, y=done, coefs=coefs, weight=g.made("streams, corrected", fixed), width=g.hp.n_embd)
        )


def _laurel(g: Graph, blk: str, x: Value) -> Value:
    """x + norm(x @ laurel_l.T @ laurel_r.T)."""
    rank = g.rec.shape(f"{blk}laurel_l.weight")[0]
    y = g.linear(g.linear(x, f"{blk}laurel_l", rank), f"{blk}laurel_r", g.hp.n_embd)
    return g.add(x, g.norm(y, f"{blk}laurel_post_norm"))


def streams_of(shape: tuple[int, ...], n_embd: int) -> int:
    """Number of streams, by the shape of altup_proj. Raises ModelError for another shape than those have."""
    if len(shape) != 3 or shape[1:] != (n_embd, n_embd):
        raise ModelError(f"tensor altup_proj.weight has shape {list(shape)}, but the model needs square matrices")
    return shape[0] + 1
