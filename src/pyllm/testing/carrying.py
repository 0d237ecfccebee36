"""Pages and recurrent states carried from one executable to another: what follows them is the same, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from pyllm.backends.base import Executable
from pyllm.errors import BackendError
from pyllm.testing.running import Step, random_tokens, run

_FROM, _TO = [3, 0, 5], [1, 6, 2]
_BESIDE = [4, 7]


def check(compile_one: Callable[[], Executable], n_vocab: int) -> None:
    """Raise AssertionError where pages and states read from one executable do not serve in another, or change those
    beside them.

    They have 8 pages of 16 positions or more. Executables that give no pages, or no states, pass, if they say so.
    """
    with ExitStack() as closing:
        one = compile_one()
        closing.callback(one.close)
        other = compile_one()
        closing.callback(other.close)
        _check(one, other, n_vocab)


def _check(one: Executable, other: Executable, n_vocab: int) -> None:
    if one.program.slots and not one.slot_bytes:
        _refuses(lambda: one.read_slot(0), "states are given without slot_bytes")
        return
    if not one.page_bytes:
        _refuses(lambda: one.read_page(0), "pages are given without page_bytes")
        return
    assert one.page_bytes == other.page_bytes, "pages have other sizes"
    assert one.page_format, "pages have a format"
    assert one.page_format == other.page_format, "pages have other formats"
    tokens, beside = random_tokens(37, n_vocab), random_tokens(20, n_vocab, 1)
    first, last = Step(tokens[:33], 0, _FROM, "none", also_after=(32,)), tokens[32:]
    run(one, [first])
    wanted = run(one, [Step(last, 32, _FROM)])
    run(other, [Step(beside[:19], 0, _BESIDE, "none")])
    kept = [one.read_page(page) for page in _FROM[:2]]
    for page, data in zip(_TO, kept, strict=False):
        assert (data.dtype, data.shape) == (np.uint8, (one.page_bytes,)), "a page is bytes"
        other.write_page(page, data)
        np.testing.assert_array_equal(other.read_page(page), data, "a page that was written")
    if one.slot_bytes:
        _carry_state(one, other, Step(last, 32, _FROM).state_in(), Step(last, 32, _TO).state_in())
    np.testing.assert_array_equal(run(other, [Step(last, 32, _TO)]), wanted, "what follows carried pages")
    got = run(other, [Step(beside[19:], 19, _BESIDE)])
    run(one, [Step(beside[:19], 0, _BESIDE, "none")])
    np.testing.assert_array_equal(got, run(one, [Step(beside[19:], 19, _BESIDE)]), "what lies beside carried pages")
    _refuses(lambda: other.write_page(0, np.zeros(one.page_bytes + 1, np.uint8)), "a page of another size is taken")


def _carry_state(one: Executable, other: Executable, start: int, to: int) -> None:
    assert one.slot_bytes == other.slot_bytes, "slots have other sizes"
    data = one.read_slot(start)
    assert (data.dtype, data.shape) == (np.uint8, (one.slot_bytes,)), "a slot is bytes"
    other.write_slot(to, data)
    np.testing.assert_array_equal(other.read_slot(to), data, "a slot that was written")
    wrong = np.zeros(one.slot_bytes + 1, np.uint8)
    _refuses(lambda: other.write_slot(0, wrong), "a slot of another size is taken")


def _refuses(call: Callable[[], object], otherwise: str) -> None:
    try:
        call()
    except BackendError:
        return
    raise AssertionError(otherwise)
