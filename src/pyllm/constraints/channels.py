"""Answers that are messages with headers, in Lark's notation."""

from __future__ import annotations

from collections.abc import Sequence

from pyllm.chat.dialects.spec import Channels
from pyllm.constraints.rules import Rules, several


def answer(channels: Channels, rules: Rules, calls: Sequence[tuple[str, str]], most: int, *, required: bool) -> str:
    """An answer that calls tools, given with the rules of their arguments, at most `most` times.

    If `required` it is calls, after reasoning maybe. Else calls may stand among texts and reasoning.
    """
    between = rules.text(channels.between)
    end = rules.text(channels.header_end)
    made = [
        f"{rules.text(''.join(name if part == 'name' else part for part in head))} {end} {arguments}"
        for name, arguments in calls
        for head in channels.calls
    ]
    call = rules.rule("call", " | ".join(made))
    thoughts = [f"{rules.text(head)} {end} {_up_to(channels, rules)}" for head in channels.thoughts]
    if required:
        thought = f"({' | '.join(thoughts)})? " if thoughts else ""
        return thought + several(call, between, most)
    texts = [f"{rules.text(head)} {end} {_up_to(channels, rules)}" for head in channels.texts]
    said = rules.rule("said", " | ".join([*thoughts, *texts, f"{call} {between}"]))
    heads = [
        f"{rules.text(head)} {end} {rules.rest(channels.between)}" for head in (*channels.thoughts, *channels.texts)
    ]
    return f"{said}* ({' | '.join([*heads, call])})"


def _up_to(channels: Channels, rules: Rules) -> str:
    """The text of a message before another one."""
    return rules.raw({}, channels.between, "a message")
