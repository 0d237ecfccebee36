"""Keeping the candidates nearest to a logit that together have a share of the probability, or are so many."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import load_i64, store_i64
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.cut import BOTH_SIDES, FROM_TOP, find_cut, place_of_cut
from pyllm.sampling.compiled.keeping import keep_within
from pyllm.sampling.compiled.state import float_order, logit, ordered_float, top_of
from pyllm.sampling.compiled.sums import total_of, weight_of


@register_jitable
def _keep_first(s, goal):
    """Keep the first candidates whose weights reach the goal."""
    x, n, top, so_far, kept = load_i64(s + slots.X), load_i64(s + slots.N), np.float32(top_of(s)), 0.0, 0
    while kept < n:
        so_far += np.float64(weight_of(logit(x, kept), top))
        kept += 1
        if so_far >= goal:
            break
    store_i64(s + slots.N, kept)


@register_jitable
def _keep_nearest(s, center, side, counted, amount, relative, strictly):
    high, before, goal = find_cut(s, center, side, counted, amount, relative, strictly)
    last = place_of_cut(s, center, side, counted, high, before, goal, strictly)
    after = ordered_float(float_order(high) - 1)
    keep_within(s, center, side, high, after, last if last >= 0 else load_i64(s + slots.N) - 1)


@register_jitable
def keep_nearest(s, center, share):
    """Keep the candidates whose logits are nearest to the center, as few as have more than `share` of the probability
    together; of equally near ones the first. At least one, and never one that is -inf."""
    _keep_nearest(s, np.float32(center), BOTH_SIDES, False, share, True, True)
    store_i64(s + slots.TOP_KNOWN, 0)


@register_jitable
def keep_likeliest(s, share):
    """Keep the largest logits, as few as have `share` of the probability together; of equal ones the first. At least
    one, and never one that is -inf."""
    if load_i64(s + slots.ORDER) == slots.SORTED:
        _keep_first(s, share * total_of(s))
    else:
        _keep_nearest(s, np.float32(0), FROM_TOP, False, share, True, False)


@register_jitable
def keep_most(s, k):
    """Keep the k largest logits, of equal ones the first."""
    _keep_nearest(s, np.float32(0), FROM_TOP, True, np.float64(k), False, False)
