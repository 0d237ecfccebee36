"""Gemma 3n: four streams (AltUp), per-layer embeddings, layers that share keys and values, sparse activations."""

from __future__ import annotations

import math

from pyllm.archs.decoder import Decoder, Head, Part
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.altup import AltUp, Merge, Spread, streams_of
from pyllm.archs.mixers.attention import Attention, layer_of_keys
from pyllm.archs.mixers.combine import Normed
from pyllm.archs.mixers.embedding import PerLayerEmbedding
from pyllm.archs.mixers.feed_forward import FFN
from pyllm.archs.rope import Rope
from pyllm.errors import ModelError

_OWN_KEYS = 20
"""Layers with keys and values of their own, where the file does not say how many share."""
_SPARSE_LAYERS = 10
_DEVIATIONS = 1.6448533535003662
"""A gate of a sparse layer is what exceeds the mean by so many standard deviations: its largest 5 %."""


def gemma3n(hp: HParams) -> Decoder:
    windows = hp.windows(5)
    shared = hp.integer("attention.shared_kv_layers", max(0, hp.n_layers - _OWN_KEYS))
    ropes = Rope.read(hp), Rope.read(hp, base=hp.number("rope.freq_base_swa", 10000.0), scaled=False, windowed=True)
    if not hp.has("altup_proj.weight"):
        raise ModelError("tensor altup_proj.weight is missing: the file is incomplete, or of another architecture")
    n = streams_of(tuple(hp.tensors["altup_proj.weight"].shape), hp.n_embd)
    per_layer = PerLayerEmbedding(hp.integer("embedding_length_per_layer_input", 256))

    def layer(il: int) -> tuple[Part, ...]:
        attention = Attention.read(
            hp,
            il,
            window=windows[il],
            ropes=ropes,
            scale=1.0,
            qk_norm="head",
            v_norm=True,
            kv_from=layer_of_keys(hp, windows, hp.n_layers - shared, il),
        )
        ffn = FFN.read(hp, il, act="gelu", deviations=_DEVIATIONS if il < _SPARSE_LAYERS else None)
        altup = AltUp(n, attention, Normed(ffn, "ffn_norm", "post_ffw_norm"), per_layer)
        begin = (Part(Spread(n), residual=False),) if il == 0 else ()
        end = (Part(Merge(n), residual=False),) if il == hp.n_layers - 1 else ()
        return (*begin, Part(altup, residual=False), *end)

    head = Head(softcap=hp.number("final_logit_softcapping", 30.0))
    return Decoder.read(hp, layer, embed_scale=math.sqrt(hp.n_embd), head=head)


ARCHITECTURES = {"gemma3n": gemma3n}
