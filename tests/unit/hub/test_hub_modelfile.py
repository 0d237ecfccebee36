"""Modelfiles, as docs/modelfile.md of Ollama describes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.errors import HubError
from pyllm.hub import parameters
from pyllm.hub.modelfile import ROLES, Modelfile, parse, text_of

WHOLE = '''# A plumber
from llama3.2:3b
PARAMETER temperature 1
parameter num_ctx 4096
PARAMETER stop "</s>"
PARAMETER stop User:
Parameter use_mmap true

SYSTEM """You are Mario.
"It's-a me!"  """
TEMPLATE """{{ if .System }}<|system|>{{ .System }}{{ end }}"""
ADAPTER ./style.gguf
MESSAGE user Is Toronto in Canada?
MESSAGE assistant """yes
# not a comment"""
LICENSE "MIT"
LICENSE """
Terms
"""
'''


def test_all_instructions() -> None:
    assert parse(WHOLE) == Modelfile(
        base="llama3.2:3b",
        adapters=("./style.gguf",),
        parameters={"temperature": 1.0, "num_ctx": 4096, "stop": ["</s>", "User:"], "use_mmap": True},
        template="{{ if .System }}<|system|>{{ .System }}{{ end }}",
        system='You are Mario.\n"It\'s-a me!"  ',
        messages=(("user", "Is Toronto in Canada?"), ("assistant", "yes\n# not a comment")),
        licences=("MIT", "\nTerms\n"),
    )


def test_line_ends_of_windows_and_a_byte_order_mark() -> None:
    assert parse("\ufeff" + WHOLE.replace("\n", "\r\n")) == parse(WHOLE)


def test_instructions_of_ollama_s_own_code_are_noted() -> None:
    assert parse("FROM x\nRENDERER qwen3-coder\nPARSER qwen3-coder").ignored == ("RENDERER", "PARSER")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no FROM"),
        ("SYSTEM hello", "has no FROM"),
        ("FROM", "line 1 of the Modelfile: FROM names nothing"),
        ("FROM a\nFROM b", "line 2 of the Modelfile: FROM is there twice"),
        ("FROM a\nRUN ls", "line 2 of the Modelfile: 'RUN' is no instruction"),
        ('FROM a\n\nSYSTEM """never\nends', "line 3 of the Modelfile: the quotes that SYSTEM begins with do not end"),
        ("FROM a\nPARAMETER temperatur 1", "did you mean temperature"),
        ("FROM a\nPARAMETER temperature hot", "temperature must be a number, not 'hot'"),
        ("FROM a\nPARAMETER top_k 1.5", "top_k must be a whole number"),
        ("FROM a\nPARAMETER temperature 1e999", "temperature must be a number"),
        ("FROM a\nPARAMETER top_k " + "9" * 5000, "top_k must be a whole number"),
        ("FROM a\nPARAMETER use_mmap maybe", "use_mmap must be true or false"),
        ("FROM a\nPARAMETER stop", "stop must be a text that is not empty"),
        ("FROM a\nMESSAGE robot hi", "not of 'robot'"),
        ("FROM a\nADAPTER", "ADAPTER names nothing"),
        ("FROM a\n" + "#" * (1 << 20), "characters"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(HubError, match=reason.replace("(", r"\(")):
        parse(text)


# A value's own triple quotes would end it, as in Ollama; carriage returns are line ends.
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=60).filter(
    lambda text: '"""' not in text and not text.startswith('"') and not text.endswith('"')
)
NUMBERS: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-(1 << 40), 1 << 40),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
}
PARAMETERS = st.fixed_dictionaries(
    {}, optional={name: NUMBERS[p.kind] for name, p in parameters.TABLE.items() if p.kind is not str}
)
LINES = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20).filter(lambda t: '"' not in t)


@given(
    base=LINES.filter(lambda text: text.strip() == text),
    system=WORDS,
    template=WORDS,
    messages=st.lists(st.tuples(st.sampled_from(ROLES), WORDS), max_size=3),
    licences=st.lists(WORDS, max_size=2),
    given_parameters=PARAMETERS,
    stops=st.lists(WORDS.filter(bool), min_size=1, max_size=3),
)
def test_what_is_written_reads_as_it_was(
    base: str,
    system: str,
    template: str,
    messages: list[tuple[str, str]],
    licences: list[str],
    given_parameters: dict[str, Any],
    stops: list[str],
) -> None:
    model = Modelfile(
        base,
        parameters={**given_parameters, "stop": stops},
        template=template,
        system=system,
        messages=tuple(messages),
        licences=tuple(licences),
    )
    assert parse(text_of(model)) == model


@given(st.text(max_size=300) | st.lists(st.sampled_from(WHOLE.split(" ")), max_size=60).map(" ".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except HubError:
        return
    assert found.base


@given(st.dictionaries(st.sampled_from(sorted(parameters.TABLE)), st.integers(-2, 9) | st.booleans() | st.text()))
def test_parameters_of_requests_are_settled_or_refused_by_name(values: dict[str, Any]) -> None:
    from pyllm.errors import RequestError

    reason = ""
    try:
        found = parameters.settle(values, "options.")
    except RequestError as error:
        found, reason = {}, str(error)
    assert not reason or reason.startswith("options.")
    for name, value in found.items():
        assert isinstance(value, list if name == "stop" else parameters.TABLE[name].kind)
    parameters.options_of(found)
    parameters.loading_of(found)
