"""Chats that are longer than the context: whole turns are left out, the oldest first, and no more than needed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.chat.messages import turns, without
from pyllm.llm.history import room_for_answer, shortened

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "d": "developer"}


def history(roles: str, length: int = 1) -> list[dict[str, Any]]:
    return [{"role": ROLES[r], "content": f"{r}{i}" * length} for i, r in enumerate(roles)]


def roles_of(messages: Any) -> str:
    return "".join(message["role"][0] for message in messages)


def encode(messages: Any) -> list[int]:
    """A token for each message."""
    return [int(message["content"][1:]) for message in messages]


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("", []),
        ("s", []),
        ("u", ["u"]),
        ("suauau", ["ua", "ua", "u"]),
        ("suatatau", ["uatata", "u"]),
        ("saua", ["a", "ua"]),
        ("ssa", ["a"]),
        ("uasuau", ["uas", "ua", "u"]),
        ("uuau", ["u", "ua", "u"]),
        ("sdua", ["ua"]),
    ],
)
def test_a_turn_is_a_message_of_the_user_with_all_that_answers_it(roles: str, expected: list[str]) -> None:
    assert [roles[turn.start : turn.stop] for turn in turns(history(roles))] == expected


@pytest.mark.parametrize(
    ("roles", "most", "kept", "n_dropped"),
    [
        ("suauau", 6, "suauau", 0),
        ("suauau", 5, "suau", 2),
        ("suauau", 4, "suau", 2),
        ("suauau", 3, "su", 4),
        ("suauau", 1, "su", 4),  # the last turn stays, even where it does not fit
        ("suatatuatu", 5, "suatu", 5),  # tool calls go with their results
        ("suatatuat", 4, "suat", 5),
        ("uasuau", 4, "suau", 2),  # the system's messages stay wherever they are
        ("saua", 3, "sua", 1),
        ("sua", 1, "sua", 0),
        ("sa", 1, "sa", 0),
    ],
)
def test_the_oldest_turns_go_and_the_systems_messages_stay(roles: str, most: int, kept: str, n_dropped: int) -> None:
    messages = history(roles)
    tokens, n = shortened(messages, most, encode)
    assert roles_of(messages[i] for i in tokens) == kept
    assert n == n_dropped == len(messages) - len(tokens)


@given(st.text("suat", max_size=60), st.integers(0, 60))
def test_what_is_left_fits_or_cannot_be_shorter(roles: str, most: int) -> None:
    messages = history(roles)
    tokens, n_dropped = shortened(messages, most, encode)
    found = turns(messages)
    if len(messages) <= most:
        assert tokens == list(range(len(messages)))
    elif found:
        last = [*found[-1]]
        assert len(tokens) <= most or len(found) == 1 or tokens == encode(without(messages, found[:-1]))
        assert tokens[-len(last) :] == last
    assert {i for i, r in enumerate(roles) if r == "s"} <= set(tokens)
    assert n_dropped == len(messages) - len(tokens)


def test_long_chats_are_encoded_a_few_times_only() -> None:
    calls = []

    def counted(messages: Any) -> list[int]:
        calls.append(len(messages))
        return encode(messages)

    tokens, _ = shortened(history("s" + "ua" * 5000 + "u"), 100, counted)
    assert 70 <= len(tokens) <= 100
    assert len(calls) <= 16


def test_the_beginning_stays_the_same_for_several_messages() -> None:
    """So that it need not be computed anew with each: of 20 messages more, few change what stands first."""
    firsts = [shortened(history("s" + "ua" * n + "u"), 70, encode)[0][1] for n in range(100, 120)]
    assert firsts == sorted(firsts)
    assert len(set(firsts)) <= 4


@pytest.mark.parametrize(
    ("n_ctx", "max_tokens", "room"), [(4096, None, 1024), (4096, 100, 100), (4096, 4000, 2048), (128, 0, 0)]
)
def test_room_for_an_answer(n_ctx: int, max_tokens: int | None, room: int) -> None:
    assert room_for_answer(n_ctx, max_tokens) == room
