"""A decoder as data: layers of residual parts, each a mixer with norms around it; and its recording as a program.

Families are functions that return one (`pyllm.archs.families`); mixers are in `pyllm.archs.mixers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.errors import ModelError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, StateSpec, Value, Weight
from pyllm.program.ops.elementwise import AddWeight, SoftCap
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import LayerNorm, RMSNorm
from pyllm.records import dataclass


class Mixer(Protocol):
    """What a part of a layer computes; a frozen dataclass that records its ops when called."""

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        """[tokens, n_embd] → the same. `blk`: prefix of the names of the layer's tensors, "blk.3."."""
        ...


class Norm(Protocol):
    """A kind of norm; a frozen dataclass. Without a stem it has no weights."""

    def __call__(self, g: Graph, x: Value, stem: str, group: int) -> Value: ...


@dataclass(frozen=True, slots=True)
class RMS:
    """x / sqrt(mean(x^2) + eps) * weight + bias; without a bias where the file has none."""

    eps: float

    @classmethod
    def read(cls, hp: HParams, key: str = "attention.layer_norm_rms_epsilon") -> Self:
        return cls(_eps(hp, key))

    def __call__(self, g: Graph, x: Value, stem: str, group: int) -> Value:
        weight, bias = (g.weight(stem), g.optional(f"{stem}.bias")) if stem else (None, None)
        return g.rec(RMSNorm(x=x, weight=weight, bias=bias, eps=self.eps, group=group))


@dataclass(frozen=True, slots=True)
class LN:
    """(x - mean) / sqrt(variance + eps) * weight + bias; without those that the file does not have."""

    eps: float

    @classmethod
    def read(cls, hp: HParams) -> Self:
        return cls(_eps(hp, "attention.layer_norm_epsilon"))

    def __call__(self, g: Graph, x: Value, stem: str, group: int) -> Value:
        weight, bias = (g.optional(f"{stem}.{what}") for what in ("weight", "bias"))
        return g.rec(LayerNorm(x=x, weight=weight, bias=bias, eps=self.eps, group=group))


@dataclass(frozen=True, slots=True)
class Part:
    """after(x + scale * post(mix(norm(x)))). Norms are named by their tensors; None: no norm."""

    mix: Mixer
    norm: str | None = None
    post: str | None = None
    scale: float = 1.0
    residual: bool = True
    """Whether it is added to the stream; else it replaces the stream."""
    after: str | None = None
    """Norm of the stream after the part."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: its parts in order, and the block number of its tensors."""

    index: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """Logits: scale * output(hidden), capped. `tied`: the embedding table is the output matrix (True), the file has
    one (False), or it is where the file has none (None)."""

    tied: bool | None = None
    scale: float = 1.0
    softcap: float = 0.0
    bias: bool = True
    """The file's bias applies."""
    stem: str = "output"
    """Of the names of its tensors."""

    def __call__(self, g: Graph, hidden: Value) -> Value:
        n_vocab = g.rec.shape("token_embd.weight")[0]
        tied = not g.rec.has(f"{self.stem}.weight") if self.tied is None else self.tied
        if tied:
            bias = g.optional(f"{self.stem}.bias") if self.bias else None
            logits = g.rec(Linear(x=hidden, weight=Weight("token_embd.weight"), bias=bias))
        else:
            logits = g.linear(hidden, self.stem, n_vocab, bias="" if self.bias else None)
        logits = g.times(logits, self.scale)
        return g.rec(SoftCap(x=logits, cap=self.softcap)) if self.softcap else logits


@dataclass(frozen=True, slots=True)
class NextTokens:
    """Heads that guess further tokens, in files that have them: their layers follow the trunk's (`archs.heads`)."""

    normed: bool = True
    """Whether they read the final state after the norm, and give theirs so."""
    norm: Norm | None = None
    """Kind of the norm before their logits; None: the model's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A model's trunk between the embedding table and the head."""

    layers: Sequence[Layer]
    norm: Norm
    """Kind of all norms."""
    prefix: str = "blk."
    """Of the names of the layers' tensors, before a layer's number."""
    embed_scale: float = 1.0
    positions: bool = False
    """Whether a row of position_embd is added to each token's embedding."""
    types: bool = False
    """Whether the first row of token_types, where the file has that, is added to each token's embedding."""
    embed_norm: str | None = None
    """Name of the norm of embeddings; None: no norm."""
    final_norm: str | None = "output_norm"
    head: Head | None = Head()
    """None: the model returns hidden states, no logits."""
    states: tuple[StateSpec, ...] = ()
    """States that mixers name by number, beside those of their own."""
    leaves: Callable[[Graph, Value], None] | None = None
    """Records what is kept of the final states, where they are a source's."""
    encoder: Decoder | None = None
    """What a sequence's source goes through first; it has the same states."""
    next_tokens: NextTokens | None = None
    """None: heads of the architecture, if it has any, are not used."""

    @classmethod
    def read(cls, hp: HParams, layer: Callable[[int], tuple[Part, ...]], **options: Any) -> Self:
        """A decoder with RMS norms, whose layers are made from their numbers."""
        layers = tuple(Layer(il, layer(il)) for il in range(hp.n_layers))
        return cls(layers=layers, norm=options.pop("norm", None) or RMS.read(hp), **options)


def transformer(
    hp: HParams,
    attention: Callable[[int], Mixer],
    feed_forward: Callable[[int], Mixer],
    *,
    norms: tuple[str | None, str | None] = ("attn_norm", "ffn_norm"),
    posts: tuple[str | None, str | None] = (None, None),
    scale: float = 1.0,
    **options: Any,
) -> Decoder:
    """The usual decoder: each layer has attention and a feed-forward network, made from the layer's number, with norms
    of these names before and after."""

    def layer(il: int) -> tuple[Part, ...]:
        mixers = attention(il), feed_forward(il)
        return tuple(Part(*part, scale=scale) for part in zip(mixers, norms, posts, strict=True))

    return Decoder.read(hp, layer, **options)


Features = Callable[[Graph, Sequence[Value], Value], Value]
"""Records what a head reads of each token, from the streams before each layer and after the last one, and the normed
final state → [tokens, width]."""


def write(decoder: Decoder, hp: HParams, features: Features | None = None) -> tuple[Program, Mapping[str, TensorInfo]]:
    """Record the decoder's program; returns it with its tensors: the file's, and views of some of their rows.
    `features`: with what a head reads."""
    g = Graph(hp, decoder.norm)
    g.rec.states.extend(decoder.states)
    x = g.rec(Embed(table=Weight("token_embd.weight"), scale=decoder.embed_scale))
    if x.width != hp.n_embd:
        raise ModelError(f"token_embd.weight has {x.width} columns, {hp.arch}.embedding_length is {hp.n_embd}")
    if decoder.types and g.rec.has("token_types.weight"):
        x = g.rec(AddWeight(x=x, weight=g.item("token_types.weight", 0)))
    if decoder.positions:
        x = g.add(x, _positions(g))
    x = g.embedded = g.norm(x, decoder.embed_norm)
    streams: list[Value] = []
    for layer in decoder.layers:
        blk = f"{decoder.prefix}{layer.index}."
        g.rec.layer, g.layer_input = layer.index, x
        streams.append(x)
        for part in layer.parts:
            x = add_part(g, blk, part, x)
    g.rec.layer = hp.n_layers
    hidden = g.norm(x, decoder.final_norm)
    if decoder.leaves is not None:
        decoder.leaves(g, hidden)
    logits = None if decoder.head is None else decoder.head(g, hidden)
    feature = None if features is None else features(g, [*streams, x], hidden)
    program = g.finish(hidden, logits, feature)
    if decoder.encoder is None:
        return program, g.tensors
    encoder, tensors = write(decoder.encoder, hp)
    # Equal states make equal pages, which are handed over.
    return replace(program, encoder=replace(encoder, states=program.states)), {**tensors, **g.tensors}


def _positions(g: Graph) -> Value:
    """A learned row for each position."""
    hp, table = g.hp, Weight("position_embd.weight")
    n = g.rec.rows(table, hp.n_embd)
    if hp.n_ctx > n:
        raise ModelError(f"the model knows {n} positions; load it with a context of at most {n}, not {hp.n_ctx}")
    return g.rec(Embed(table=table, of_positions=True))


def add_part(g: Graph, blk: str, part: Part, x: Value) -> Value:
    """Record one part; returns the stream after it."""
    y = part.mix(g, blk, g.norm(x, part.norm and blk + part.norm))
    y = g.times(g.norm(y, part.post and blk + part.post), part.scale)
    return g.norm(g.add(x, y) if part.residual else y, part.after and blk + part.after)


def _eps(hp: HParams, key: str) -> float:
    eps = hp.number(key)
    if not 0 < eps < 1:
        raise ModelError(f"{hp.arch}.{key} is {eps}, not between 0 and 1")
    return eps
