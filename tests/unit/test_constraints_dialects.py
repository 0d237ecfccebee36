"""Random calls under the grammar of each dialect: the dialect's parser reads them, and they fit the tools' schemas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from constraint_tools import allowed, load, walk
from dialect_cases import Gathered, read

import tool_cases
from pyllm import gguf
from pyllm.chat import ChatTemplate
from pyllm.chat.dialects import Dialect, DialectSpec
from pyllm.chat.dialects.known import functionary, gemma4, harmony, kimi3, lfm2, minimax3
from pyllm.chat.dialects.parser import Parser
from pyllm.constraints.constraint import GrammarConstraint
from pyllm.constraints.tools import of_tools
from pyllm.constraints.vocabulary import vocabulary
from pyllm.errors import RequestError
from pyllm.tokenizers import Tokenizer, from_gguf

CONTROL = 3
MARKS = [
    *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>"),
    *("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>", "<|turn>", "<turn|>"),
    *("<|tool_call_start|>", "<|tool_call_end|>", "]<]minimax[>[", "<tool_call>", "</tool_call>", "<|python_tag|>"),
    *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|START_ACTION|>", "<|END_ACTION|>", "<arg_key>", "</arg_value>"),
    *("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<｜tool▁sep｜>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
]
"""Tokens of their models' vocabularies."""
HAND_WRITTEN = {
    module.__name__.rpartition(".")[2]: module.KNOWN.spec
    for module in (functionary, gemma4, harmony, kimi3, lfm2, minimax3)
}
"""Dialects that are not JSON."""
FORMATS = jsonschema.FormatChecker(["email", "ipv4", "uuid"])
"""Without dates: days that a month doesn't have are beyond the expressions of formats."""
SIMPLE = ["get_weather", "search_files", "git_commit", "now"]


@pytest.fixture(scope="module", params=["tokens", "text"])
def words(request: pytest.FixtureRequest, shared_data: Path) -> Tokenizer:
    """A tokenizer with the marks of all dialects as control tokens, and one that has none of them."""
    path = shared_data / "vocabs" / "ggml-vocab-gpt-2.gguf"
    if request.param == "text":
        return load(path)
    with gguf.open_gguf(path) as file:
        metadata = dict(file.metadata)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *MARKS]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *(CONTROL for _ in MARKS)]
    return from_gguf(metadata)


class Answered(NamedTuple):
    """A random answer as it is read, as it is written, whether it came to its end, and what is not held."""

    found: Gathered
    text: str
    done: bool
    warnings: tuple[str, ...]


def offered(names: list[str], **more: Any) -> list[dict[str, Any]]:
    return [{"function": {"name": name, "parameters": tool_cases.TOOLS[name], **more}} for name in names]


def answered(spec: DialectSpec, words: Tokenizer, tools: list[dict[str, Any]], seed: int, **options: Any) -> Answered:
    form = spec.calls or spec.channels
    assert form is not None
    grammar = of_tools(tools, form, words, ids=spec.ids, **options)
    known = vocabulary(words)
    tokens, done = walk(GrammarConstraint(grammar, known), known, seed, 300, [*sorted(spec.literals)])
    decoder = words.stream(skip_special=False)
    pieces = [(decoder.push(token), token) for token in tokens]
    control = {i: t for t, i in words.vocab.special_ids.items() if any(t in mark for mark in spec.literals)}
    return Answered(
        read(Parser(spec, tools, control=control), pieces, cut_off=not done),
        "".join(text for text, _ in pieces),
        done,
        grammar.warnings,
    )


def check(answer: Answered) -> None:
    """All of an answer is calls whose arguments fit; of one that is cut, all before its end."""
    for name, arguments in answer.found.calls:
        if not any(f"tool {name}" in warning for warning in answer.warnings):
            jsonschema.Draft202012Validator(tool_cases.TOOLS[name], format_checker=FORMATS).validate(arguments)
    if answer.done:
        assert answer.found.calls, answer.text
        assert not answer.found.reasons, answer.text
        assert not answer.found.text.strip(), answer.text


def spec_of(shared_data: Path, name: str, words: Tokenizer) -> DialectSpec:
    source = (shared_data / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return Dialect(ChatTemplate({"default": source}, words)).spec


TEMPLATES = [path.stem for path in sorted((Path(__file__).parents[3] / "shared/data/templates").glob("*.jinja"))]


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_of_every_template(shared_data: Path, words: Tokenizer, name: str) -> None:
    spec = spec_of(shared_data, name, words)
    answers = [answered(spec, words, offered(SIMPLE), seed, parallel=seed % 2 > 0) for seed in range(4)]
    for answer in answers:
        check(answer)
    assert any(answer.done for answer in answers)


@pytest.mark.parametrize("tool", tool_cases.TOOLS)
@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_schemas_of_tools(words: Tokenizer, name: str, tool: str) -> None:
    check(answered(HAND_WRITTEN[name], words, offered([tool]), 7, parallel=False))


PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "days": {"type": "integer", "maximum": 14},
        "metric": {"type": "boolean"},
        "near": {"type": "array", "items": {"$ref": "#/$defs/point"}},
        "kind": {"enum": ["rain", 3, None]},
    },
    "required": ["city"],
    "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
}
TOOLS = [{"function": {"name": "look", "parameters": PLACE}}, {"function": {"name": "now"}}]
WRITTEN: dict[str, tuple[str, list[str]]] = {
    "lfm2": (
        '<|tool_call_start|>[look(city="Paris", days=3, metric=True, near=[{"x": 1.5}], kind=None), now()]'
        "<|tool_call_end|>",
        [
            "<|tool_call_start|>[look(days",
            '<|tool_call_start|>[look(city="London',
            '<|tool_call_start|>[look(city="a", metric=true',
            '<|tool_call_start|>[look(city="a", kind="snow',
            "<|tool_call_start|>[now(), nope(",
            "<|tool_call_start|>now(",
            "Hello",
        ],
    ),
    "gemma4": (
        '<|tool_call>call:look{city:<|"|>Paris<|"|>,days:3,metric:true,near:[{x:1.5}],kind:<|"|>rain<|"|>}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>",
        [
            '<|tool_call>call:look{city:"',
            '<|tool_call>call:look{city:<|"|>London',
            '<|tool_call>call:look{city:<|"|>a<|"|>,near:[{y',
            '<|tool_call>call:look{city:<|"|>a<|"|>,days:15',
            "<|tool_call>look",
        ],
    ),
    "harmony": (
        "<|channel|>analysis<|message|>They ask.<|end|><|start|>assistant<|channel|>commentary to=functions.look "
        '<|constrain|>json<|message|>{"city": "Paris"}',
        [
            "<|channel|>final",
            "<|channel|>analysis<|message|>They ask.<|end|><|start|>assistant<|channel|>final",
            "<|channel|>commentary to=functions.nope",
            ' to=functions.look<|channel|>commentary json<|message|>{"days',
            "<|channel|>commentary<|message|>",
        ],
    ),
    "functionary": (
        'look\n{"city": "Paris"}>>>now\n{}',
        ["all\n", "look{", 'look\n{"days"', "now\n{}\nlook"],
    ),
    "minimax3": (
        '^<tool_call>^<invoke name="look">^<city>Paris^</city>^<days>3^</days>^<metric>true^</metric>'
        "^<near>^<item>^<x>1.5^</x>^</item>^</near>^<kind>rain^</kind>^</invoke>^</tool_call>".replace(
            "^", minimax3.KNOWN.spec.calls.body.mark
        ),
        [],
    ),
}


def write(spec: DialectSpec, words: Tokenizer, text: str, **options: Any) -> GrammarConstraint:
    form = spec.calls or spec.channels
    assert form is not None
    constraint = GrammarConstraint(of_tools(TOOLS, form, words, **options), vocabulary(words))
    for token in words.encode(text, add_special=False, parse_special=True):
        constraint.advance(token)
    return constraint


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_as_models_write_them(words: Tokenizer, name: str) -> None:
    spec = HAND_WRITTEN[name]
    right, wrong = WRITTEN[name]
    assert write(spec, words, right).allows_end
    for text in wrong:
        with pytest.raises(RequestError, match="tools does not allow the token"):
            write(spec, words, text)


@pytest.mark.parametrize("name", ["harmony", "functionary"])
def test_headers_that_are_written_are_those_that_are_read(name: str) -> None:
    channels = HAND_WRITTEN[name].channels
    assert channels is not None
    for head in channels.calls:
        found = re.search(channels.call, "".join("f" if part == "name" else part for part in head))
        assert found is not None
        assert found[1] == "f"
    assert all(re.search(channels.reasoning, head) for head in channels.thoughts)
    assert not any(re.search(channels.call, head) for head in channels.texts if not channels.text)
    assert all(re.search(channels.text, head) for head in channels.texts)


@pytest.mark.parametrize(
    ("name", "texts", "wrong"),
    [
        (
            "harmony",
            [
                "<|channel|>final<|message|>It rains.",
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It rains.",
                '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"city": "Rome"}',
            ],
            ['<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"days', "Hello"],
        ),
        ("functionary", ["all\nIt rains.", 'all\nI look.>>>look\n{"city": "Rome"}'], ['all\nI look.>>>look\n{"days']),
    ],
)
def test_strict_tools_in_channels_leave_texts_free(
    words: Tokenizer, name: str, texts: list[str], wrong: list[str]
) -> None:
    for text in texts:
        assert write(HAND_WRITTEN[name], words, text, required=False).allows_end
    for text in wrong:
        with pytest.raises(RequestError, match="tools does not allow the token"):
            write(HAND_WRITTEN[name], words, text, required=False)


def test_markers_are_tokens(words: Tokenizer) -> None:
    known = vocabulary(words)
    token = words.vocab.special_ids.get("<|tool_call_start|>")
    first = allowed(write(HAND_WRITTEN["lfm2"], words, ""), known)
    if token is not None:
        assert first == [token]
    assert all(b"<|tool_call_start|>".startswith(known.token_bytes[i]) for i in first)


def test_arguments_beyond_a_form_of_calls(words: Tokenizer) -> None:
    either = {"anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}]}
    lfm, gemma = (HAND_WRITTEN[name].calls for name in ("lfm2", "gemma4"))
    assert lfm is not None
    assert gemma is not None
    tools = [{"function": {"name": "f", "parameters": either}}]
    assert of_tools(tools, lfm, words).warnings == ("tool f: not held: anyOf, in the form of this model's calls",)
    assert not of_tools(tools, gemma, words).warnings
    strict = [{"function": {"name": "f", "parameters": either, "strict": True}}]
    with pytest.raises(RequestError, match="tool f: anyOf cannot be held in the form of this model's calls"):
        of_tools(strict, lfm, words)
