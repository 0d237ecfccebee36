"""EAGLE-3: a head in a file of its own, made for a model after it was trained, that reads three of the model's layers.

A feature is fc [s1 | s2 | s3], of the model's states at the input of three layers. At position p the head reads the
token there and the feature of the token before. Queries, keys and values are of both, normed, side by side; the stream
begins with the feature, and its end takes a feature's place for a further token. The head may know fewer tokens than
the model, whose ids `d2t` gives; it may use the model's token table and output matrix.

Source: arXiv:2503.01840; names of tensors and metadata as in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.archs.decoder import RMS
from pyllm.archs.graph import Graph
from pyllm.archs.heads import HeadModel
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN
from pyllm.archs.rope import Rope
from pyllm.errors import ModelError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Value, Weight
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.linear import Linear
from pyllm.records import dataclass

ARCH = "eagle3"
_BLK = "blk.0."
_OF_MODEL = "eagle3."
"""Before the names of the head's tensors in the model's program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joined(Attention):
    """Attention whose queries, keys and values are products of two values side by side."""

    right: Value

    def _qkv(self, g: Graph, blk: str, x: Value) -> Sequence[Value]:
        heads = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}
        return [g.joined(f"{blk}attn_{c}", n * self.head_dim, x, self.right) for c, n in heads.items()]


def head(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    model: Mapping[str, Any],
    model_tensors: Mapping[str, TensorInfo],
) -> HeadModel:
    """The head of a file, for the model with this metadata and these tensors. Raises ModelError where it was made for
    another model, or needs what is not known."""
    hp, of_model = HParams(metadata, ARCH, tensors), HParams(model, str(model.get("general.architecture")))
    layers = [int(il) for il in np.atleast_1d(np.asarray(metadata.get(f"{ARCH}.target_layers", ())))]
    if not layers or not all(0 <= il < of_model.n_layers for il in layers):
        raise ModelError(f"the head reads the inputs of layers {layers}, of which the model has {of_model.n_layers}")
    width = hp.integer("target_hidden_size", hp.n_embd)
    if width != of_model.n_embd:
        raise ModelError(f"the head was made for a model of {width} columns; this one has {of_model.n_embd}")
    if hp.flag("norm_before_fc", False):
        raise ModelError("heads that norm states together (norm_before_fc) are not supported; spec='ngram' works")
    output = "output.weight" if "output.weight" in model_tensors else "token_embd.weight"
    shared = {"token_embd.weight": "token_embd.weight", "output.weight": output}
    whole = {**{name: model_tensors[of] for name, of in shared.items() if of in model_tensors}, **tensors}

    def features(g: Graph, streams: Sequence[Value], hidden: Value) -> Value:
        for name in ("fc.weight", "fc.bias"):
            if name in tensors:
                g.tensors[_OF_MODEL + name] = replace(tensors[name], name=_OF_MODEL + name)
        return g.joined(f"{_OF_MODEL}fc", hp.n_embd, *(streams[il] for il in layers))

    def record(n_ctx: int | None) -> tuple[Program, Mapping[str, TensorInfo]]:
        return _write(HParams(metadata, ARCH, whole, n_ctx))

    return HeadModel(features, record, _token_ids(tensors, model_tensors["token_embd.weight"].shape[0]))


def _write(hp: HParams) -> tuple[Program, Mapping[str, TensorInfo]]:
    g = Graph(hp, RMS.read(hp))
    token = g.norm(g.rec(Embed(table=Weight("token_embd.weight"))), f"{_BLK}attn_norm")
    given = g.rec.receive(hp.n_embd)
    feature = g.norm(given, f"{_BLK}attn_norm_2")
    g.rec.layer = 0
    attention = _Joined.read(hp, 0, rope=Rope.read(hp, interleaved=True), right=feature)
    x = g.add(attention(g, _BLK, token), feature if hp.flag("norm_before_residual", False) else given)
    x = g.add(x, FFN.read(hp, 0)(g, _BLK, g.norm(x, f"{_BLK}ffn_norm")))
    g.rec.layer = hp.n_layers
    logits = g.rec(Linear(x=g.norm(x, "output_norm"), weight=Weight("output.weight")))
    return g.finish(x, logits), g.tensors


def _token_ids(tensors: Mapping[str, TensorInfo], n_vocab: int) -> NDArray[np.int64] | None:
    """The model's id of each of the head's tokens; None: they are the same."""
    tensor = tensors.get("d2t")
    if tensor is None:
        return None
    if tensor.format not in ("I64", "I32"):
        raise ModelError(f"tensor d2t is {tensor.format}, not I64")
    ids = np.frombuffer(tensor.data.tobytes(), "<i8" if tensor.format == "I64" else "<i4").astype(np.int64)
    if not len(ids) or ids.min() < 0 or ids.max() >= n_vocab:
        raise ModelError(f"tensor d2t names tokens beyond the model's {n_vocab}")
    return ids
