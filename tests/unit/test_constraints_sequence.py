"""Constraints of one sequence, and the pool of masks: forced tokens, rollback, arming, calls of tools, errors."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from constraint_tools import allowed, load, vocabulary_of, walk

from pyllm import gguf
from pyllm.chat.dialects.parser import Parser
from pyllm.chat.dialects.spec import Calls, DialectSpec, HeadBody, KeyForm, ObjectBody, TaggedArguments
from pyllm.chat.events import ToolCallEnd
from pyllm.constraints.constraint import ArmedConstraint, Constraint, GrammarConstraint
from pyllm.constraints.grammar import Grammar, either, of_choice, of_grammar, of_regex, of_response_format
from pyllm.constraints.pool import MaskPool
from pyllm.constraints.tools import of_tools
from pyllm.constraints.vocabulary import Vocabulary, vocabulary
from pyllm.errors import RequestError
from pyllm.tokenizers import from_gguf

VOCABULARIES = ["bert-bge", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "starcoder"]
SCHEMA = {
    "type": "object",
    "properties": {"first_name": {"type": "string"}, "kind": {"enum": ["alpha", "beta"]}},
    "required": ["first_name", "kind"],
}


@pytest.fixture(scope="module", params=["gpt-2", "llama-spm"])
def vocab(request: pytest.FixtureRequest, shared_data: Path) -> Vocabulary:
    return vocabulary_of(shared_data, request.param)


@pytest.fixture(scope="module")
def qwen(shared_data: Path) -> Vocabulary:
    return vocabulary_of(shared_data, "qwen2")


def person() -> Grammar:
    grammar = of_response_format(SCHEMA)
    assert grammar is not None
    return grammar


def write(constraint: Constraint, vocab: Vocabulary, text: str, special: bool = False) -> list[int]:
    """Append a text's tokens."""
    tokens = vocab.tokenizer.encode(text, False, True) if special else vocab.tokenizer.encode_within(text)
    for token in tokens:
        constraint.advance(token)
    return tokens


@pytest.mark.parametrize("name", VOCABULARIES)
def test_bytes_of_all_tokens(shared_data: Path, name: str) -> None:
    tokenizer = load(shared_data / "vocabs" / f"ggml-vocab-{name}.gguf")
    assert tokenizer.all_bytes() == [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3", "qwen2"])
def test_text_within_a_text_is_what_its_tokens_say(shared_data: Path, name: str) -> None:
    tokenizer = load(shared_data / "vocabs" / f"ggml-vocab-{name}.gguf")
    for text in ('{"a": 1', " b", "é\n日本", "x<|im_end|></s>"):
        tokens = tokenizer.encode_within(text)
        assert b"".join(map(tokenizer.token_bytes, tokens)) == text.encode()
        assert not any(map(tokenizer.is_special, tokens))


def test_a_vocabulary_is_kept_with_its_tokenizer(shared_data: Path) -> None:
    with gguf.open_gguf(shared_data / "vocabs" / "ggml-vocab-llama-spm.gguf") as file:
        tokenizer = from_gguf(file.metadata)
    found = vocabulary(tokenizer)
    assert vocabulary(tokenizer) is found
    kept = weakref.ref(found)
    del tokenizer, found
    gc.collect()
    assert kept() is None


def test_control_tokens_are_no_text(vocab: Vocabulary) -> None:
    choices = allowed(GrammarConstraint(of_regex(r"(?s:.{1,60})"), vocab), vocab)
    assert len(choices) > 10_000
    assert not any(vocab.tokenizer.is_special(token) for token in choices)


def test_forced_tokens_are_those_that_the_masks_leave(vocab: Vocabulary) -> None:
    constraint = GrammarConstraint(person(), vocab, continues=True)
    write(constraint, vocab, '{"')
    forced = constraint.forced()
    assert b"".join(vocab.token_bytes[i] for i in forced).startswith(b"first_")
    for token in forced:
        assert allowed(constraint, vocab) == [token]
        constraint.advance(token)
    assert constraint.forced() == []
    assert len(allowed(constraint, vocab)) > 1


def test_a_token_that_is_not_allowed_changes_nothing(vocab: Vocabulary) -> None:
    constraint = GrammarConstraint(person(), vocab)
    before = allowed(constraint, vocab)
    wrong = vocab.tokenizer.encode_within("[")[0]
    for token in (wrong, min(vocab.end_ids)):
        with pytest.raises(RequestError, match=f"response_format does not allow the token {token} here"):
            constraint.advance(token)
    assert allowed(constraint, vocab) == before


def test_the_end(vocab: Vocabulary) -> None:
    constraint = GrammarConstraint(of_choice(["ja", "jawohl"]), vocab, continues=True)
    write(constraint, vocab, "ja")
    assert constraint.allows_end
    assert not constraint.finished
    constraint.advance(min(vocab.end_ids))
    assert constraint.finished
    constraint.rollback(1)
    assert not constraint.finished
    write(constraint, vocab, "wohl")
    assert constraint.finished
    assert allowed(constraint, vocab) == sorted(vocab.end_ids)
    assert constraint.forced() in ([], [*vocab.end_ids][:1])


def test_rollback_restores_masks(vocab: Vocabulary) -> None:
    constraint = GrammarConstraint(person(), vocab)
    tokens, done = walk(GrammarConstraint(person(), vocab), vocab, seed=5)
    assert done
    masks = [allowed(constraint, vocab)]
    for token in tokens:
        constraint.advance(token)
        masks.append(allowed(constraint, vocab))
    for n in (1, 3, 2):
        constraint.rollback(n)
        tokens, masks = tokens[:-n], masks[:-n]
        assert allowed(constraint, vocab) == masks[-1]
    constraint.rollback(len(tokens))
    assert allowed(constraint, vocab) == masks[0]
    constraint.rollback(0)


def test_constraints_of_one_grammar_are_apart(vocab: Vocabulary) -> None:
    """The compiled grammar is kept and copied."""
    a, b = (GrammarConstraint(of_regex("[ab]x[cd]"), vocab, continues=True) for _ in range(2))
    first = allowed(b, vocab)
    write(a, vocab, "bx")
    assert allowed(b, vocab) == first
    write(b, vocab, "a")
    assert b"x" in [vocab.token_bytes[i] for i in allowed(b, vocab)]
    assert b"c" in [vocab.token_bytes[i] for i in allowed(a, vocab)]


def test_the_first_token_of_sentencepiece(shared_data: Path) -> None:
    """`▁{` is the natural first token: its space is dropped from the text, so the grammar says nothing of it."""
    vocab = vocabulary_of(shared_data, "llama-spm")
    tokenizer = vocab.tokenizer
    natural = tokenizer.encode('{"first_name"', add_special=False)
    assert vocab.token_bytes[natural[0]].startswith(b" {")
    begins = GrammarConstraint(person(), vocab)
    for token in natural:
        assert token in allowed(begins, vocab)
        begins.advance(token)
    assert tokenizer.decode(natural) == '{"first_name"'
    continues = GrammarConstraint(person(), vocab, continues=True)
    assert natural[0] not in allowed(continues, vocab)
    with pytest.raises(RequestError, match="does not allow"):
        continues.advance(natural[0])
    assert allowed(continues, vocab)


def test_grammars_without_an_end(vocab: Vocabulary) -> None:
    for grammar in (of_grammar("start: a\na: a"), of_response_format({"$ref": "#"})):
        assert grammar is not None
        constraint = GrammarConstraint(grammar, vocab, continues=True)
        with pytest.raises(RequestError, match=f"{grammar.name} allows no token here; some rule or"):
            allowed(constraint, vocab)


# Armed constraints.


def test_a_grammar_after_reasoning(vocab: Vocabulary) -> None:
    constraint = ArmedConstraint(person(), vocab, ["</think>"], inclusive=False, needed=True)
    assert not constraint.free
    assert not constraint.allows_end
    assert allowed(constraint, vocab) == [i for i in range(vocab.n_tokens) if i not in vocab.end_ids]
    with pytest.raises(RequestError, match="does not allow"):
        constraint.advance(min(vocab.end_ids))
    before = write(constraint, vocab, "</thin> [1] </")
    assert constraint.matcher is None
    assert constraint.forced() == []
    after = write(constraint, vocab, "think>\n\n")
    assert constraint.matcher is not None
    found = {vocab.token_bytes[i] for i in allowed(constraint, vocab)}
    assert b"{" in found
    assert b"[" not in found
    write(constraint, vocab, '{"first_name": "x", "kind": "beta"}')
    assert constraint.finished
    constraint.rollback(3)
    assert constraint.matcher is not None
    constraint.rollback(len(vocab.tokenizer.encode_within('{"first_name": "x", "kind": "beta"}')) - 3 + len(after))
    assert constraint.matcher is None
    constraint.rollback(len(before))
    assert constraint.matcher is None


CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/n"}},
        "required": ["city"], "$defs": {"n": {"enum": [1, 2]}}}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "get_weather_map", "parameters": {"properties": {"zoom": {}}}}},
    {"type": "function", "function": {"name": "now"}},
]
HERMES = Calls(ObjectBody(), start=("<tool_call>",), end=("</tool_call>",))
QWEN_CODER = Calls(
    HeadBody(("name", ">"), TaggedArguments("<parameter=", (KeyForm(">", (), "</parameter>"),), "\n")),
    start=("<tool_call>", "<function="),
    end=("</function>", "</tool_call>"),
)
FORMS: dict[str, tuple[Calls, str, Sequence[str]]] = {
    "hermes": (
        HERMES,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
        ['<tool_call>{"name": "nope', '<tool_call>\n{"name": "get_weather", "arguments": {}', "Hello"],
    ),
    "list": (
        Calls(ObjectBody(id="id"), section_start=("[TOOL_CALLS]", "["), section_end=("]",), separator=","),
        '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "a1B2c3D4e"}, '
        '{"name": "now", "arguments": {}, "id": "a1B2c3D4e"}]',
        ['[TOOL_CALLS][{"name": "now", "arguments": {}}', "[TOOL_CALLS][]"],
    ),
    "bare": (
        Calls(ObjectBody("name", "parameters"), start=("<|python_tag|>",), separator=";", bare=True),
        '{"name": "get_weather_map", "parameters": {"zoom": 3}}; {"name": "now", "parameters": {}}',
        ['{"name": "now", "arguments"', "[]"],
    ),
    "name first": (
        Calls(HeadBody(("name", "\n")), start=("<|call|>",), end=("<|end_call|>",)),
        '<|call|>get_weather\n{"city": "Rome"}<|end_call|>',
        ["<|call|>get_weather{", "<|call|>nope"],
    ),
    "name in id": (
        Calls(HeadBody(("id", "<|arguments|>"), name_in_id=r"(?:functions\.)?(.+?)(?::\d+)?"), start=("<|call|>",)),
        '<|call|>functions.get_weather_map:0<|arguments|>{"zoom": [1]}',
        ["<|call|>functions.nope", "<|call|>now"],
    ),
    "tags": (
        QWEN_CODER,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nSan <b>\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        [
            "<tool_call>\n<function=get_weather>\n<parameter=days>",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nx\n</parameter>\n<parameter=days>\n3",
            "<tool_call>\n<function=nope>",
            "<tool_call>\n<function= get_weather>",
        ],
    ),
    "keys in tags": (
        Calls(
            HeadBody(("name",), TaggedArguments("<key>", (KeyForm("</key>", ("<value>",), "</value>"),))),
            start=("<call>",),
            end=("</call>",),
        ),
        "<call>get_weather_map\n<key>zoom</key>\n<value>[1, 2]</value>\n</call>",
        ["<call>get_weather_map<key>city"],
    ),
    "name as key": (Calls(ObjectBody("")), '{"get_weather": {"city": "Bonn"}}', ['{"name"']),
}


@pytest.mark.parametrize("name", FORMS)
def test_calls_in_the_forms_of_dialects(qwen: Vocabulary, name: str) -> None:
    calls, right, wrong = FORMS[name]
    grammar = of_tools(TOOLS, calls, qwen.tokenizer, ids="nine" if "id" in name or name == "list" else "hex")
    assert not grammar.warnings
    constraint = GrammarConstraint(grammar, qwen)
    write(constraint, qwen, right, special=True)
    assert constraint.allows_end
    for text in wrong:
        with pytest.raises(RequestError, match="tools does not allow the token"):
            write(GrammarConstraint(grammar, qwen), qwen, text, special=True)


MAIL = {
    "properties": {
        "to": {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 2},
        "kind": {"enum": ["draft", "final"]},
        "level": {"type": "integer", "minimum": -3, "maximum": 9},
        "code": {"type": "string", "pattern": "^x[0-9]", "maxLength": 4},
        "day": {"type": "string", "format": "date"},
        "deep": {"$ref": "#/$defs/deep"},
    },
    "required": ["to", "kind", "level", "code", "deep"],
    "$defs": {
        "deep": {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"]},
        "n": {"const": 1},
    },
}


@pytest.mark.parametrize("seed", range(6))
def test_a_random_call_in_tags_fits_its_schema(seed: int, vocab: Vocabulary) -> None:
    tools = [{"function": {"name": "send", "parameters": {**MAIL, "type": "object"}}}]
    grammar = of_tools(tools, QWEN_CODER, vocab.tokenizer, parallel=False)
    assert grammar.warnings == ("tool send, day: not held: format, as this model writes texts as they are",)
    del (plain := json.loads(json.dumps(MAIL)))["properties"]["day"]
    tools = [{"function": {"name": "send", "parameters": {**plain, "type": "object"}}}]
    grammar = of_tools(tools, QWEN_CODER, vocab.tokenizer, parallel=False)
    tokens, done = walk(GrammarConstraint(grammar, vocab), vocab, seed)
    assert done
    parser = Parser(DialectSpec("derived", calls=QWEN_CODER), tools)
    events = [*parser.push(vocab.tokenizer.decode(tokens)), *parser.finish()]
    (call,) = [event.call for event in events if isinstance(event, ToolCallEnd)]
    assert call is not None
    jsonschema.validate(call.arguments, plain)


def test_control_tokens_of_a_call_are_tokens(qwen: Vocabulary) -> None:
    grammar = of_tools(TOOLS, Calls(ObjectBody(), start=("<|im_start|>",), end=("</x>",)), qwen.tokenizer)
    constraint = GrammarConstraint(grammar, qwen)
    start = qwen.tokenizer.token_id("<|im_start|>")
    assert allowed(constraint, qwen) == [start]


def test_a_random_call_is_one(vocab: Vocabulary) -> None:
    grammar = of_tools(TOOLS, HERMES, vocab.tokenizer, only="get_weather", parallel=False)
    for seed in range(5):
        tokens, done = walk(GrammarConstraint(grammar, vocab), vocab, seed)
        text = vocab.tokenizer.decode(tokens)
        if done:
            call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            assert call["name"] == "get_weather"
            assert isinstance(call["arguments"]["city"], str)
            assert text.count("<tool_call>") == 1


def test_calls_are_armed_where_they_begin(qwen: Vocabulary) -> None:
    grammar = of_tools(TOOLS, HERMES, qwen.tokenizer)
    constraint = ArmedConstraint(grammar, qwen, ["<tool_call>"], inclusive=True, needed=False)
    assert constraint.free
    assert constraint.allows_end
    write(constraint, qwen, "I look that up.<tool_call>\n{")
    assert not constraint.free
    assert not constraint.allows_end
    write(constraint, qwen, '"name": "now", "arguments": {}}\n</tool_call>')
    assert constraint.allows_end
    with pytest.raises(RequestError, match="does not allow"):
        write(constraint, qwen, "More")


def test_a_call_that_begins_otherwise_stays_free(shared_data: Path) -> None:
    vocab = vocabulary_of(shared_data, "gpt-2")
    grammar = of_tools(TOOLS, Calls(ObjectBody(), start=("{{",), end=("}}",)), vocab.tokenizer)
    token = vocab.tokenizer.token_id('"},{"')
    assert token is not None
    free = ArmedConstraint(grammar, vocab, ["},"], inclusive=True, needed=False)
    free.advance(token)
    assert free.free


def test_tools_that_cannot_be_held(qwen: Vocabulary) -> None:
    odd = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    worse = {"type": "object", "properties": {"x": {"$ref": "https://example.com"}}}
    tools = [
        {"function": {"name": "odd", "parameters": odd}},
        {"function": {"name": "worse", "parameters": worse}},
    ]
    grammar = of_tools(tools, HERMES, qwen.tokenizer)
    assert [text.split(";")[0] for text in grammar.warnings] == [
        "tool odd: not held: #/properties/x: uniqueItems is not supported",
        "tool worse: $ref 'https://example.com' cannot be followed",
    ]
    assert grammar.warnings[1].endswith("any JSON object will do")
    write(
        GrammarConstraint(grammar, qwen), qwen, '<tool_call>{"name": "worse", "arguments": {"y": [1, {}]}}</tool_call>'
    )
    strict = [{"function": {"name": "odd", "strict": True, "parameters": odd}}]
    with pytest.raises(RequestError, match="tool odd: the schema cannot be held at #/properties/x/uniqueItems"):
        of_tools(strict, HERMES, qwen.tokenizer)


def test_calls_of_tools_or_a_form(qwen: Vocabulary) -> None:
    form = of_response_format({"type": "object", "properties": {"name": {"type": "integer"}}, "required": ["name"]})
    assert form is not None
    made = either(of_tools(TOOLS, HERMES, qwen.tokenizer), form)
    for text in (
        '{"name": 12}',
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    ):
        constraint = GrammarConstraint(made, qwen)
        write(constraint, qwen, text)
        assert constraint.allows_end
    assert made.parse is not None
    assert made.parse('{"name": 12}') == {"name": 12}
    with pytest.raises(RequestError):
        write(GrammarConstraint(made, qwen), qwen, '{"name": "get_weather"')


def test_refusals_of_tools(qwen: Vocabulary) -> None:
    with pytest.raises(
        RequestError, match="tool_choice names 'nope', and there is no such tool; there are get_weather,"
    ):
        of_tools(TOOLS, HERMES, qwen.tokenizer, only="nope")
    with pytest.raises(RequestError, match="tool_choice needs tools, and there are none"):
        of_tools([], HERMES, qwen.tokenizer)


# The pool.


def test_masks_of_a_step(vocab: Vocabulary) -> None:
    waiting = ArmedConstraint(person(), vocab, ["</think>"], inclusive=False, needed=True)
    free = ArmedConstraint(person(), vocab, ["</think>"], inclusive=False, needed=False)
    dead = GrammarConstraint(of_grammar("start: a\na: a"), vocab, continues=True)
    held = [GrammarConstraint(of_choice([a, "zz"]), vocab, continues=True) for a in ("a", "b", "c")]
    rows: list[Constraint | None] = [held[0], None, waiting, dead, free, held[1], held[2]]
    pool = MaskPool(vocab.n_tokens)
    for _ in range(3):
        pool.begin(rows)
        masks = pool.get()
        assert masks is not None
        assert [*masks.errors] == [3]
        assert "allows no token" in str(masks.errors[3])
        for i, row in enumerate(rows):
            bits = np.unpackbits(masks.bits[i].view(np.uint8), bitorder="little")[: vocab.n_tokens]
            if row is None or row.free:
                assert bits.all()
            elif i not in masks.errors:
                assert np.flatnonzero(bits).tolist() == allowed(row, vocab)
    pool.begin([None, free])
    assert pool.get() is None
    assert pool.get() is None
    pool.begin(rows)
    pool.begin(rows[:1])  # a step that failed has not fetched its own
    masks = pool.get()
    assert masks is not None
    assert len(masks.bits) == 1
    pool.close()


def test_more_logits_than_tokens(vocab: Vocabulary) -> None:
    """Many models have more rows than their vocabulary has tokens."""
    n = vocab.n_tokens + 100
    pool = MaskPool(n)
    for count in (1, 3):
        constraints = [GrammarConstraint(of_regex("(?s:.*)"), vocab) for _ in range(count)]
        pool.begin(constraints)
        masks = pool.get()
        assert masks is not None
        for row in masks.bits:
            bits = np.unpackbits(row.view(np.uint8), bitorder="little")[:n]
            assert bits[: vocab.n_tokens].sum() == len(allowed(constraints[0], vocab))
            assert not bits[vocab.n_tokens :].any()
    pool.close()
