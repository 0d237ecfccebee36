"""Heads that guess further tokens (multi-token prediction, "nextn"): the program of a block behind a model's trunk.

At position p a head reads the token there and the trunk's final state of the token before, and gives logits of the
token after it: x = eh_proj [enorm(embed(token)) | hnorm(state)], then the block, the norm and the matrix of the head,
each the trunk's where the file has none of its own. Its own state takes the trunk's place for a further token.

Source: DeepSeek-V3 (arXiv:2412.19437), section 2.2; names of tensors and metadata as in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import archs
from pyllm.archs.decoder import Decoder, Features, NextTokens, add_part
from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Value, Weight
from pyllm.program.ops.embed import Embed
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class HeadModel:
    """A head that guesses further tokens of a model."""

    features: Features
    """Records what the head reads of each token in the model's program."""
    record: Callable[[int | None], tuple[Program, Mapping[str, TensorInfo]]]
    """The head's program for contexts of so many positions, and its tensors. Its step is given features
    [tokens, n_embd] (`Executable.run_all`); `hidden` is what takes their place for a further token. Raises ModelError
    where the file does not fit."""
    token_ids: NDArray[np.int64] | None = None
    """The model's id of each token that the head knows; None: they are the same."""


def find(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> HeadModel | None:
    """The first head of a file; None: it has none. Raises ModelError for invalid hyper-parameters."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or not metadata.get(f"{name}.nextn_predict_layers"):
        return None
    hp = HParams(metadata, name, tensors, with_heads=True)
    kind = archs.family(name)(hp).next_tokens
    if f"blk.{hp.n_trunk}.nextn.eh_proj.weight" not in tensors or kind is None:
        return None

    def record(n_ctx: int | None) -> tuple[Program, Mapping[str, TensorInfo]]:
        hp = HParams(metadata, name, tensors, n_ctx, with_heads=True)
        return _write(archs.family(name)(hp), kind, hp)

    def features(g: Graph, streams: Sequence[Value], hidden: Value) -> Value:
        return hidden if kind.normed else streams[-1]

    return HeadModel(features, record)


def _write(decoder: Decoder, kind: NextTokens, hp: HParams) -> tuple[Program, Mapping[str, TensorInfo]]:
    g = Graph(hp, decoder.norm)
    layer = decoder.layers[hp.n_trunk]
    blk = f"blk.{layer.index}."
    table = g.optional(f"{blk}nextn.embed_tokens.weight") or Weight("token_embd.weight")
    token = g.rec(Embed(table=table, scale=decoder.embed_scale))
    state = g.rec.receive(hp.n_embd)
    sides = g.norm(token, f"{blk}nextn.enorm"), g.norm(state, f"{blk}nextn.hnorm")
    x = g.joined(f"{blk}nextn.eh_proj", hp.n_embd, *sides)
    g.rec.layer, g.layer_input = layer.index, x
    for part in layer.parts:
        x = add_part(g, blk, part, x)
    g.rec.layer = hp.n_layers
    norm = g.optional(f"{blk}nextn.shared_head_norm.weight", f"{blk}layer_output_norm.weight")
    normed = g.norm(x, norm.removesuffix(".weight") if norm else decoder.final_norm, kind=kind.norm)
    logits = _logits(g, decoder, blk, normed)
    return g.finish(normed if kind.normed else x, logits), g.tensors


def _logits(g: Graph, decoder: Decoder, blk: str, normed: Value) -> Value:
    """Those of the head's own matrix, or of the trunk's."""
    assert decoder.head is not None
    own = g.optional(f"{blk}nextn.shared_head_head.weight")
    if own is None:
        return decoder.head(g, normed)
    return replace(decoder.head, stem=own.removesuffix(".weight"), tied=False)(g, normed)
