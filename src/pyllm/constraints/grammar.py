"""What an answer may have to be (a schema, a regular expression, one of several texts, a grammar), as a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, is_typeddict

from pyllm.arguments import entries_of, refusal
from pyllm.constraints import schema as schemas
from pyllm.constraints.stack import on_large_stack
from pyllm.errors import RequestError
from pyllm.records import dataclass

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from pyllm.constraints.vocabulary import Vocabulary

MAX_CHARACTERS = 200_000
"""Of a regular expression or a grammar."""
MAX_RULES = 1000
"""Of a grammar; the compiler recurses from rule to rule."""
MAX_CHOICES = 10_000


@dataclass(frozen=True)
class Grammar:
    """What an answer must be.

    `source` is the grammar in llguidance's notation, a Lark text or a JSON object of grammars; `name` is the option it
    comes from, for messages. `warnings` say what isn't held. `parse` makes a whole answer's text a value: JSON's value,
    an object of a caller's class; None where the text is all there is.
    """

    source: str
    name: str
    warnings: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None

    def matcher(self, vocabulary: Vocabulary, lead: str = "") -> LLMatcher:
        """A matcher at the beginning. `lead`: what comes before the grammar's text, in Lark's notation.

        Raises RequestError for a grammar that does not compile.
        """
        matcher = vocabulary.matcher(_with_lead(self.source, lead) if lead else self.source)
        if matcher.is_error():
            raise RequestError(f"{self.name} cannot be used; {schemas.plain(matcher.get_error())}")
        return matcher


WHITE = r"[ \t\r\n]{1,4}"
"""What models write after their reasoning."""


def of_response_format(value: Any, name: str = "response_format") -> Grammar | None:
    """The grammar of OpenAI's `response_format`, of a JSON schema, or of a class; None for {"type": "text"}.

    A class is a pydantic model (anything with `model_json_schema` and `model_validate_json`), a dataclass or a
    TypedDict; `parse` then makes one. A schema is held as it is, or refused, unless "strict" says False.
    """
    if hasattr(value, "model_json_schema") and hasattr(value, "model_validate_json"):
        held = schemas.hold(value.model_json_schema(), name, strict=True)
        return Grammar(held.grammar, name, held.warnings, value.model_validate_json)
    if isinstance(value, type) and (is_dataclass(value) or is_typeddict(value)):
        from pyllm.constraints.annotations import schema_of, value_of

        held = schemas.hold(schema_of(value), name, strict=True)
        return Grammar(held.grammar, name, held.warnings, lambda text: value_of(value, json.loads(text)))
    if not isinstance(value, Mapping):
        hint = "a class is a pydantic model, a dataclass or a TypedDict"
        raise refusal(name, value, "a JSON schema, a response format of OpenAI's or a class", hint)
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        value, strict = value.get("schema", {"type": "object"}), True
    elif kind == "json_schema":
        inner = value.get("json_schema", value)
        if not isinstance(inner, Mapping) or "schema" not in inner:
            raise RequestError(f"{name} of the type 'json_schema' must hold a schema, at json_schema.schema")
        value, strict = inner["schema"], inner.get("strict") is not False
    else:
        strict = True
    held = schemas.hold(value, name, strict=strict)
    return Grammar(held.grammar, name, held.warnings, json.loads)


def of_regex(pattern: str, name: str = "regex") -> Grammar:
    """All of an answer matches a regular expression, in the syntax of Rust's `regex`: no look-around, no
    back-references."""
    _check_text(pattern, name)
    return _valid(Grammar(lark_source("start: TEXT\nTEXT: " + regex_literal(pattern)), name))


def of_choice(texts: Any, name: str = "choice") -> Grammar:
    """An answer is one of several texts."""
    choices = entries_of(texts)
    if not choices or not all(isinstance(text, str) and text for text in choices):
        raise refusal(name, texts, "a list of texts, none of them empty")
    if len(choices) > MAX_CHOICES or sum(map(len, choices)) > MAX_CHARACTERS:
        raise RequestError(
            f"{name} has too many texts; {MAX_CHOICES} of {MAX_CHARACTERS} characters in all are allowed"
        )
    # One expression, so that a text may begin as another does.
    return _valid(Grammar(lark_source("start: TEXT\nTEXT: " + " | ".join(map(text_literal, choices))), name))


def of_grammar(text: str, name: str = "grammar") -> Grammar:
    """A grammar in llguidance's dialect of Lark (with a rule `start`), or in llama.cpp's GBNF (with a rule `root`).

    Raises RequestError with the line at fault.
    """
    _check_text(text, name)
    if re.search(r"^\s*[\w-]+\s*::=", text, re.MULTILINE):
        from pyllm.constraints.gbnf import to_lark

        return Grammar(lark_source(to_lark(text, name)), name)
    if len(re.findall(r"^\s*[\w.?!-]+\s*(?:\[[^\]\n]*\]\s*)?:", text, re.MULTILINE)) > MAX_RULES:
        raise RequestError(f"{name} has more than {MAX_RULES} rules")
    for found in re.finditer(r"%json\b\s*", text):
        try:
            inner, _ = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{name}: what follows %json is no JSON schema; {error}") from None
        schemas.check(inner, f"{name}, %json")
    # Without a vocabulary the names of control tokens are unknown, so it is first compiled for one.
    return Grammar(lark_source(text), name)


def _with_lead(source: str, lead: str) -> str:
    grammars = json.loads(source)["grammars"]
    named = [{"lark_grammar": f"start: {lead} @rest"}, {**grammars[0], "name": "rest"}, *grammars[1:]]
    return json.dumps({"grammars": named})


def either(calls: Grammar, form: Grammar) -> Grammar:
    """An answer is calls of tools, or has a form."""
    first, second = (json.loads(grammar.source)["grammars"] for grammar in (calls, form))
    grammars = [{"lark_grammar": "start: @calls | @form"}]
    grammars += [{**first[0], "name": "calls"}, *first[1:], {**second[0], "name": "form"}, *second[1:]]
    source = json.dumps({"grammars": grammars})
    return Grammar(source, f"{form.name} beside tools", (*calls.warnings, *form.warnings), form.parse)


def text_literal(text: str) -> str:
    """A text as a literal of Lark."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def regex_literal(pattern: str) -> str:
    """A regular expression as a literal of Lark."""
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(pattern, use_ascii='')}/"


def lark_source(text: str) -> str:
    """A grammar in Lark's notation, as `Grammar.source` has it."""
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def _valid(grammar: Grammar) -> Grammar:
    if message := on_large_stack(lambda: schemas.fault(grammar.source)):
        raise RequestError(f"{grammar.name} cannot be used; {message}")
    return grammar


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str) or not text:
        raise refusal(name, text, "a text that is not empty")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"{name} has {len(text)} characters; {MAX_CHARACTERS} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{name} holds lone surrogates, which are no characters") from None
