"""Positions that a token sees, as `Sight` of `pyllm.program.ops.attention` says."""

from __future__ import annotations

from numba.extending import register_jitable

from pyllm.backends.cpu.kernels.attention_scratch import CHUNKED, SOURCE, WHOLE


@register_jitable
def first_seen(position, window, reach):
    """The first position that a token sees."""
    if window == 0:
        return 0
    if reach == CHUNKED:
        return position // window * window
    if reach == WHOLE:
        return max(0, position - window // 2)
    return max(0, position - window + 1)


@register_jitable
def last_seen(position, end, window, reach):
    """The last position that a token sees; `end` is the one after the step's last token, or the source's."""
    if reach == SOURCE:
        return end - 1
    if reach != WHOLE:
        return position
    return min(end - 1, position + window // 2) if window > 0 else end - 1
