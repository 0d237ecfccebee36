"""Paused steps: what they give, with steps of few tokens beside them, and what drops them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyllm.backends.base import Batch, Executable, Want
from pyllm.errors import BackendError
from pyllm.testing.running import Step, batch_of, random_tokens, run

_WANTS: tuple[Want, ...] = ("hidden", "logits")
_PAGES = [3, 0, 5]
_PAGE_BESIDE = 7


def check(exe: Executable, n_vocab: int) -> int:
    """Raise AssertionError where a step depends on having been paused, or on what ran meanwhile; returns how often it
    was paused.

    The executable has 8 pages of 16 positions or more. One whose `side` is None passes.
    """
    if (side := exe.side) is None:
        return 0
    whole, few = exe.options, side.options
    assert few == replace(whole, max_tokens=few.max_tokens, max_rows=few.max_rows), "the side has other options"
    least = min(whole.max_seqs, whole.max_tokens, whole.max_rows)
    assert min(few.max_tokens, few.max_rows) >= least, "the side takes fewer sequences"
    tokens = random_tokens(40, n_vocab)
    prompt, after = Step(tokens[:33], 0, _PAGES), Step(tokens[33:], 33, _PAGES)
    beside = [Step([token], n, [_PAGE_BESIDE], generated=True) for n, token in enumerate(tokens[:16])]
    wanted = [run(exe, [prompt], "hidden"), run(exe, [prompt]), run(exe, [after])]
    wanted_beside = [run(side, [step]) for step in beside]
    np.testing.assert_array_equal(run(exe, beside[-1:]), wanted_beside[-1], "a step of few tokens")
    batch = batch_of(exe, [prompt])
    _dropped(exe, batch, beside[-1])
    found, n = exe.begin(batch, _WANTS, 0.0), 0
    while found is None:
        np.testing.assert_array_equal(run(side, [beside[n % 16]]), wanted_beside[n % 16], "a step beside a paused one")
        found, n = exe.proceed(0.0), n + 1
    for got, rows in zip(found, wanted[:2], strict=True):
        np.testing.assert_array_equal(got, rows, "a step that was paused")
    np.testing.assert_array_equal(run(exe, [after]), wanted[2], "the step after a paused one")
    return n


def _dropped(exe: Executable, batch: Batch, other: Step) -> None:
    """Raise AssertionError where a paused step goes on after another one."""
    if exe.begin(batch, _WANTS, 0.0) is None:
        run(exe, [other])
    try:
        exe.proceed(0.0)
    except BackendError:
        return
    raise AssertionError("a step that another one has dropped, or that is done, goes on")
