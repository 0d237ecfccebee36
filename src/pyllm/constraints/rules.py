"""Rules that the arguments of calls need: values that are JSON, texts that are written as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyllm.constraints import schema as schemas
from pyllm.constraints.grammar import lark_source, regex_literal, text_literal
from pyllm.constraints.stack import on_large_stack
from pyllm.errors import RequestError

SPACE = "WS?"
"""White space that may stand between the parts of a call; the rule is the calls' own."""

_SAYS_NOTHING = {"type", "title", "description", "default"}


def several(one: str, between: str, most: int | None, least: int = 1) -> str:
    """A rule `least` times, which is once at least, or up to `most` times."""
    more = f"({between} {one})"
    return one if most == 1 else f"{one} {more}{{{least - 1},{'' if most is None else most - 1}}}"


class Rules:
    """Lines of a grammar in Lark's notation, each written once. `text` makes a literal of it.

    `warnings` say what of the schemas is not held.
    """

    def __init__(self, text: Callable[[str], str]) -> None:
        self.text = text
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self._names: dict[str, str] = {}
        self._values: dict[str, str] = {}
        self._n_names = 0

    def rule(self, kind: str, definition: str) -> str:
        """The name of a rule; in capitals for one expression. `kind` is what the name begins with."""
        if definition not in self._names:
            name = self.reserve(kind)
            self._names[definition] = name.partition("[")[0]
            self.define(name, definition)
        return self._names[definition]

    def reserve(self, kind: str) -> str:
        """A name for a rule that is defined later: one that refers to itself."""
        self._n_names += 1
        name, bracket, attribute = kind.partition("[")
        return f"{name}{self._n_names}{bracket}{attribute}"

    def entries(self, made: Sequence[tuple[bool, str]], comma: str, free: str = "") -> tuple[str, bool]:
        """Entries in their order, each of which may be left out unless it is needed, then any number of `free` ones.

        Those that have one at least, and whether there may be none.
        """
        after = f"({comma} {free})*" if free else ""
        first = [f"{free} {after}"] if free else []
        may_miss = True
        for needed, entry in reversed(made):
            first = [f"{entry} {after}"] if needed else [f"{entry} {after}", *first]
            may_miss = may_miss and not needed
            after = self.rule("more", f"({comma} {entry}){'' if needed else '?'} {after}")
        return f"({' | '.join(first)})" if first else "", may_miss

    def define(self, name: str, definition: str) -> None:
        self.lines.append(f"{name}: {definition}")

    def json(self, schema: Any, root: Mapping[str, Any], where: str) -> str:
        """A JSON value that fits a schema, which is part of `root`; any value where that cannot be held."""
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        whole = {**shared, **schema} if isinstance(schema, Mapping) else schema
        key = json.dumps(whole)
        if key not in self._values:
            try:
                held = schemas.hold(whole, where, strict=False)
            except RequestError as error:
                self.warnings.append(f"{error}; any JSON value will do")
                held = schemas.hold({}, where, strict=False)
            made = json.loads(held.grammar)["grammars"][0]["json_schema"]
            self._values[key] = self.rule("json", f"%json {json.dumps(made)}")
        return self._values[key]

    def raw(self, schema: Any, close: str, where: str, pad: str = "") -> str:
        """A text as it is, up to the literal that closes it, as a schema of texts has it; `pad` is put around it.

        The first such literal ends the text, if it is no token of its own.
        """
        end = self.text(close)
        is_token = end.startswith("<[")
        bounds = self._bounds(schema, where) if isinstance(schema, Mapping) else []
        if not bounds:
            return f"/(?s:.*)/ {end}" if is_token else self.rule("raw[lazy]", f"/(?s:.*)/ {text_literal(close)}")
        if not is_token:
            bounds.append(_without(close))
        around = text_literal(pad) if pad else ""
        whole = f"{around} ({' & '.join(bounds)}) {around}"
        if is_token:
            return f"{self.rule('RAW', whole)} {end}"
        return self.rule("RAW", f"{whole} {text_literal(close)}")

    def rest(self, close: str) -> str:
        """A text that ends the answer, with nothing in it that `raw` would end at."""
        return "/(?s:.*)/" if self.text(close).startswith("<[") else self.rule("RAW", _without(close))

    def _bounds(self, schema: Mapping[str, Any], where: str) -> list[str]:
        """What a schema says of texts, as expressions that must all match."""
        unheld = ["format"] if "format" in schema else []
        for key in ("anyOf", "oneOf"):
            options = schema.get(key, ())
            if any(isinstance(option, Mapping) and option.keys() - _SAYS_NOTHING for option in options):
                unheld.append(key)
        found: list[str] = []
        low, high = schema.get("minLength", 0), schema.get("maxLength", "")
        if low or high != "":
            found.append(f"/(?s:.{{{low},{high}}})/")
        if (pattern := schema.get("pattern")) is not None:
            made = f"/{_searched(pattern)}/"
            if on_large_stack(lambda: schemas.fault(lark_source(f"start: T\nT: {made}"))):
                unheld.append("pattern")
            else:
                found.append(made)
        if unheld:
            self.warnings.append(f"{where}: not held: {unheld[0]}, as this model writes texts as they are")
        return found


def _without(text: str) -> str:
    """A text that doesn't hold another, as an expression."""
    return f"~(/(?s:.*)/ {text_literal(text)} /(?s:.*)/)"


def _searched(pattern: str) -> str:
    """A pattern that is searched for in a text, as one for all of it; what fits it fits the pattern."""
    starts, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[starts : len(pattern) - ends]
    if "^" in inner or "$" in inner or ("|" in inner and (starts or ends)):
        starts = ends = True
    return ("" if starts else "(?s:.*)") + f"(?:{regex_literal(inner)[1:-1]})" + ("" if ends else "(?s:.*)")
