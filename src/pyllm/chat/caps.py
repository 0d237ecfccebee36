"""What a chat template can show, found by rendering short conversations of needle texts.

`probed(show, key)` tries a template once and keeps the answer by `key`. Nothing is concluded from a model's name.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pyllm.errors import TemplateError
from pyllm.records import dataclass

Show = Callable[[Mapping[str, Any]], str]
"""A template's text for variables, which it may change. Raises TemplateError."""
CallIds = Literal["any", "nine", "function"]

_KEPT = 64
"""Templates whose answers are kept."""


@dataclass(frozen=True)
class TemplateCaps:
    """What a template shows, each text once and in its place. The defaults are those of a template that shows all."""

    known: bool = True
    """Whether the template shows a plain conversation at all; where not, nothing else is known and all holds."""
    text: bool = True
    """Contents as text."""
    parts: frozenset[str] = frozenset()
    """Roles whose content may be a list of text parts."""
    system: bool = True
    """A system message that is the first one."""
    systems: bool = True
    """Several system messages at the beginning."""
    late_system: bool = True
    """A system message that is not the first one."""
    developer: bool = False
    """The role "developer" as one that the template knows, not as any word that it writes where the role stands."""
    repeats: bool = True
    """Two messages of the user in a row."""
    tools: bool = True
    """`tools`."""
    tools_variable: str = "tools"
    """The variable that tools are read from; "functions" is given as JSON text, with "datetime"."""
    bare_tools: bool = True
    """Tools and arguments without a description; not probed, but believed until the template refuses some."""
    tools_none: bool = True
    """`tools` may be None; where not, the variable must be left out."""
    calls: bool = True
    """Tool calls of the assistant, with their results."""
    results: bool = True
    """Messages with the role "tool", also where calls are not shown."""
    call_form: str = ""
    """How the template writes a call, with "NAME", "ARGUMENT" and "VALUE" in it; where it shows calls but no tools."""
    parallel_calls: bool = True
    """Two calls in one message."""
    text_beside_calls: bool = True
    """Content in a message that has calls."""
    arguments: Literal["mapping", "text"] = "mapping"
    """What arguments of a call must be."""
    call_ids: CallIds = "any"
    """Ids of calls: any text, nine letters and digits ("nine"), or "functions.NAME:INDEX", where a call's name is shown
    in its id alone ("function")."""
    result_names: bool = False
    """Whether a result must say the function's name."""
    null_content: bool = True
    """None as the content of a message that has calls."""
    reasoning: str | None = None
    """The field that the assistant's reasoning is read from after the last message of the user; "parts" where it is
    a part of the content, {"type": "thinking"}, "text" where content may begin with "<think>…</think>"."""
    reasoning_beside_text: bool = True
    """Reasoning and content in one message that has calls."""
    generation_prompt: str = ""
    """What `add_generation_prompt` adds."""


def probed(show: Show, key: Hashable, variables: Sequence[str] = ()) -> TemplateCaps:
    """The caps of a template, tried once for each key. `variables` are names that may stand for `tools`."""
    caps = _kept.get(key)
    if caps is None:
        from pyllm.chat.budget import new_budget

        with new_budget(shared=True):
            caps = _Probe(show).caps(variables)
        _kept[key] = caps
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return caps


_kept: OrderedDict[Hashable, TemplateCaps] = OrderedDict()

# --- needles: texts that no template writes by itself, none within another

NEEDLE = "pyllmprobe"
_SYSTEM, _SYSTEM_2 = "pyllmsystem", "pyllmrules"
_ASKS, _ASKS_2 = "pyllmasks", "pyllmwonders"
_ANSWERS, _RESULT, _RESULT_2 = "pyllmanswers", "pyllmresult", "pyllmoutcome"
_CALLED, _CALLED_2, _KEY, _VALUE = "pyllmcalled", "pyllmrang", "pyllmkey", "pyllmvalue"
_REASONS = {"reasoning_content": "pyllmreasons", "reasoning": "pyllmponders", "thinking": "pyllmthinks"}
_ROLE = "pyllmrole"
_LIST = re.compile(r"""["']type\\*["']: ?\\*["'](text|thinking)""", re.IGNORECASE)
"""A list of parts written as Python or JSON writes it."""

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NEEDLE,
        "description": NEEDLE,
        "parameters": {
            "type": "object",
            "properties": {NEEDLE: {"type": "string", "description": NEEDLE}},
            "required": [NEEDLE],
        },
    },
}
_IDS: Mapping[CallIds, tuple[str, str]] = {
    "any": ("call_0123456789abcdef", "call_fedcba9876543210"),
    "nine": ("abcdef123", "abcdef456"),
    "function": (f"functions.{_CALLED}:0", f"functions.{_CALLED_2}:1"),
}
"""Ids of two calls. The first form is what clients send."""


class _Probe:
    def __init__(self, show: Show) -> None:
        self._show = show
        self._tools_none = True
        self._functions = False
        self._user = _message("user", _ASKS)
        self._tools: dict[str, Any] = {}

    def caps(self, variables: Sequence[str]) -> TemplateCaps:
        plain = self._plain()
        if plain is None:
            return TemplateCaps(known=False, tools=self._takes_tools())
        tools, variable = self._place_for_tools(variables)
        if tools:
            self._tools = {variable: [TOOL]}
        return TemplateCaps(
            text=plain["text"],
            generation_prompt=plain["generation_prompt"],
            tools=tools,
            tools_variable=variable,
            tools_none=self._tools_none,
            **self._systems(),
            **self._calls(),
            parts=frozenset(role for role in ("system", "user", "assistant", "tool") if self._takes_parts(role)),
        )

    # --- renderings

    def _text(self, messages: Sequence[Mapping[str, Any]], generate: bool = True, **more: Any) -> str | None:
        """What the template writes; None where it refuses."""
        variables = {"messages": _copied(messages), "add_generation_prompt": generate}
        if self._tools_none:
            variables["tools"] = None
        if self._functions:
            variables |= functions_of(more.get("functions"))
            more.pop("functions", None)
        try:
            return self._show({**variables, **_copied(more)})
        except TemplateError:
            return None

    def _shows(self, needles: Sequence[str], messages: Sequence[Mapping[str, Any]], **more: Any) -> bool:
        text = self._text(messages, **more)
        return text is not None and in_order(text, needles)

    # --- what is found

    def _plain(self) -> dict[str, Any] | None:
        """How a conversation of texts must be given; None where the template shows none."""
        for self._tools_none, self._functions in ((True, False), (False, False), (True, True)):
            for as_text in (True, False):
                self._user = _message("user", _ASKS if as_text else _parts(_ASKS))
                text = self._text([self._user])
                if text is not None and in_order(text, [_ASKS]) and not _LIST.search(text):
                    without = self._text([self._user], generate=False)
                    added = text[len(without) :] if without is not None and text.startswith(without) else ""
                    return {"text": as_text, "generation_prompt": added}
        return None

    def _takes_parts(self, role: str) -> bool:
        """Whether a content of two parts is shown as text, not as the list that it is."""
        two, needles = _parts(_ANSWERS, _RESULT), [_ANSWERS, _RESULT]
        if role == "tool":
            messages = [self._user, self._call(), {**self._result(), "content": two}]
        elif role == "user":
            messages = [_message(role, two)]
        else:
            messages = [_message(role, two), self._user] if role == "system" else [self._user, _message(role, two)]
        text = self._text(messages, **(self._tools if role == "tool" else {}))
        return text is not None and in_order(text, needles) and not _LIST.search(text)

    def _systems(self) -> dict[str, Any]:
        system = self._shows([_SYSTEM, _ASKS], [_message("system", _SYSTEM), self._user])
        two = [_message("system", _SYSTEM), _message("system", _SYSTEM_2), self._user]
        asked = [self._user, _message("assistant", _ANSWERS), _message("system", _SYSTEM), _message("user", _ASKS_2)]
        developer = self._text([_message("developer", _SYSTEM), self._user])
        other = self._text([_message(_ROLE, _SYSTEM), self._user])
        known = developer is not None and in_order(developer, [_SYSTEM, _ASKS])
        return {
            "system": system,
            "systems": system and self._shows([_SYSTEM, _SYSTEM_2, _ASKS], two),
            "late_system": system and self._shows([_ASKS, _ANSWERS, _SYSTEM, _ASKS_2], asked),
            "developer": known and (other is None or other.replace(_ROLE, "developer") != developer),
            "repeats": self._shows([_ASKS, _ASKS_2], [self._user, _message("user", _ASKS_2)]),
        }

    def _place_for_tools(self, variables: Sequence[str]) -> tuple[bool, str]:
        """Whether tools are shown, and which variable they are read from."""
        if self._functions:
            variables = ("functions",)
        elif self._takes_tools():
            return True, "tools"
        for name in variables:
            more: dict[str, Any] = {name: [TOOL]}
            text = self._text([self._user], **more)
            if text is not None and NEEDLE in text:
                return True, name
        return False, "tools"

    def _takes_tools(self) -> bool:
        """Whether a tool can be seen in what the template writes.

        A template that refuses all conversations, with tools and without, is believed to have a place for tools.
        """
        hello = _message("user", "Hello")
        rendered = False
        for messages in (
            [hello],
            [_message("system", "Hello"), hello],
            [hello, _message("assistant", "Hello"), hello],
            [_message("user", _parts("Hello"))],
        ):
            text = self._text(messages, tools=[TOOL])
            if text is None:
                # Refused because of the tool: the template knows of tools, and its own words will say what it wants.
                if self._text(messages) is not None:
                    return True
                continue
            rendered = True
            if NEEDLE in text:
                return True
        return not rendered

    # --- calls

    def _calls(self) -> dict[str, Any]:
        for self._ids in _IDS:
            for self._arguments in ("mapping", "text"):
                for self._names in (False, True):
                    if self._right(self._text([self._user, self._call(), self._result()], **self._tools)):
                        return {
                            "arguments": self._arguments,
                            "call_ids": self._ids,
                            "result_names": self._names,
                            "call_form": "" if self._tools else self._call_form(),
                            **self._beside_calls(),
                        }
        self._ids, self._arguments, self._names = "any", "mapping", True
        results = self._shows([_ASKS, _ANSWERS, _RESULT], [self._user, _message("assistant", _ANSWERS), self._result()])
        return {"calls": False, "results": results, **self._reasoning(self._user, _message("assistant", _ANSWERS))}

    def _call_form(self) -> str:
        """A call as the assistant writes it: what follows the beginning of its message, without the message's end."""
        asked, answered = self._text([self._user]) or "", _message("assistant", _ANSWERS)
        _, _, end = (self._text([self._user, answered], generate=False) or "").partition(_ANSWERS)
        text = self._text([self._user, self._call()], generate=False) or ""
        begun = next((i for i, (a, b) in enumerate(zip(asked, text, strict=False)) if a != b), len(asked))
        form = text[begun:].removesuffix(end).strip()
        named = form.replace(_CALLED, "NAME").replace(_KEY, "ARGUMENT").replace(_VALUE, "VALUE")
        return named if _CALLED in form and _VALUE in form else ""

    _ids: CallIds = "any"
    _arguments: Literal["mapping", "text"] = "mapping"
    _names = False

    def _right(self, text: str | None) -> bool:
        """Whether a call and its result are shown, the arguments not as a text within JSON nor as Python's words."""
        if text is None or text.count(_RESULT) != 1 or _CALLED not in text:
            return False
        at = text.find(_KEY)
        if not 0 <= at < text.find(_VALUE) < text.find(_RESULT) or text.find(_CALLED) > text.find(_RESULT):
            return False
        return f'\\"{_KEY}' not in text and f"{{'{_KEY}'" not in text

    def _beside_calls(self) -> dict[str, Any]:
        """What a message that has calls may hold as well."""
        second = {**self._result(), "content": _RESULT_2, "tool_call_id": _IDS[self._ids][1]}
        if self._names:
            second["name"] = _CALLED_2
        two = self._text([self._user, self._call(n=2), self._result(), second], **self._tools)
        call = self._call()
        null = self._text([self._user, {**call, "content": None}, self._result()], **self._tools)
        empty = self._text([self._user, call, self._result()], **self._tools)
        beside = self._text([self._user, {**call, "content": _ANSWERS}, self._result()], **self._tools)
        return {
            "parallel_calls": two is not None and in_order(two, [_RESULT, _RESULT_2]) and _CALLED_2 in two,
            "null_content": null == empty,
            "text_beside_calls": self._right(beside) and (beside or "").count(_ANSWERS) == 1,
            **self._reasoning(self._user, call, self._result()),
        }

    def _reasoning(self, *messages: Mapping[str, Any]) -> dict[str, Any]:
        """The field that the second message's reasoning is read from: all are tried at once, then with thinking on."""
        asked, answer, *results = messages
        more = {**(self._tools if results else {}), "generate": bool(results)}
        on: dict[str, Any] = {"enable_thinking": True, "thinking": True}
        for thinking in ({}, on):
            text = self._text([asked, {**answer, **_REASONS}, *results], **more, **thinking) or ""
            if shown := [name for name, needle in _REASONS.items() if text.count(needle) == 1]:
                told = {**answer, "content": _ANSWERS, shown[0]: _REASONS[shown[0]]}
                both = self._text([asked, told, *results], **more, **thinking)
                return {"reasoning": shown[0], "reasoning_beside_text": both is not None}
        part = [{"type": "thinking", "thinking": _VALUE}, *_parts(_ANSWERS)]
        text = self._text([asked, {**_message("assistant", part)}], generate=False) or ""
        if in_order(text, [_VALUE, _ANSWERS]) and not _LIST.search(text):
            return {"reasoning": "parts"}
        said = f"<think>\n{_VALUE}\n</think>\n\n{_ANSWERS}"
        answer = _message("assistant", said if isinstance(asked["content"], str) else _parts(said))
        as_text = self._shows([_VALUE, _ANSWERS], [asked, answer], generate=False)
        return {"reasoning": "text" if as_text else None}

    def _call(self, n: int = 1) -> dict[str, Any]:
        mapping = self._arguments == "mapping"
        arguments: list[Any] = [{_KEY: _VALUE} if mapping else f'{{"{_KEY}": "{_VALUE}"}}', {} if mapping else "{}"]
        return {
            **_message("assistant", ""),
            "tool_calls": [
                {"id": _IDS[self._ids][i], "type": "function", "function": {"name": name, "arguments": arguments[i]}}
                for i, name in enumerate([_CALLED, _CALLED_2][:n])
            ],
        }

    def _result(self) -> dict[str, Any]:
        named = {"name": _CALLED} if self._names else {}
        return {"role": "tool", "tool_call_id": _IDS[self._ids][0], **named, "content": _RESULT}


def functions_of(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
    """Variables of templates that read tools as a text called "functions", and the date beside it."""
    return {"functions": json.dumps(tools or [], indent=4), "datetime": f"{datetime.now():%b %d %Y %H:%M:%S}"}


def in_order(text: str, needles: Sequence[str]) -> bool:
    """Whether each needle is in the text once, and after the one before it."""
    if any(text.count(needle) != 1 for needle in needles):
        return False
    places = [text.find(needle) for needle in needles]
    return places == sorted(places)


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _copied(value: Any) -> Any:
    from pyllm.chat.plain import plain

    return plain(value)
