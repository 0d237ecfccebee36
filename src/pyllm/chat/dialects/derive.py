"""A dialect out of what a template renders: literals are what stands between the needles of probes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyllm.chat.dialects.probing import REASON, TEXT, Probe, Said
from pyllm.chat.dialects.spec import (
    Calls,
    DialectSpec,
    HeadBody,
    JsonArguments,
    KeyForm,
    ObjectBody,
    Reasoning,
    TaggedArguments,
    atoms,
    marker,
)
from pyllm.records import dataclass

NAMES = ("qztoolone", "qztooltwo")
_KEYS = ("qzkeya", "qzkeyb", "qzkeyc", "qzkeyd")
_VALUES = ("Qzvala", "Qzvalb", "Qzvalc", "Qzvald")
_NUMBER = 735190
_LINES = "Qzline\nQzmore"
IDS = ("qzid00000", "qzid00001")
CALLS: list[tuple[str, Mapping[str, Any]]] = [
    (NAMES[0], {_KEYS[0]: _VALUES[0], _KEYS[1]: _VALUES[1]}),
    (NAMES[1], {_KEYS[2]: _VALUES[2], _KEYS[3]: _VALUES[3]}),
]
_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
)
"""Tags of reasoning, for templates that only mention them."""
_BETWEEN_TAGS = re.compile(r"\s*\n\s*|(?<=>)\s*(?=<)")


def tools() -> list[dict[str, Any]]:
    """The tools that probes call."""
    properties = {key: {"type": "string", "description": "."} for key in _KEYS}
    parameters = {"type": "object", "properties": properties, "required": []}
    return [
        {"type": "function", "function": {"name": name, "description": ".", "parameters": parameters}} for name in NAMES
    ]


# --- the answer around calls


@dataclass(frozen=True)
class Frame:
    """How an answer begins and ends, and its reasoning."""

    reasoning: Reasoning | None
    silent: tuple[str, ...]
    after: str
    trim: bool

    def stripped(self, text: str) -> str:
        """What stands before a call, without marks of reasoning and text that say nothing."""
        marks = [*self.silent] if self.reasoning is None else [self.reasoning.start, self.reasoning.end, *self.silent]
        found = True
        while found:
            text = text.lstrip()
            hit = next((m for m in marks if m and text.startswith(m)), None)
            text, found = text[len(hit or "") :], hit is not None
        return text


def frame(probe: Probe, vocabulary: Callable[[str], bool], known: Reasoning | None = None) -> Frame:
    """The frame of a template's answers. `vocabulary` says whether a text is a token, `known` is its reasoning.

    What the prompt writes of the reasoning counts as the answer's from then on.
    """
    source = "\n".join(probe.template.sources.values())
    plain = probe.body(Said(TEXT)) or TEXT
    before, _, after = plain.partition(TEXT)
    spaces = before[:1].isspace() or after[:1].isspace()
    reasoning, silent = known, []
    thought = probe.find_reasoning(CALLS[:1])
    if reasoning is None and thought is not None:
        opening, _, rest = thought.partition(REASON)
        begins = opening.strip() or _written_before(probe)
        between = rest.partition(TEXT)[0] if TEXT in rest else _first_tag(rest)
        before = _without(before, opening, between)
        end = between.strip()
        if before.strip() and end.endswith(before.strip()):
            end = end.removesuffix(before.strip()).strip()
        reasoning = Reasoning(begins, end) if begins and end else None
    elif reasoning is None:
        pair = next((p for p in _TAGS if p[1] in source or (vocabulary(p[0]) and vocabulary(p[1]))), None)
        reasoning = None if pair is None else Reasoning(*pair)
    if reasoning is not None:
        before = before.strip().removeprefix(reasoning.start).strip().removeprefix(reasoning.end)
        # A history's empty reasoning is no part of how every answer begins.
        for mark in (reasoning.end, reasoning.start):
            begun = probe.prompt[: probe.start].rstrip()
            probe.start = len(begun) - len(mark) if begun.endswith(mark) else probe.start
    silent += [before.strip()]
    called = probe.body(Said(calls=CALLS[:1])) or ""
    ending = _common_suffix(atoms(after), atoms(called)) if NAMES[0] in called else atoms(after)
    silent += ["".join(atoms(after)[: len(atoms(after)) - len(ending)]).strip()]
    return Frame(reasoning, tuple(s for s in silent if s), "".join(ending), spaces or before[:1].isspace())


def _written_before(probe: Probe) -> str:
    """What reasoning begins with where the prompt has written it already, or prompt and history both have."""
    begun = probe.prompt[: probe.start].rstrip()
    tag = atoms(begun)[-1] if begun else ""
    if probe.prefix.strip() or not tag.startswith(("<", "[")) or len(tag) < 3:
        return probe.prefix.strip()
    probe.start = len(begun) - len(tag)
    return tag


def _first_tag(text: str) -> str:
    return next((atom for atom in atoms(text) if atom[0] in "<[" and len(atom) > 2), "")


def _without(before: str, opening: str, between: str) -> str:
    """What stands before a text, without empty reasoning."""
    for text in (opening, between):
        tag = _first_tag(text)
        if tag and before.lstrip().startswith(tag):
            before = before.lstrip().removeprefix(tag)
    return before


# --- calls


def derive_calls(probe: Probe, around: Frame) -> Calls | None:
    """The form of calls; None where the template writes none, or in a form that has no description here."""
    for as_text in (False, True):
        probe.as_text = as_text
        one, two = (probe.body(Said(calls=CALLS[:n], ids=IDS[:n])) for n in (1, 2))
        body = two if two is not None and NAMES[1] in two else one
        if body is None or NAMES[0] not in body:
            continue
        items = [_item(body, i) for i in range(2 if body is two else 1)]
        if items[0] is not None and items[-1] is not None:
            return _assembled(probe, around, body, [i for i in items if i is not None])
    probe.as_text = False
    return None


@dataclass(frozen=True)
class _Item:
    """A call within a body: its place, and its form if JSON (None for arguments in tags)."""

    start: int
    end: int
    body: ObjectBody | HeadBody | None


def _item(body: str, i: int) -> _Item | None:
    name, arguments = CALLS[i]
    keys = list(arguments)
    key, last = body.find(keys[0]), body.find(str(arguments[keys[1]]))
    at, id_at = body.find(name), body.find(IDS[i])
    if min(key, last, at) < 0:
        return None
    if (span := _enclosing(body, key, lambda v: v == arguments)) is None:
        return _Item(at if id_at < 0 else min(at, id_at), last + len(str(arguments[keys[1]])), None)
    whole = _enclosing(body, min(at, span[0]), lambda v: isinstance(v, dict) and arguments in v.values())
    if whole is not None:
        found = json.loads(body[whole[0] : whole[1]])
        by_value = {json.dumps(v): k for k, v in found.items()}
        named = by_value.get(json.dumps(name))
        if named is None and name in found:
            return _Item(*whole, ObjectBody("", ""))
        if named is None:
            return None
        return _Item(*whole, ObjectBody(named, by_value[json.dumps(arguments)], by_value.get(json.dumps(IDS[i]))))
    if at > span[0]:
        return None
    start = at if id_at < 0 or id_at > span[0] else min(at, id_at)
    pieces = re.split(f"({name}|{IDS[i]})", body[start : span[0]])
    words = {name: "name", IDS[i]: "id"}
    parts = tuple(words.get(p, p.strip()) for p in pieces if p.strip())
    return _Item(start, span[1], HeadBody(parts, JsonArguments()))


def _enclosing(body: str, at: int, fits: Any) -> tuple[int, int] | None:
    """The innermost JSON object around a place that fits."""
    start = at + 1
    while (start := body.rfind("{", 0, start)) >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(body, start)
        except ValueError:
            continue
        if fits(value):
            return start, end
    return None


def _assembled(probe: Probe, around: Frame, body: str, items: Sequence[_Item]) -> Calls | None:
    first, last = items[0], items[-1]
    before, after = around.stripped(body[: first.start]), body[last.end :]
    after = after.removesuffix(around.after) if around.after else after
    between = body[first.end : last.start] if len(items) > 1 else None
    form: ObjectBody | HeadBody | None = first.body
    if form is None:
        tagged = _tagged(probe, body, first.start)
        if tagged is None:
            return None
        form, close = tagged
        after = after.lstrip().removeprefix(close)
        between = None if between is None else between.lstrip().removeprefix(close)
    section_start, start, end, separator, section_end = _split(before, between, after)
    return Calls(
        form,
        marker(start),
        marker(end),
        marker(section_start),
        marker(section_end),
        separator.strip(),
        bare=not marker(start) and not marker(section_start),
    )


def _split(before: str, between: str | None, after: str) -> tuple[str, str, str, str, str]:
    """Section start, call start, call end, separator, section end: by what comes between two calls."""
    if between is None:
        return "", before, after, "", ""
    pre, mid, post = atoms(before), atoms(between), atoms(after)
    start = _common_suffix(pre, mid)
    mid = mid[: len(mid) - len(start)]
    end = _common_prefix(post, mid)
    parts = pre[: len(pre) - len(start)], start, end, mid[len(end) :], post[len(end) :]
    return tuple("".join(p) for p in parts)  # type: ignore[return-value]


def _tagged(probe: Probe, body: str, start: int) -> tuple[HeadBody, str] | None:
    """Arguments in tags, and what ends the last value."""
    name, arguments = CALLS[0]
    (key, value), (key2, value2) = arguments.items()
    places = [body.find(needle, start) for needle in (key, value, key2, value2)]
    if sorted(places) != places or body.find(name, start) > places[0]:
        return None
    at_id = body.find(IDS[0], start)
    head = body[start : places[0]]
    between = body[places[1] + len(value) : places[2]]
    opening = _common_suffix(atoms(head), atoms(between))
    key_open = "".join(opening).strip()
    close = between[: len(between) - len("".join(opening))]
    to_value = body[places[0] + len(key) : places[1]]
    if not key_open or not close.strip() or not to_value.strip():
        return None
    pad = "\n" if to_value.endswith("\n") and close.startswith("\n") else ""
    head = head[: len(head) - len("".join(opening))]
    words = {name: "name", IDS[0]: "id"}
    pieces = re.split(f"({name}|{IDS[0]})" if at_id >= 0 else f"({name})", head)
    parts = tuple(words.get(p, p.strip()) for p in pieces if p.strip())
    forms = _forms(probe, "".join(opening), KeyForm(*_opened(to_value), close.strip()))
    return HeadBody(parts, TaggedArguments(key_open, forms, pad)), close.strip()


def _opened(to_value: str) -> tuple[str, tuple[str, ...]]:
    first, *rest = _BETWEEN_TAGS.split(to_value.strip())
    return first, tuple(rest)


def _forms(probe: Probe, opening: str, usual: KeyForm) -> tuple[KeyForm, ...]:
    """What stands around values of different types, where it is not the same around all."""
    found = {}
    for kind, value in (("string", _LINES), ("json", _NUMBER)):
        arguments = {_KEYS[0]: value, _KEYS[1]: _VALUES[1]}
        body = probe.body(Said(calls=[(NAMES[0], arguments)], ids=IDS[:1])) or ""
        _, _, rest = body.partition(_KEYS[0])
        to_value, there, rest = rest.partition(str(value))
        close = rest.partition(opening)[0]
        if not there or not to_value.strip() or not close.strip():
            return (usual,)
        found[kind] = to_value, close.strip()
    if found["string"] == found["json"]:
        return (usual,)
    same_close = _opened(found["string"][0])[0] == _opened(found["json"][0])[0]
    forms = []
    for kind, (to_value, close) in found.items():
        opened = (to_value.strip(), ()) if same_close else _opened(to_value)
        plain = kind == "json" and opened == (usual.close, usual.value_open) and close == usual.value_close
        forms.append(KeyForm(*opened, close, None if plain else kind))  # type: ignore[arg-type]
    return tuple(forms)


def _common_prefix(a: list[str], b: list[str]) -> list[str]:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return a[:n]


def _common_suffix(a: list[str], b: list[str]) -> list[str]:
    return _common_prefix(a[::-1], b[::-1])[::-1]


def derive(probe: Probe, around: Frame) -> DialectSpec | None:
    """The dialect of a template's calls; None where they cannot be derived."""
    calls = derive_calls(probe, around)
    return None if calls is None else DialectSpec("derived", calls=calls)
