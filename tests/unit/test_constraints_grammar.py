"""What an answer may have to be: regular expressions, choices, Lark, GBNF, classes; the messages of refusals."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import jsonschema
import pytest
from constraint_tools import vocabulary_of

from pyllm.constraints import annotations
from pyllm.constraints.constraint import GrammarConstraint
from pyllm.constraints.grammar import Grammar, of_choice, of_grammar, of_regex, of_response_format
from pyllm.constraints.vocabulary import Vocabulary
from pyllm.errors import RequestError

Accepts = Callable[..., bool]


@pytest.fixture(scope="module")
def vocab(shared_data: Path) -> Vocabulary:
    return vocabulary_of(shared_data, "gpt-2")


@pytest.fixture(scope="module")
def accepts(vocab: Vocabulary) -> Accepts:
    """Whether a text is a whole answer, written a byte at a time."""
    single = {piece: i for i, piece in enumerate(vocab.token_bytes) if len(piece) == 1}

    def check(grammar: Grammar | None, text: str) -> bool:
        assert grammar is not None
        constraint = GrammarConstraint(grammar, vocab)
        try:
            for byte in text.encode():
                constraint.advance(single[bytes([byte])])
        except RequestError:
            return False
        return constraint.allows_end

    return check


@pytest.mark.parametrize(
    ("pattern", "fits", "others"),
    [
        (r"\d{3}", ["123"], ["12", "1234", "a"]),
        ("a|ab", ["a", "ab"], ["b", "abb"]),
        ("(a|ab)b", ["ab", "abb"], ["a"]),
        (r"^x/y\\$", ["x/y\\"], ["x/y"]),
        ("(?i)ja", ["JA", "ja"], ["j"]),
        ("[ä-ö]+", ["äö"], ["a"]),
    ],
)
def test_regex(accepts: Accepts, pattern: str, fits: list[str], others: list[str]) -> None:
    grammar = of_regex(pattern)
    assert all(accepts(grammar, text) for text in fits)
    assert not any(accepts(grammar, text) for text in others)


def test_choice(accepts: Accepts) -> None:
    texts = ["yes", "yes, please", 'say "no"\n', "日本", "\x7f\\"]
    assert all(accepts(of_choice(texts), text) for text in texts)
    assert not any(accepts(of_choice(texts), text) for text in ("y", "yes,", "no", ""))


def test_lark(accepts: Accepts) -> None:
    grammar = of_grammar('start: item ("," item)*\nitem: /[a-z]+/ | "(" start ")" | %json {"type": "boolean"}\n')
    assert accepts(grammar, "a,(b,true)")
    assert not accepts(grammar, "a,")


JSON = r"""
root   ::= object   # a comment
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
    string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    ("grammar", "fits", "others"),
    [
        (JSON, ['{"a": [1, 2.5e3, "x\\u00e9"],\n  "b": {}, "c":null}', "{}"], ['{"a"}', "[]", "{"]),
        (r'root ::= "\u0041\xe9" [\U0001F600-\U0001F64F]', ["Aé😀"], ["Aé"]),
        ('root ::= a-b a_b A-B\na-b ::= "x"\na_b ::= "y"\nA-B ::= "z"', ["xyz"], ["xy"]),
        ('root ::= start\nstart ::= "x"', ["x"], []),
        ("root ::= .", ["x", "\n", "é"], ["xy"]),
        ('root ::= s "b"\ns ::= [a-z]+', ["aab", "bb"], ["b"]),
        ('root ::= ("a" | "ab") "b"', ["ab", "abb"], ["a"]),
        ('root ::= "a"{2,3} "b"{2} "c"{1,}', ["aabbc", "aaabbcc"], ["abbc", "aabb"]),
        ('root ::= x?\nx ::= "a" x "b" | "c"', ["", "aacbb"], ["ab", "aacb"]),
        (r"root ::= [\[\]^a\-z]+ [^a-]", ["[^-]z", "azb"], ["bz", "aa"]),
        ('root ::= root "a" | "b"', ["b", "baa"], ["a"]),
    ],
)
def test_gbnf(accepts: Accepts, grammar: str, fits: list[str], others: list[str]) -> None:
    made = of_grammar(grammar)
    assert all(accepts(made, text) for text in fits)
    assert not any(accepts(made, text) for text in others)


REFUSED = [
    (of_regex, "(?=a)", "regex cannot be used; look-around, including look-ahead and look-behind, is not supported"),
    (of_regex, r"(a)\1", "regex cannot be used; backreferences are not supported"),
    (of_regex, "[", "regex cannot be used; unclosed character class"),
    (of_regex, "", "regex must be a text that is not empty, not ''"),
    (of_regex, "x" * 300_000, "regex has 300000 characters; 200000 are allowed"),
    (of_choice, [], "choice must be a list of texts, none of them empty, not a list"),
    (of_choice, "yes", "choice must be a list of texts, none of them empty, not 'yes'"),
    (of_choice, ["x"] * 20_000, "choice has too many texts; 10000 of 200000 characters in all are allowed"),
    (of_grammar, 'root ::= "a" )', "grammar, line 1, column 14: this fits no rule"),
    (of_grammar, 'root ::= "a"\nb ::= [a', "grammar, line 2, column 9: ] must come before the line's end"),
    (of_grammar, r'root ::= "\q"', "grammar, line 1, column 11: no such escape"),
    (of_grammar, r'root ::= "\ud800"', "grammar, line 1, column 17: no such character"),
    (of_grammar, 'root ::= "a"{x}', "grammar, line 1, column 13: a count is written {2}, {2,} or {2,5}"),
    (of_grammar, "root ::= !<[5]>", "grammar, line 1, column 16: all tokens but one (!<…>) cannot be held"),
    (of_grammar, "root ::= x", "grammar has no rule 'x', which another rule names"),
    (of_grammar, 'x ::= "a"', "grammar has no rule 'root', with which a GBNF grammar begins"),
    (of_grammar, "root ::= " + "(" * 99, "grammar, line 1, column 61: parentheses are nested more than 50 deep"),
    (of_grammar, "\n".join(f'a{i}: "x"' for i in range(2000)), "grammar has more than 1000 rules"),
    (of_grammar, "start: %json {", "grammar: what follows %json is no JSON schema; Expecting property name"),
    (of_grammar, 'start: %json {"multipleOf": 99991}', "grammar, %json: multipleOf needs more than 10000 states"),
    (of_response_format, 5, "response_format must be a JSON schema, a response format of OpenAI's or a class, not 5"),
    (of_response_format, {"type": "json_schema"}, "response_format of the type 'json_schema' must hold a schema, at"),
]


@pytest.mark.parametrize(("make", "value", "words"), REFUSED)
def test_refusals(make: Callable[[Any], Any], value: Any, words: str) -> None:
    with pytest.raises(RequestError) as error:
        make(value)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("start: x", 'grammar cannot be used; line 1, column 8: unknown name: "x"'),
        ('foo: "a"', "grammar cannot be used; no start rule found"),
        ("start: <|nope|>", 'grammar cannot be used; line 1, column 8: unknown special token: "<|nope|>"'),
    ],
)
def test_lark_is_refused_with_the_line(vocab: Vocabulary, grammar: str, words: str) -> None:
    with pytest.raises(RequestError) as error:
        GrammarConstraint(of_grammar(grammar), vocab)
    assert str(error.value).startswith(words)


def test_response_formats(accepts: Accepts) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for given in (
        schema,
        {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
        {"type": "json_schema", "name": "x", "schema": schema},
        {"type": "json_object", "schema": schema},
    ):
        grammar = of_response_format(given)
        assert accepts(grammar, '{"a": 1}')
        assert not accepts(grammar, '{"b": 1}')
        assert grammar is not None
        assert grammar.parse is not None
        assert grammar.parse('{"a": 1}') == {"a": 1}
    assert accepts(of_response_format({"type": "json_object"}), '{"x": [1]}')
    assert of_response_format({"type": "text"}) is None
    loose = {"type": "json_schema", "json_schema": {"schema": {"type": "array", "uniqueItems": True}, "strict": False}}
    grammar = of_response_format(loose)
    assert grammar is not None
    assert grammar.warnings == ("response_format: not held: #: uniqueItems is not supported",)


class Unit(enum.Enum):
    celsius = "c"
    fahrenheit = "f"


@dataclass
class Place:
    city: str
    nearby: list[Place] = field(default_factory=list)


class Options(TypedDict):
    unit: Unit
    days: NotRequired[int]


@dataclass
class Trip:
    places: list[Place]
    options: Options
    mood: Literal["good", 1]
    pair: tuple[int, str]
    extra: dict[str, float] | None = None
    goal: Place | str | None = None


TRIP = Trip(
    [Place("Paris", [Place("Lyon")])], {"unit": Unit.celsius, "days": 2}, 1, (1, "x"), {"a": 1.0}, Place("Rome")
)
TRIP_JSON = {
    "places": [{"city": "Paris", "nearby": [{"city": "Lyon"}]}],
    "options": {"unit": "c", "days": 2},
    "mood": 1,
    "pair": [1, "x"],
    "extra": {"a": 1},
    "goal": {"city": "Rome"},
}


def test_dataclasses_and_typed_dicts(accepts: Accepts) -> None:
    jsonschema.validate(TRIP_JSON, annotations.schema_of(Trip))
    for key in ("places", "options", "mood", "pair"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in TRIP_JSON.items() if k != key}, annotations.schema_of(Trip))
    text = json.dumps(TRIP_JSON)
    grammar = of_response_format(Trip)
    assert accepts(grammar, text)
    assert grammar is not None
    assert grammar.parse is not None
    assert grammar.parse(text) == TRIP
    options = of_response_format(Options)
    assert accepts(options, '{"unit": "f"}')
    assert not accepts(options, '{"days": 1}')


def test_a_class_without_a_schema_is_refused() -> None:
    @dataclass
    class Odd:
        when: complex

    with pytest.raises(RequestError, match=r"Odd\.when is of a type that has no JSON schema, complex"):
        of_response_format(Odd)


def test_a_class_with_types_of_a_function_is_refused() -> None:
    @dataclass
    class Inner:
        a: int

    @dataclass
    class Outer:
        inner: Inner

    with pytest.raises(RequestError, match="a type of Outer is not found where it is defined; name 'Inner'"):
        of_response_format(Outer)


class Model:
    """As pydantic's classes look from outside."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

    @classmethod
    def model_validate_json(cls, text: str) -> tuple[type, Any]:
        return cls, json.loads(text)


def test_classes_like_pydantic_models(accepts: Accepts) -> None:
    grammar = of_response_format(Model)
    assert accepts(grammar, '{"a": 1}')
    assert grammar is not None
    assert grammar.parse is not None
    assert grammar.parse('{"a": 1}') == (Model, {"a": 1})
