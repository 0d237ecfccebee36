"""The one parser of answers: a dialect's spec, interpreted while the model writes.

Text is held back only where it could be the beginning of a marker, and white space until it is known what follows.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from pyllm.chat.dialects.calls import CallReader
from pyllm.chat.dialects.reader import CONTROL, CutOff, Malformed, Markers, Reader, Sink, Steps, clean
from pyllm.chat.dialects.spec import Calls, DialectSpec, Schemas, changed
from pyllm.chat.dialects.typed import schemas_of
from pyllm.chat.events import Event, ReasoningDelta, TextDelta, ToolCallEnd

_PIECE = 1 << 12
_MAX_HEADER = 300
_WHOLE = -1
"""Not a piece of a call's start: the opening of calls."""


class Parser:
    """Parses one answer. Push what the model writes, then finish; each gives the events that are certain by then.

    `control` are texts of control tokens by id. Where tokens are pushed with their ids, markers that are control tokens
    are these tokens, and text that only looks like one stays text. Calls are looked for where there are `tools`.
    """

    def __init__(
        self,
        spec: DialectSpec,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        prefix: str = "",
        control: Mapping[int, str] | None = None,
    ) -> None:
        self._spec, self._prefix = spec, prefix
        self._schemas = schemas_of(tools)
        self._control = control or {}
        self._answer: _Answer | None = None

    @property
    def control(self) -> Mapping[int, str]:
        """Texts of the control tokens that mean something here, by id."""
        return self._control

    def push(self, text: str, token_id: int | None = None) -> list[Event]:
        """More of the answer: a token's text, with its id if known. The events that it makes certain."""
        answer = self._answer or self._begin(token_id is not None)
        if token_id is not None and token_id in self._control:
            return answer.push(CONTROL + self._control[token_id])
        return answer.push(text.replace(CONTROL, "\ufffd"))

    def finish(self, cut_off: bool = False) -> list[Event]:
        """The answer is over; `cut_off` where it had more to say. The events that are left."""
        return (self._answer or self._begin(False)).finish(cut_off)

    def _begin(self, by_tokens: bool) -> _Answer:
        marks = sorted(set(self._control.values()), key=len, reverse=True) if by_tokens else []
        pattern = re.compile("|".join(map(re.escape, marks))) if marks else None

        def marked(text: str) -> str:
            return text if pattern is None else pattern.sub(lambda m: CONTROL + m[0], text)

        self._answer = _Answer(changed(self._spec, marked), self._schemas)
        # What the prompt says already is no news.
        self._answer.push(marked(self._prefix))
        return self._answer


def _is_distinct(marker: str) -> bool:
    """Whether nobody writes a marker in a sentence: it is a token, or looks like none but one."""
    return marker.startswith((CONTROL, "<|")) or marker.endswith("|>")


class _Answer:
    """The state of an answer: a generator that waits for more text."""

    def __init__(self, spec: DialectSpec, schemas: Schemas) -> None:
        self._spec = spec
        self._schemas = schemas
        self._reader = Reader()
        self._events: list[Event] = []
        self._calls = CallReader(spec, schemas, self._reader, self._events.append)
        self._fresh = True  # no text yet, or none since reasoning or a call
        self._lead = spec.trim  # white space that comes next is no text
        self._actions = self._table()
        self._markers = Markers(self._actions)
        self._steps = self._run()
        self._cut_off = self._over = False
        self._raw_is_whole = False  # what is read is kept beyond a call

    def push(self, text: str) -> list[Event]:
        for start in range(0, len(text), _PIECE):
            self._reader.buffer += text[start : start + _PIECE]
            self._step()
        return self._taken()

    def finish(self, cut_off: bool) -> list[Event]:
        self._cut_off = cut_off
        self._reader.ended = True
        self._step()
        return self._taken()

    def _step(self) -> None:
        if not self._over:
            self._over = next(self._steps, self) is self

    def _taken(self) -> list[Event]:
        events, self._events[:] = list(self._events), []
        return events

    def _table(self) -> dict[str, tuple[Any, int]]:
        """What to do at each marker, and which piece of its literal it is."""
        spec = self._spec
        table: dict[str, tuple[Any, int]] = dict.fromkeys(spec.silent, (self._skip, 0))
        if spec.reasoning is not None:
            table[spec.reasoning.end] = (self._unopened, 0)
            table[spec.reasoning.start] = (self._reasoning, 0)
        if (calls := spec.calls) is not None and self._schemas:
            inner = [(i, t) for i, t in enumerate(calls.start) if t[0] == "<" and len(t) > 3]
            table |= {text: (self._call, i) for i, text in reversed(inner)}
            if opening := calls.opening:
                table[opening[0]] = (self._call, _WHOLE)
        if (channels := spec.channels) is not None:
            table |= dict.fromkeys(channels.ends, (self._skip, 0))
            table |= dict.fromkeys(channels.opens, (self._header, 0))
        return table

    # --- text and reasoning

    def _run(self) -> Steps:
        if (channels := self._spec.channels) is not None:
            found = yield from self._reader.at(*channels.begins)
            if found or "" in channels.begins:
                yield from self._header(found, 0)
        calls = self._spec.calls
        while True:
            if calls is not None and calls.bare and self._schemas and self._fresh:
                yield from self._bare(calls)
            marker = yield from self._reader.until(self._markers, self._text, hold_space=True)
            if not marker:
                return
            action, piece = self._actions[marker]
            yield from action(marker, piece)

    def _text(self, text: str) -> None:
        if self._spec.trim and self._reader.ended and not self._reader.buffer:
            text = text.rstrip()
        if self._lead:
            text = text.lstrip()
        if text := clean(text):
            self._fresh = self._lead = False
            self._events.append(TextDelta(text))

    def _plain(self, text: str) -> None:
        """Text that was read as something else."""
        self._text(self._reader.gap + text)

    def _rest(self) -> None:
        """Something other than text is over."""
        self._fresh = self._lead = True

    def _skip(self, marker: str, piece: int) -> Steps:
        yield from ()

    def _unopened(self, marker: str, piece: int) -> Steps:
        """The end of reasoning that has no beginning: dropped before any text, and where it can be nothing else."""
        if self._fresh or _is_distinct(marker):
            self._rest()
        else:
            self._plain(marker)
        yield from ()

    def _reasoning(self, marker: str, piece: int) -> Steps:
        spec = self._spec.reasoning
        if spec is not None and (self._fresh or _is_distinct(marker)):
            yield from self._reason((spec.end,))
        else:
            self._plain(marker)

    def _reason(self, ends: tuple[str, ...]) -> Steps:
        """Reasoning, up to one of `ends`, a mark of text, or calls that end the answer."""
        first = True

        def sink(text: str) -> None:
            nonlocal first
            text = text.lstrip() if first else text
            if text := clean(text.rstrip() if self._reader.ended and not self._reader.buffer else text):
                first = False
                self._events.append(ReasoningDelta(text))

        calls = [m for m, (action, _) in self._actions.items() if action == self._call]
        markers = Markers([*ends, *calls, *self._spec.silent])
        while True:
            end = yield from self._reader.until(markers, sink, hold_space=True)
            action, piece = self._actions.get(end, (self._skip, 0))
            if action != self._call or end in ends:
                self._rest()
                if action == self._header:
                    yield from self._header(end, piece)
                return
            if (yield from self._ends_in_call([end], self._after(piece), sink)):
                return

    def _ends_in_call(self, begun: list[str], steps: Steps, sink: Sink) -> Generator[None, None, bool]:
        """Whether calls within reasoning are the answer's end: a model may forget to end its reasoning.

        Their events wait for that. Calls that more words follow are only thought of.
        """
        events: list[Event] = []
        index = self._calls.index
        self._calls.emit, self._calls.known_only = events.append, True
        self._reader.raw = raw = [self._reader.gap, *begun]
        self._raw_is_whole = True
        over = False
        try:
            yield from steps
            yield from self._reader.peek()
        except CutOff:
            over = bool(events) and isinstance(events[-1], ToolCallEnd)
        except Malformed:
            pass
        self._calls.emit, self._calls.known_only = self._events.append, False
        self._reader.raw = None
        self._raw_is_whole = False
        if over:
            self._events += events
            self._rest()
        else:
            self._calls.index = index
            sink("".join(raw))
        return over

    # --- channels

    def _header(self, marker: str, piece: int) -> Steps:
        channels = self._spec.channels
        assert channels is not None
        pieces = [marker]
        ends = Markers((channels.header_end,))
        while (found := ends.find(self._reader.buffer)) is None and not self._reader.ended:
            if len(self._reader.buffer) > _MAX_HEADER + ends.longest:
                break
            yield
        if found is None or found.start() > _MAX_HEADER:
            self._plain(marker)
            return
        pieces += [self._reader.take(found.start()), self._reader.take(len(found[0]))]
        header = clean("".join(pieces[:2]))
        text = bool(channels.text) and re.search(channels.text, header) is not None
        call = None if text or not channels.call else re.search(channels.call, header)
        if channels.reasoning and call is None and re.search(channels.reasoning, header):
            yield from self._reason((*channels.ends, *channels.opens))
        elif call is not None and (call[1] in self._schemas or (self._schemas and not channels.known_only)):
            yield from self._guarded(pieces, self._calls.arguments(call[1]))
        elif call is not None or (channels.known_only and not text):
            self._plain("".join(pieces))
        else:
            self._lead = self._lead or self._fresh

    # --- calls

    def _guarded(self, begun: list[str], steps: Steps, quiet: bool = False) -> Steps:
        """Calls. What goes wrong comes back as text.

        If `quiet` only known tools are called, and what calls none is text without a word.
        """
        self._reader.raw = [self._reader.gap, *begun]
        self._calls.known_only = quiet
        try:
            yield from steps
        except Malformed as problem:
            raw = "".join(self._reader.raw)
            self._reader.raw = None
            if self._calls.begun or not quiet:
                cut = isinstance(problem, CutOff) and self._cut_off
                self._calls.fail("the answer was cut off inside the call" if cut else str(problem))
            self._text(raw)
            return
        self._reader.raw = None
        self._rest()

    def _call(self, marker: str, piece: int) -> Steps:
        yield from self._guarded([marker], self._after(piece))

    def _after(self, piece: int) -> Steps:
        """Calls after their opening, or after that piece of a call's start: outer tags are left out at times."""
        calls = self._spec.calls
        assert calls is not None
        if piece == _WHOLE:
            yield from self._in_section(calls)
            return
        while True:
            yield from self._reader.expect(*calls.start[piece + 1 :])
            yield from self._calls.call(calls, skipped=piece)
            for text in calls.end[1:]:
                yield from self._reader.at(text)
            self._keep_no_more()
            found = yield from self._reader.at(calls.start[0], calls.start[piece])
            if not found:
                return
            piece = calls.start.index(found)

    def _keep_no_more(self) -> None:
        """What was read so far is a call, whatever comes now."""
        if not self._raw_is_whole:
            self._reader.raw = []

    def _in_section(self, calls: Calls) -> Steps:
        reader = self._reader
        start = calls.start
        if calls.section_start:
            yield from reader.expect(*calls.section_start[1:])
            yield from reader.expect(*start)
        else:
            yield from reader.expect(*start[1:])
        while True:
            yield from self._calls.call(calls)
            self._keep_no_more()
            found = yield from reader.at(calls.separator, *start[:1], *calls.section_end[:1])
            if calls.separator and found == calls.separator:
                if calls.bare:
                    yield from reader.at(*start)
                else:
                    yield from reader.expect(*start)
            elif start and found == start[0]:
                yield from reader.expect(*start[1:])
            elif found:
                for text in calls.section_end[1:]:
                    yield from reader.at(text)
                return
            elif start or calls.separator or reader.ended or not reader.buffer.lstrip().startswith("{"):
                return

    def _bare(self, calls: Calls) -> Steps:
        """A call that begins with its object, if the answer does."""
        reader = self._reader
        reader.gap, reader.raw = "", []
        try:
            first = yield from reader.peek()
        except CutOff:
            first = ""
        space, reader.raw = "".join(reader.raw), None
        if first != "{":
            self._text(space)
            return
        yield from self._guarded([space], self._calls.call(calls), quiet=True)
        if self._fresh and (yield from reader.at(calls.separator)):
            yield from self._bare(calls)
