"""MiMo V2: windows and sinks by layer, with other numbers of heads; experts except on the first layers."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Mixer, NextTokens, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN, Experts
from pyllm.archs.rope import Rope


def mimo2(hp: HParams) -> Decoder:
    windows, out_scale = hp.windows(1), hp.number("attention.value_scale", 1.0)
    ropes = Rope.read(hp), Rope.read(hp, base=hp.number("rope.freq_base_swa", 10000.0), windowed=True)

    def attention(il: int) -> Attention:
        return Attention.read(
            hp,
            il,
            window=windows[il],
            ropes=ropes,
            sinks=hp.has(f"blk.{il}.attn_sinks.weight"),
            out_scale=out_scale,
            scaled=False,
            biases=False,
        )

    def ffn(il: int) -> Mixer:
        routed = hp.has(f"blk.{il}.ffn_gate_inp.weight")
        return Experts.read(hp, il, gating="sigmoid") if routed else FFN.read(hp, il)

    return transformer(hp, attention, ffn, next_tokens=NextTokens(normed=False))


ARCHITECTURES = {"mimo2": mimo2}
