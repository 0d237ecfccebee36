"""JSON schemas: bounds on those of strangers, and from a schema to a grammar, or to the reason why there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from pyllm.constraints.stack import on_large_stack
from pyllm.errors import RequestError

MAX_CHARACTERS = 200_000
MAX_DEPTH = 100
"""Of lists and objects within each other, in the schema's own text."""
MAX_CHAIN = 1000
"""The same with references followed; the compiler recurses."""
MAX_SCHEMAS = 3000
MAX_KEPT = 4000
"""Characters of a schema that is not looked at again when it comes again."""
MAX_DROPPED = 8
"""Keywords that are ignored in a schema because no grammar comes out otherwise."""
MAX_MULTIPLE = 10_000
"""Product of the `multipleOf` of a schema: the states of an automaton."""

_ONE = ("additionalProperties", "items", "contains", "not", "if", "then", "else", "propertyNames", "additionalItems",
        "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DEFINITIONS = ("$defs", "definitions")
_WHITESPACE = r"( |\r?\n[ \t]{0,64})"
"""Between the parts of a JSON text: a space, or a new line with its indent. With more, some models never end."""


class Held(NamedTuple):
    """A schema's grammar in llguidance's notation, and what of the schema it doesn't hold."""

    grammar: str
    warnings: tuple[str, ...] = ()


def hold(schema: Any, name: str, *, strict: bool) -> Held:
    """The grammar of a schema. Properties that an object's schema doesn't name are left out, unless it allows them.

    `name` says in messages what the schema belongs to. `strict`: a keyword that cannot be held is a RequestError; else
    it is ignored, with a warning. Raises RequestError for what is no schema, beyond the bounds, or holds no value.
    """
    check(schema, name)
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    schema = closed({key: value for key, value in schema.items() if key != "x-guidance"})  # options of llguidance
    text = json.dumps(schema)
    return (_hold_kept if len(text) <= MAX_KEPT else _hold_text)(text, name, strict)


def _hold_text(schema: str, name: str, strict: bool) -> Held:
    return on_large_stack(lambda: _hold(json.loads(schema), name, strict))


_hold_kept = lru_cache(maxsize=1024)(_hold_text)
"""An agent's tools are the same from call to call."""


def _hold(schema: Any, name: str, strict: bool) -> Held:
    grammar = _grammar(schema, lenient=False)
    if not fault(grammar):
        return Held(grammar)
    if strict:
        at, message = locate(schema)
        raise RequestError(f"{name}: the schema cannot be held at {at}: {message}; change that, or set strict to False")
    dropped: list[str] = []
    while True:
        grammar = _grammar(schema, lenient=True)
        wrong, ignored = _validated(grammar)
        if not wrong:
            texts = [*dropped, *(f"{_where(schema, text)}{text}" for text in ignored)]
            return Held(grammar, tuple(f"{name}: not held: {text}" for text in texts))
        at, message = locate(schema, lenient=True)
        *above, keyword = _steps(at) or [""]
        if not keyword or len(dropped) == MAX_DROPPED:
            raise RequestError(f"{name}: the schema cannot be held at {at}: {message}")
        schema = _without(schema, above, keyword)
        dropped.append(f"{at}: {message}")


def check(schema: Any, name: str) -> None:
    """Raise RequestError for what is no JSON schema, or larger or deeper than the bounds."""
    if not isinstance(schema, Mapping | bool):
        raise RequestError(f"{name} must be a JSON schema: an object, not {type(schema).__name__}")
    if _depth(schema) > MAX_DEPTH:
        raise RequestError(f"{name}: the schema is deeper than {MAX_DEPTH} levels; use references ($ref)")
    try:
        text = json.dumps(schema, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name}: the schema cannot be written as JSON; {error}") from None
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"{name}: the schema has {len(text)} characters; {MAX_CHARACTERS} are allowed")
    found = [*walk(schema)]
    if len(found) > MAX_SCHEMAS:
        raise RequestError(f"{name}: the schema has {len(found)} schemas within it; {MAX_SCHEMAS} are allowed")
    for target in _references(schema):
        if not (target == "#" or target.startswith("#/")):
            raise RequestError(f"{name}: $ref {target[:60]!r} cannot be followed; references begin with #/")
    if _chain(schema) > MAX_CHAIN:
        raise RequestError(f"{name}: the schema's references lead more than {MAX_CHAIN} levels deep; flatten them")
    product = 1
    for part in found:
        product *= _states(part.schema)
    if product > MAX_MULTIPLE:
        raise RequestError(f"{name}: multipleOf needs more than {MAX_MULTIPLE} states; leave it out")


class Part(NamedTuple):
    """A schema within a schema, and where it is, as a JSON pointer."""

    path: str
    schema: Any


def walk(schema: Any, path: str = "#") -> Iterator[Part]:
    """All schemas within a schema, itself first."""
    yield Part(path, schema)
    for step, child in children(schema):
        yield from walk(child, f"{path}/{step}")


def children(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas directly within a schema, by their steps of a JSON pointer."""
    if not isinstance(schema, Mapping):
        return
    for key in _ONE:
        if isinstance(schema.get(key), Mapping):
            yield key, schema[key]
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            yield from ((f"{key}/{i}", child) for i, child in enumerate(schema[key]))
    for key in _NAMED:
        if isinstance(schema.get(key), Mapping):
            yield from ((f"{key}/{escaped(str(name))}", child) for name, child in schema[key].items())


def closed(schema: Any) -> Any:
    """A schema whose objects have no properties but those that they name, where it says nothing of others.

    Only less is admitted. A schema that combines schemas of one object is returned as it is.
    """
    if any(_combines(part.schema) for part in walk(schema)):
        return schema
    return _closed(schema)


def _combines(schema: Any) -> bool:
    """Whether several schemas describe one object here."""
    if not isinstance(schema, Mapping):
        return False
    own = any(key in schema for key in ("properties", "patternProperties", "required", "minProperties"))
    every = schema.get("allOf", ())
    return (isinstance(every, list) and len(every) > 1) or (
        own and any(key in schema for key in ("anyOf", "oneOf", "allOf", "$ref", "if", "not", "dependentSchemas"))
    )


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    new = dict(schema)
    for key in _ONE:
        if key in new and key != "not":
            new[key] = _closed(new[key])
    for key in _LISTS:
        if isinstance(new.get(key), list):
            new[key] = [_closed(child) for child in new[key]]
    for key in _NAMED:
        if isinstance(new.get(key), Mapping):
            new[key] = {name: _closed(child) for name, child in new[key].items()}
    names, required = new.get("properties"), new.get("required", [])
    if (
        isinstance(names, Mapping)
        and isinstance(required, list)
        and all(isinstance(name, str) and name in names for name in required)
        and not {"additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"} & new.keys()
    ):
        new["additionalProperties"] = False
    return new


def locate(schema: Any, lenient: bool = False) -> tuple[str, str]:
    """The keyword at which a schema cannot be held, as a JSON pointer, and the reason: in the smallest part at fault.

    References are looked into last, so that a fault is where it is written, not where it is referred to.
    """
    parts = [*walk(schema)][::-1]
    shared = {key: schema[key] for key in _DEFINITIONS if key in schema}
    for resolve in (False, True):
        for path, part in parts:
            if isinstance(part, Mapping):
                alone = {**shared, **part} if resolve else _without_references(part)
                if message := fault(_grammar(alone, lenient=lenient)):
                    for key in sorted(alone, key=lambda key: key == "type"):
                        less = {other: value for other, value in alone.items() if other != key}
                        if key not in shared and not fault(_grammar(less, lenient=lenient)):
                            return f"{path}/{escaped(key)}", message
                    return path, message
    return "#", fault(_grammar(schema, lenient=lenient))


def _where(schema: Any, text: str) -> str:
    """Where the keywords are that a warning says are not supported."""
    named = text.removeprefix(_FORMAT)
    names = text.removesuffix(_UNSUPPORTED).split(", ") if text.endswith(_UNSUPPORTED) else ["oneOf"]
    for path, part in walk(schema):
        if isinstance(part, Mapping) and (
            part.get("format") == named if named != text else any(name in part for name in names)
        ):
            return f"{path}: "
    return ""


def _without(schema: Any, above: list[str], keyword: str) -> Any:
    """A copy of a schema without one keyword, which is at the end of the given steps."""
    if not above:
        return {key: value for key, value in schema.items() if key != keyword}
    step = above[0] if isinstance(schema, Mapping) else int(above[0])
    new: Any = dict(schema) if isinstance(schema, Mapping) else list(schema)
    new[step] = _without(new[step], above[1:], keyword)
    return new


def _without_references(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_references(child) for key, child in value.items() if key not in ("$ref", *_DEFINITIONS)}
    if isinstance(value, list):
        return [_without_references(child) for child in value]
    return value


def _grammar(schema: Any, *, lenient: bool) -> str:
    from llguidance import LLMatcher

    options: dict[str, Any] = {
        "lenient": lenient,
        "coerce_one_of": lenient,
        "whitespace_flexible": True,
        "whitespace_pattern": _WHITESPACE,
    }
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)  # type: ignore[arg-type]


def fault(grammar: str) -> str:
    """Why a grammar in llguidance's notation cannot be used; nothing where it can."""
    return _validated(grammar)[0]


def _validated(grammar: str) -> tuple[str, list[str]]:
    """The fault of a grammar, and the warnings."""
    from llguidance import LLMatcher, LLParserLimits

    wrong, texts = LLMatcher.validate_grammar_with_warnings(grammar, limits=LLParserLimits(verbose_errors=False))
    return (plain(texts[0]), []) if wrong else ("", [plain(text) for text in texts])


_UNSUPPORTED = " is not supported"
_FORMAT = "unknown format: "
_POSITION = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")
_KEYS = re.compile(r"Unimplemented keys: \[(.*)\]")


def plain(message: str) -> str:
    """A message of llguidance as a clause of one of ours: what is wrong, without the excerpts of the grammar."""
    if keys := _KEYS.match(message):
        return keys[1].replace('"', "") + _UNSUPPORTED
    if message.startswith("oneOf"):
        return "oneOf of schemas that may overlap is not supported, anyOf is"
    if "panic" in message:
        return "the grammar is beyond what the parser can do"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "")
    told = _POSITION.sub(r"line \1, column \2: ", told.removeprefix("error: ")).rstrip(".")
    return (told[:1].lower() + told[1:] if told[1:2].islower() else told)[:300]


def _states(schema: Any) -> int:
    """By how much a schema's `multipleOf` multiplies the states of its number's automaton."""
    value = schema.get("multipleOf", 1) if isinstance(schema, Mapping) else 1
    try:
        digits = Decimal(str(value)).normalize().as_tuple().digits
    except InvalidOperation:
        return 1
    return max(1, int("".join(map(str, digits[:6]))))


def _depth(value: Any) -> int:
    """Levels of lists and objects within each other, counted to just beyond MAX_DEPTH."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [c for v in level for c in (v.values() if isinstance(v, Mapping) else v if isinstance(v, list) else ())]
        depth += 1
    return depth


def _chain(schema: Any) -> int:
    """An upper bound of the levels within each other, references followed, each at most once."""
    heights: dict[str, int] = {}
    edges: dict[str, set[str]] = {}
    waiting = ["#"]
    while waiting:
        target = waiting.pop()
        value = resolve(schema, target)
        heights[target] = _depth(value)
        edges[target] = _references(value)
        waiting += [t for t in edges[target] if t not in edges and t not in waiting]
    longest: dict[str, int] = {}
    while ready := [t for t in edges if t not in longest and edges[t] <= longest.keys()]:
        for target in ready:
            longest[target] = heights[target] + max((longest[t] for t in edges[target]), default=0)
    cyclic = [t for t in edges if t not in longest]
    return sum(heights[t] for t in cyclic) + max(longest.values(), default=0)


def _references(value: Any) -> set[str]:
    found: set[str] = set()
    level = [value]
    while level:
        for entry in level:
            if isinstance(entry, Mapping) and isinstance(entry.get("$ref"), str):
                found.add(entry["$ref"])
        level = [c for v in level for c in (v.values() if isinstance(v, Mapping) else v if isinstance(v, list) else ())]
    return found


def resolve(schema: Any, reference: str) -> Any:
    """What a reference names; nothing where it leads nowhere, which the compiler reports."""
    value = schema
    for step in _steps(unquote(reference)):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isascii() and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _steps(pointer: str) -> list[str]:
    """The steps of a JSON pointer."""
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.removeprefix("#").split("/")[1:]]


def escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
