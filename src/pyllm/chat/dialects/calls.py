"""The part of the parser that reads calls: one method for each form that a call can have."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable

from pyllm.chat.dialects.literals import OpenString, literal_calls
from pyllm.chat.dialects.nested import nested_calls
from pyllm.chat.dialects.reader import CONTROL, CutOff, Malformed, Markers, Reader, Steps, Text, clean
from pyllm.chat.dialects.spec import (
    FIELDS,
    Calls,
    DialectSpec,
    HeadBody,
    KeyForm,
    LiteralBody,
    NestedBody,
    ObjectBody,
    Schemas,
    TaggedArguments,
)
from pyllm.chat.dialects.typed import kinds_of, typed
from pyllm.chat.events import Event, ToolCall, ToolCallArguments, ToolCallBegin, ToolCallEnd

MAX_NAME = 256
"""Characters of a name or an id; what is longer is none."""
_ENDLESS = "a name of the call has no end"
_ALNUM = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ARGUMENTS = ("arguments", "parameters")


def new_id(form: str) -> str:
    """An id for a call: `call_` and 24 hex digits, or nine letters and digits as Mistral's templates insist on."""
    return "".join(secrets.choice(_ALNUM) for _ in range(9)) if form == "nine" else f"call_{secrets.token_hex(12)}"


class CallReader:
    """Reads calls out of `reader` and gives events to `emit`. `schemas` are the tools' by name."""

    def __init__(self, spec: DialectSpec, schemas: Schemas, reader: Reader, emit: Callable[[Event], None]) -> None:
        self._ids = spec.ids
        self._schemas = schemas
        self._reader = reader
        self.emit = emit
        self.index = 0
        self.begun = False
        self.known_only = False
        self._id = self._name = ""
        self._pieces: list[str] = []

    def call(self, calls: Calls, skipped: int = 0) -> Steps:
        """What comes after a call's start, its end included. `skipped` pieces of the start were left out."""
        self._reset()
        needed = calls.end[: max(1, len(calls.end) - skipped)]
        body = calls.body
        if isinstance(body, LiteralBody | NestedBody):
            yield from self._whole(body, needed)
            return
        if isinstance(body, ObjectBody):
            yield from self._object(body)
        else:
            yield from self._head(body, needed)
        tagged = isinstance(body, HeadBody) and isinstance(body.arguments, TaggedArguments)
        yield from self._end(needed, () if tagged else (*calls.start[:1], *calls.section_end[:1]), sure=tagged)
        self._done()

    def arguments(self, name: str) -> Steps:
        """A call whose name is known: its arguments as JSON."""
        self._reset()
        self._begin(name)
        yield from self._json_arguments()
        self._done()

    def fail(self, reason: str) -> None:
        """The call isn't one."""
        self.emit(ToolCallEnd(self.index, None, reason))
        self.index += 1
        self.begun = False

    # --- events

    def _reset(self) -> None:
        self.begun, self._id, self._name, self._pieces = False, "", "", []

    def _begin(self, name: str) -> None:
        if not name:
            raise Malformed("the call names no tool")
        if self.known_only and name not in self._schemas:
            raise Malformed(f"there is no tool {name!r}")
        self._name = name
        self._id = self._id or new_id(self._ids)
        self.begun = True
        self.emit(ToolCallBegin(self.index, self._id, name))
        for piece in self._pieces:
            self.emit(ToolCallArguments(self.index, piece))

    def _argue(self, piece: str) -> None:
        self._pieces.append(piece)
        if self.begun:
            self.emit(ToolCallArguments(self.index, piece))

    def _done(self) -> None:
        try:
            arguments = json.loads("".join(self._pieces))
        except (ValueError, RecursionError) as error:
            raise Malformed(f"the arguments are no JSON: {error}") from None
        if not isinstance(arguments, dict):
            raise Malformed("the arguments are no JSON object")
        self.emit(ToolCallEnd(self.index, ToolCall(self._id, self._name, arguments)))
        self.index += 1
        self.begun = False

    # --- forms

    def _end(self, end: tuple[str, ...], others: tuple[str, ...], sure: bool) -> Steps:
        """The end of a call.

        Unless only it makes `sure` that the call is whole, the answer may end before it, or one of `others` follow.
        """
        for text in end:
            if not (yield from self._reader.at(text)):
                if self._reader.ended and not self._reader.buffer.strip() and not sure:
                    return
                if others and (yield from self._reader.at(*others, read=False)):
                    return
                yield from self._reader.expect(text)

    def _json_arguments(self) -> Steps:
        first = yield from self._reader.peek()
        if first == "{":
            yield from self._reader.json(self._argue)
        elif first == '"':  # an object as text
            self._argue((yield from self._reader.json_string()) or "{}")
        elif (yield from self._reader.at("null")):
            self._argue("{}")
        else:
            raise Malformed(f"the arguments are no JSON object, from {self._reader.next!r} on")

    def _object(self, body: ObjectBody) -> Steps:
        reader = self._reader
        yield from reader.expect("{")
        if not body.name:
            name = yield from reader.json_string()
            yield from reader.expect(":")
            self._begin(name)
            yield from self._json_arguments()
            yield from reader.expect("}")
            return
        # As Qwen2.5-Coder's template has it by mistake.
        doubled = yield from reader.at("{")
        name, seen = "", False
        while True:
            if (yield from reader.at("}")):
                break
            key = yield from reader.json_string()
            yield from reader.expect(":")
            if key == body.name:
                name = yield from reader.json_string()
            elif key == body.arguments or key in _ARGUMENTS:
                yield from self._json_arguments()
                seen = True
            elif body.id and key == body.id:
                self._id = yield from self._scalar()
            else:
                yield from reader.json(lambda _: None)
            if name and not self.begun and (self._id or not body.id):
                self._begin(name)
            if not (yield from reader.at(",")):
                yield from reader.expect("}")
                break
        if doubled:
            yield from reader.expect("}")
        if not self.begun:
            self._begin(name)
        if not seen:
            self._argue("{}")

    def _scalar(self) -> Text:
        pieces: list[str] = []
        yield from self._reader.json(pieces.append)
        try:
            return str(json.loads("".join(pieces)))
        except ValueError:
            raise Malformed("the call's id is no JSON") from None

    def _field(self, ends: Markers, *, read: bool) -> Text:
        """Text up to one of `ends`, kept in `_stop`; it is read too, if asked for."""
        reader = self._reader
        while (found := ends.find(reader.buffer)) is None or ends.may_grow(found, reader.buffer):
            if found is None and len(reader.buffer) > MAX_NAME + ends.longest:
                raise Malformed(_ENDLESS)
            if reader.ended:
                if found is not None:
                    break
                raise CutOff
            yield
        if found.start() > MAX_NAME:
            raise Malformed(_ENDLESS)
        text = clean(reader.take(found.start())).strip()
        self._stop = found[0]
        if read:
            reader.take(len(found[0]))
        return text

    def _head(self, body: HeadBody, end: tuple[str, ...]) -> Steps:
        tagged = body.arguments if isinstance(body.arguments, TaggedArguments) else None
        last = ("{",) if tagged is None else (tagged.key_open, *end[:1])
        at = 0
        found = dict.fromkeys(FIELDS, "")
        while at < len(body.parts):
            part = body.parts[at]
            if part not in found:
                yield from self._reader.expect(part)
                at += 1
                continue
            literals = [text for text in body.parts[at + 1 :] if text not in found]
            found[part] = yield from self._field(Markers(literals or last), read=bool(literals))
            at = body.parts.index(self._stop, at) + 1 if literals else at + 1
        self._id, name = found["id"], found["name"]
        if body.name_in_id:
            hit = re.fullmatch(body.name_in_id, self._id)
            name = hit[1] if hit else self._id
        self._begin(name)
        if tagged is None:
            yield from self._json_arguments()
        else:
            yield from self._tagged(tagged, end)

    def _tagged(self, form: TaggedArguments, end: tuple[str, ...]) -> Steps:
        schema = self._schemas.get(self._name)
        closes = {f.close: f for f in form.forms}
        keys = Markers(closes)
        self._argue("{")
        separator = ""
        while (yield from self._more(form.key_open, end)):
            key = yield from self._field(keys, read=True)
            chosen = closes[self._stop]
            yield from self._reader.expect(*chosen.value_open)
            self._argue(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            yield from self._value(chosen, form.pad, kinds_of(schema, key))
            separator = ", "
        self._argue("}")

    def _more(self, key_open: str, end: tuple[str, ...]) -> Text:
        """The beginning of another argument, read; or "" before the call's end."""
        yield from self._reader.peek()
        found = yield from self._reader.at(key_open, *end[:1], read=False)
        if found == key_open:
            yield from self._reader.at(key_open)
            return key_open
        if found or not end:
            return ""
        raise self._reader.missing(end[0], key_open)

    def _value(self, form: KeyForm, pad: str, kinds: frozenset[str] | None) -> Steps:
        ends = Markers((form.value_close, pad + form.value_close))
        if form.kind == "string" or (form.kind is None and kinds == {"string"}):
            first = True

            def escaped(text: str) -> None:
                nonlocal first
                text = text.removeprefix(pad) if first else text
                first = False
                if text := clean(text):
                    self._argue(json.dumps(text, ensure_ascii=False)[1:-1])

            self._argue('"')
            if not (yield from self._reader.until(ends, escaped)):
                raise CutOff
            self._argue('"')
            return
        pieces: list[str] = []
        if not (yield from self._reader.until(ends, pieces.append)):
            raise CutOff
        value = typed(clean("".join(pieces)).removeprefix(pad), None if form.kind == "json" else kinds)
        self._argue(json.dumps(value, ensure_ascii=False))

    def _whole(self, body: LiteralBody | NestedBody, end: tuple[str, ...]) -> Steps:
        """Calls that are read when all of it is there."""
        pieces: list[str] = []
        while True:
            if not (yield from self._reader.until(Markers(end[:1]), pieces.append)):
                raise CutOff
            try:
                if isinstance(body, LiteralBody):
                    calls = literal_calls("".join(pieces), body)
                else:
                    calls = nested_calls("".join(pieces), body, self._schemas)
                break
            except OpenString as error:
                if end[0].startswith(CONTROL):
                    raise Malformed(f"the call doesn't read: {error}") from None
                pieces.append(end[0])  # what looks like the end stands within a string
            except (ValueError, RecursionError) as error:
                raise Malformed(f"the call doesn't read: {error}") from None
        yield from self._end(end[1:], (), sure=False)
        if not calls:
            raise Malformed("there is no call")
        for name, arguments in calls:
            self._reset()
            self._begin(name)
            self._argue(json.dumps(arguments, ensure_ascii=False))
            self._done()
