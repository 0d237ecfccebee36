"""Markers that are control tokens are matched as tokens; dialects by templates of a few lines."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import pytest
from dialect_cases import TOOLS, Gathered, read
from test_tokenizers_metadata import bpe_metadata

from pyllm.chat import ChatTemplate
from pyllm.chat.dialects import Dialect, dialect_of
from pyllm.chat.dialects.derive import tools
from pyllm.chat.dialects.literals import literal
from pyllm.chat.dialects.probing import Probe
from pyllm.chat.dialects.spec import HeadBody, ObjectBody, marker
from pyllm.errors import PyllmWarning
from pyllm.tokenizers import Tokenizer, from_gguf

CONTROL, USER_DEFINED = 3, 4
BEGIN = "{% for m in messages %}<|{{ m.role }}|>"
END = "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
OFFER = "{{ tools | tojson if tools }}"
THINK = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
CALL = (
    "{% for c in m.tool_calls %}<tool_call>"
    '{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}}'
    "</tool_call>{% endfor %}"
)
HERMES = OFFER + BEGIN + THINK + "{{ m.content }}" + CALL + END
CALLED = '{"name": "get_weather", "arguments": {"city": "Paris"}}'


def tokenizer(kind: int, *texts: str) -> Tokenizer:
    return from_gguf(bpe_metadata(*((text, kind) for text in texts)))


def template(source: str, words: Tokenizer | None = None) -> ChatTemplate:
    return ChatTemplate({"default": source}, words)


def tokens(words: Tokenizer, text: str, control: bool = True) -> list[tuple[str, int]]:
    """A text as a model writes it token by token: its markers as tokens, or spelled."""
    ids = words.encode(text, add_special=False, parse_special=control)
    decoder = words.stream(skip_special=False)
    return [(decoder.push(i), i) for i in ids]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tokenizer(CONTROL, "<tool_call>", "</tool_call>", "<think>", "</think>", "<|end|>", "<|other|>")


@pytest.fixture(scope="module")
def dialect(words: Tokenizer) -> Dialect:
    return Dialect(template(HERMES, words))


def test_markers_are_tokens(dialect: Dialect, words: Tokenizer) -> None:
    found = read(dialect.parser(TOOLS), tokens(words, f"<think>R</think>T<tool_call>{CALLED}</tool_call>"))
    assert (found.text, found.reasoning, found.calls) == ("T", "R", [("get_weather", {"city": "Paris"})])


def test_text_that_spells_a_marker_stays_text(dialect: Dialect, words: Tokenizer) -> None:
    text = f"It writes <think> and <tool_call>{CALLED}</tool_call>."
    assert read(dialect.parser(TOOLS), tokens(words, text, control=False)).text == text
    # In reasoning and in values, too.
    spelled = [*tokens(words, "<think>"), *tokens(words, "a </think> b", control=False), *tokens(words, "</think>T")]
    found = read(dialect.parser(TOOLS), spelled)
    assert (found.text, found.reasoning) == ("T", "a </think> b")


def test_text_without_ids_is_read_as_text(dialect: Dialect) -> None:
    assert read(dialect.parser(TOOLS), [f"<tool_call>{CALLED}</tool_call>"]).calls


def test_a_call_that_is_none_shows_its_tokens(dialect: Dialect, words: Tokenizer) -> None:
    text = "<tool_call>oops</tool_call>"
    found = read(dialect.parser(TOOLS), tokens(words, text))
    assert found.text == text
    assert len(found.reasons) == 1


def test_tokens_that_a_decoder_hides_are_known_by_their_ids(dialect: Dialect, words: Tokenizer) -> None:
    pieces = [
        ("" if words.is_special(i) else text, i)
        for text, i in tokens(words, f"T<tool_call>{CALLED}</tool_call><|other|>")
    ]
    found = read(dialect.parser(TOOLS), pieces)
    assert (found.text, found.calls) == ("T", [("get_weather", {"city": "Paris"})])


def test_a_call_within_reasoning_ends_it(dialect: Dialect, words: Tokenizer) -> None:
    text = f"<think>R <tool_call>{CALLED}</tool_call>"
    for pieces in (tokens(words, text), [text], list(text)):
        found = read(dialect.parser(TOOLS), pieces)
        assert (found.text, found.reasoning, len(found.calls)) == ("", "R", 1)


def test_words_about_calls_within_reasoning_are_words(dialect: Dialect, words: Tokenizer) -> None:
    thought = 'I write <tool_call> and </tool_call>, <tool_call>{"name": "nothing", "arguments": {}}</tool_call> or\n'
    thought += f"<tool_call>{CALLED}</tool_call>. Well"
    for pieces in (tokens(words, thought, control=False), [thought], list(thought)):
        begun = tokens(words, "<think>") if isinstance(pieces[0], tuple) else ["<think>"]
        ended = tokens(words, "</think>T") if isinstance(pieces[0], tuple) else ["</think>T"]
        found = read(dialect.parser(TOOLS), [*begun, *pieces, *ended])
        assert (found.text, found.reasoning, found.reasons) == ("T", thought, [])


def test_user_defined_tokens_are_text() -> None:
    words = tokenizer(USER_DEFINED, "<tool_call>", "</tool_call>")
    dialect = Dialect(template(HERMES, words))
    for control in (True, False):
        pieces = tokens(words, f"<tool_call>{CALLED}</tool_call>", control)
        assert read(dialect.parser(TOOLS), pieces).calls
    spelled = [(character, -1) for character in f"<tool_call>{CALLED}</tool_call>"]
    assert read(dialect.parser(TOOLS), spelled).calls


# --- derived from templates


def test_a_template_that_knows_no_tools_has_the_fallback() -> None:
    dialect = Dialect(template(BEGIN + "{{ m.content }}" + END))
    assert dialect.spec.source == "fallback"
    assert read(dialect.parser(TOOLS), [f"a <tool_call>{CALLED}</tool_call>"]).calls


def test_what_the_generation_prompt_writes_is_part_of_the_answer() -> None:
    source = HERMES.replace("<|assistant|>{% endif %}", "<|assistant|>{{ '<think>' if thinking else '' }}{% endif %}")
    model = template(source)
    dialect = Dialect(model)
    user = [{"role": "user", "content": "x"}]
    for thinking in (True, False):
        prompt = model.render(user, tools=TOOLS, thinking=thinking)
        found = read(dialect.parser(TOOLS, prompt=prompt), ["a</think>b" if thinking else "b"])
        assert (found.text, found.reasoning) == ("b", "a" if thinking else "")
    always = Dialect(template(HERMES.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")))
    assert read(always.parser(TOOLS), ["a</think>b"]).reasoning == "a"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("<call>{{ c.function.name }}|{{ c.function.arguments | tojson }}</call>", ("<call>",)),
        ('«{"{{ c.function.name }}": {{ c.function.arguments | tojson }}}»', ("«",)),
        ("\n<fn={{ c.function.name }}>{{ c.function.arguments | tojson }}</fn>\n", ("<fn=",)),
        (
            "<do {{ c.function.name }}>{% for k, v in c.function.arguments.items() %}<{{ '-' }} {{ k }}>"
            "{{ v if v is string else v | tojson }}</->{% endfor %}</do>",
            ("<do ",),
        ),
    ],
)
def test_forms_that_no_model_has(call: str, expected: tuple[str, ...]) -> None:
    source = HERMES.replace(CALL, "{% for c in m.tool_calls %}" + call + "{% endfor %}")
    model = template(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = Dialect(model).spec
    assert spec.source == "derived"
    assert spec.calls is not None
    assert spec.calls.opening[:1] == expected
    assert isinstance(spec.calls.body, HeadBody | ObjectBody)


def test_a_template_that_is_not_understood_is_text_and_says_so_once() -> None:
    source = HERMES.replace("| tojson }}}", "| tojson | upper }}}")
    dialect = Dialect(template(source))
    with pytest.warns(PyllmWarning, match="tool calls in this model's answers stay text"):
        assert dialect.spec.calls is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read(dialect.parser(TOOLS), [f"<think>R</think><tool_call>{CALLED}</tool_call>"])
    assert (found.text, found.reasoning) == (f"<tool_call>{CALLED}</tool_call>", "R")


def test_a_template_that_refuses_everything_has_the_fallback() -> None:
    dialect = Dialect(template("{{ raise_exception('no') }}"))
    assert read(dialect.parser(TOOLS), [f"<tool_call>{CALLED}</tool_call>"]).calls


def test_equal_templates_share_a_dialect(words: Tokenizer) -> None:
    assert dialect_of(template(HERMES)) is dialect_of(template(HERMES))
    assert dialect_of(template(HERMES)) is not dialect_of(template(HERMES, words))
    assert dialect_of(template(HERMES)) is not dialect_of(template(HERMES + " "))


def test_ids_of_the_form_that_a_template_wants() -> None:
    wants = HERMES.replace(
        "<tool_call>", "{% if c.id | length != 9 %}{{ raise_exception('nine, please') }}{% endif %}<tool_call>", 1
    )
    found = read(Dialect(template(wants)).parser(TOOLS), [f"<tool_call>{CALLED}</tool_call>"])
    assert re.fullmatch(r"[0-9A-Za-z]{9}", found.ids[0])


def test_a_probe_finds_what_templates_insist_on() -> None:
    text_only = HERMES.replace("c.function.arguments | tojson", "c.function.arguments + ''")
    probe = Probe(template(text_only), tools())
    assert probe.header == "<|assistant|>"
    dialect = Dialect(template(text_only))
    assert dialect.spec.source == "derived"


# --- parts


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("<tool_call>\n<function=", ("<tool_call>", "<function=")),
        ("[TOOL_CALLS][", ("[TOOL_CALLS]", "[")),
        ('\n<invoke name="', ('<invoke name="',)),
        ('">', ('">',)),
        ("</a>\n\n</b>", ("</a>", "</b>")),
        (" ", ()),
        ("functools[", ("functools", "[")),
    ],
)
def test_markers_in_pieces(text: str, pieces: tuple[str, ...]) -> None:
    assert marker(text) == pieces


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, -2.5, 1e3, 'a', \"b\", True, false, None, null]", [1, -2.5, 1000.0, "a", "b", True, False, None, None]),
        ("{'a': {b: (1,)}, \"c\": []}", {"a": {"b": [1]}, "c": []}),
        (r"'\u00e9\x41\n\t\\\'\d'", "éA\n\t\\'\\d"),
        (r'"\ud83d\ude42"', "🙂"),
        ("1_000", 1000),
    ],
)
def test_literals(text: str, value: Any) -> None:
    assert literal(text) == value


@pytest.mark.parametrize("text", ["", "[1", "{'a' 1}", "'a", "abc", "1 2", "[" * 100, "{1: 2}", r"'\uzz'", "f(x)", "-"])
def test_what_is_no_literal(text: str) -> None:
    with pytest.raises(ValueError):
        literal(text)


def test_long_arguments_arrive_in_order(dialect: Dialect) -> None:
    arguments = {"code": "".join(f'line {i} \\ "x" {{[\n' for i in range(3000)), "limit": 1.5}
    text = json.dumps({"name": "search_files", "arguments": arguments}, ensure_ascii=False)
    found = read(dialect.parser(TOOLS), [f"<tool_call>{text}</tool_call>"])
    assert found.calls == [("search_files", arguments)]
    assert Gathered().calls == []
