"""Nanbeige: the stack of layers runs several times, each time with its own keys and values."""

from __future__ import annotations

from dataclasses import replace

from pyllm.archs.decoder import Decoder, Part, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import FinalNorm
from pyllm.archs.mixers.feed_forward import FFN

_MOST_LOOPS = 64


def nanbeige(hp: HParams) -> Decoder:
    """Between two runs the stream passes the final norm, unless the file says otherwise."""
    once = transformer(
        hp, lambda il: Attention.read(hp, il, interleaved=True), lambda il: FFN.read(hp, il, scaled=True)
    )
    *layers, last = once.layers
    between = last
    if not hp.flag("skip_loop_final_norm", False):
        between = replace(last, parts=(*last.parts, Part(FinalNorm(), residual=False)))
    n_loops = hp.integer("num_loops", 1, most=_MOST_LOOPS)
    return replace(once, layers=(*(*layers, between) * (n_loops - 1), *layers, last))


ARCHITECTURES = {"nanbeige": nanbeige}
