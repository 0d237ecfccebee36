"""Heads that guess further tokens (multi-token prediction, "nextn"): the program of a block behind a model's trunk.

At position p a head reads the token there and the trunk's final state of the token before, and gives logits of the
token after it: x = eh_proj [enorm(embed(token)) | hnorm(state)], then the block, the norm and the matrix of the head,
each the trunk's where the file has none of its own. Its own state takes the trunk's place for a further token.

Source: DeepSeek-V3 (arXiv:2412.19437), section 2.2; names of tensors and metadata as in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyllm import archs
from pyllm.archs.decoder import Decoder, NextTokens, add_part
from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.errors import ModelError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Value, Weight
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.linear import Linear


def has_head(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a file has a head whose program `head` gives. Raises ModelError for invalid hyper-parameters."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or not metadata.get(f"{name}.nextn_predict_layers"):
        return False
    hp = HParams(metadata, name, tensors, with_heads=True)
    return f"blk.{hp.n_trunk}.nextn.eh_proj.weight" in tensors and archs.family(name)(hp).next_tokens is not None


def head(
    metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], n_ctx: int | None = None
) -> tuple[Program, Mapping[str, TensorInfo]]:
    """The first head's program for contexts of `n_ctx` positions, and its tensors.

    Its step is given states [tokens, n_embd] (`Executable.run_all`). `hidden` is what takes their place for a further
    token. Raises ModelError where the file has no head, or one that does not fit.
    """
    name = str(metadata.get("general.architecture"))
    if not has_head(metadata, tensors):
        raise ModelError(f"the file has no head that guesses further tokens ({name}.nextn_predict_layers)")
    hp = HParams(metadata, name, tensors, n_ctx, with_heads=True)
    decoder = archs.family(name)(hp)
    assert decoder.next_tokens is not None
    return _write(decoder, decoder.next_tokens, hp)


def _write(decoder: Decoder, kind: NextTokens, hp: HParams) -> tuple[Program, Mapping[str, TensorInfo]]:
    g = Graph(hp, decoder.norm)
    layer = decoder.layers[hp.n_trunk]
    blk = f"blk.{layer.index}."
    table = g.optional(f"{blk}nextn.embed_tokens.weight") or Weight("token_embd.weight")
    token = g.rec(Embed(table=table, scale=decoder.embed_scale))
    state = g.rec.receive(hp.n_embd)
    x = _joined(g, f"{blk}nextn.", token, state)
    g.rec.layer, g.layer_input = layer.index, x
    for part in layer.parts:
        x = add_part(g, blk, part, x)
    g.rec.layer = hp.n_layers
    norm = g.optional(f"{blk}nextn.shared_head_norm.weight", f"{blk}layer_output_norm.weight")
    normed = g.norm(x, norm.removesuffix(".weight") if norm else decoder.final_norm, kind=kind.norm)
    logits = _logits(g, decoder, blk, normed)
    return g.finish(normed if kind.normed else x, logits), g.tensors


def _joined(g: Graph, nextn: str, token: Value, state: Value) -> Value:
    """eh_proj of both, side by side: the sum of the products of its left and of its right half."""
    n, stem = g.hp.n_embd, f"{nextn}eh_proj"
    g.rec.require(f"{stem}.weight", (n, 2 * n))
    sides = g.norm(token, f"{nextn}enorm"), g.norm(state, f"{nextn}hnorm")
    halves = [
        g.rec(Linear(x=side, weight=g.columns(f"{stem}.weight", i * n, (i + 1) * n))) for i, side in enumerate(sides)
    ]
    return g.times(g.add(*halves), g.scale(stem, True) or 1.0)


def _logits(g: Graph, decoder: Decoder, blk: str, normed: Value) -> Value:
    """Those of the head's own matrix, or of the trunk's."""
    assert decoder.head is not None
    own = g.optional(f"{blk}nextn.shared_head_head.weight")
    if own is None:
        return decoder.head(g, normed)
    return replace(decoder.head, stem=own.removesuffix(".weight"), tied=False)(g, normed)
