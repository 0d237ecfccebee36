"""Stop strings: cut exactly, nothing shown too early, however the text arrives."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.engine.stops import StopFilter
from pyllm.errors import RequestError

# A small alphabet makes overlaps and false starts common.
texts = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    at = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[a:b] for a, b in pairwise(at)]


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read letter by letter: the first letter that completes a stop string ends the text before that string."""
    for end in range(1, len(text) + 1):
        if found := [s for s in stops if text[:end].endswith(s)]:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(texts, stops, st.lists(st.integers(0, 100), max_size=10))
def test_cut_is_exact_and_independent_of_pieces(text: str, stops: list[str], cuts: list[int]) -> None:
    filter = StopFilter(stops)
    shown = "".join(filter.push(piece) for piece in pieces_of(text, cuts)) + filter.flush()
    assert (shown, filter.stopped) == expected(text, stops)


@given(texts, stops, st.lists(st.integers(0, 100), max_size=10), texts)
def test_nothing_is_shown_that_a_stop_would_take_back(text: str, stops: list[str], cuts: list[int], rest: str) -> None:
    """What was shown after any piece is a beginning of the final text, whatever comes next."""
    filter = StopFilter(stops)
    shown = "".join(filter.push(piece) for piece in pieces_of(text, cuts))
    assert expected(text + rest, stops)[0].startswith(shown)


@given(texts, stops)
def test_no_more_is_held_back_than_needed(text: str, stops: list[str]) -> None:
    """Text that is held back is the beginning of some stop string."""
    filter = StopFilter(stops)
    shown = filter.push(text)
    if filter.stopped is None:
        held = text[len(shown) :]
        assert held == "" or any(s.startswith(held) and s != held for s in stops)


def test_without_stops_everything_passes_at_once() -> None:
    filter = StopFilter([])
    assert filter.push("abc") == "abc"
    assert filter.flush() == ""


def test_after_a_stop_everything_is_swallowed() -> None:
    filter = StopFilter(["END"])
    assert [filter.push(p) for p in ("one E", "ND two", "three")] == ["one ", "", ""]
    assert filter.stopped == "END"


def test_empty_stop_is_refused() -> None:
    with pytest.raises(RequestError):
        StopFilter(["ok", ""])
