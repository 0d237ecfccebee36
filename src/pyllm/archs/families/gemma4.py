"""Gemma 4: layers that share keys and values, per-layer embeddings, experts beside a plain feed-forward network."""

from __future__ import annotations

import math

from pyllm.archs.decoder import Decoder, Head, Part
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention, layer_of_keys
from pyllm.archs.mixers.combine import Normed, Sum
from pyllm.archs.mixers.embedding import PerLayerEmbedding, Times
from pyllm.archs.mixers.feed_forward import FFN, Experts
from pyllm.archs.rope import Rope


def gemma4(hp: HParams) -> Decoder:
    """The last layers read the keys and values of the last layer with its own, windowed or not as they are."""
    windows, n_own = hp.windows(6), hp.n_layers - hp.integer("attention.shared_kv_layers", 0)
    ropes = Rope.read(hp), Rope.read(hp, base=hp.window_rope_base, windowed=True, factors=False)
    n_row = hp.integer("embedding_length_per_layer_input", 0)

    def attention(il: int) -> Attention:
        return Attention.read(
            hp,
            il,
            window=windows[il],
            ropes=ropes,
            scale=1.0,
            qk_norm="head",
            keys_as_values=il < n_own and not hp.has(f"blk.{il}.attn_v.weight"),
            v_norm=True,
            kv_from=layer_of_keys(hp, windows, n_own, il),
        )

    def feed_forward(il: int) -> Part:
        plain = FFN.read(hp, il, act="gelu")
        if not hp.has(f"blk.{il}.ffn_gate_inp.weight"):
            return Part(plain, "ffn_norm", "post_ffw_norm")
        experts = Experts.read(hp, il, act="gelu", scaled=True, norm="pre_ffw_norm_2", router_norm="ffn_gate_inp.scale")
        both = Normed(plain, "ffn_norm", "post_ffw_norm_1"), Normed(experts, post="post_ffw_norm_2")
        return Part(Sum(both), post="post_ffw_norm")

    def layer(il: int) -> tuple[Part, ...]:
        parts = [Part(attention(il), "attn_norm", "post_attention_norm"), feed_forward(il)]
        if n_row:
            parts.append(Part(PerLayerEmbedding(n_row), post="post_norm"))
        if hp.has(f"blk.{il}.layer_output_scale.weight"):
            parts.append(Part(Times("layer_output_scale"), residual=False))
        return tuple(parts)

    head = Head(softcap=hp.number("final_logit_softcapping", 0.0))
    return Decoder.read(hp, layer, embed_scale=math.sqrt(hp.n_embd), head=head)


ARCHITECTURES = {"gemma4": gemma4}
