"""Go's templates, beside prompts written out as Ollama's docs/template.md says that they come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.chat import ChatTemplate
from pyllm.chat.dialects import dialect_of
from pyllm.chat.go_template import as_jinja, is_go
from pyllm.errors import TemplateError

LEGACY = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
MESSAGES = """{{- if or .System .Tools }}<|im_start|>system
{{- if .System }}
{{ .System }}
{{- end }}
{{- if .Tools }}

# Tools
<tools>
{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end }}
</tools>
{{- end }}<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if .Content }}{{ .Content }}
{{- else if .ToolCalls }}<tool_call>
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{ end }}</tool_call>
{{- end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- else if eq .Role "tool" }}<|im_start|>user
<tool_response>
{{ .Content }}
</tool_response><|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ end }}
{{- end }}"""
CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "A"},
    {"role": "assistant", "content": "B"},
    {"role": "user", "content": "C"},
]
CHATML = (
    "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
    "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n"
)
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}


def rendered(template: str, messages: list[dict[str, Any]], **more: Any) -> str:
    assert is_go(template)
    return ChatTemplate({"default": as_jinja(template)}).render(messages, **more)


@pytest.mark.parametrize("template", [LEGACY, MESSAGES])
def test_a_chat(template: str) -> None:
    assert rendered(template, CHAT) == CHATML
    assert rendered(template, CHAT[1:2]) == "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n"
    begun = [*CHAT, {"role": "assistant", "content": "D"}]
    assert rendered(template, begun, continue_final_message=True) == CHATML + "D"


def test_an_answer_that_was_not_placed_comes_last() -> None:
    assert rendered("[INST] {{ .Prompt }} [/INST]", CHAT[1:2]) == "[INST] A [/INST]"


def test_what_follows_the_answer_within_a_condition_is_left_out() -> None:
    template = "{{ if .Prompt }}U:{{ .Prompt }} {{ if true }}A:{{ .Response }};{{ end }}!{{ end }}?"
    assert rendered(template, CHAT[1:]) == "U:A A:B;!?U:C A:"


def test_tools_calls_and_results() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    template = ChatTemplate({"default": as_jinja(MESSAGES)})
    assert template.takes_tools
    text = template.render([CHAT[1], call, {"role": "tool", "content": "2"}], tools=[TOOL])
    assert '<tools>\n{"type": "function", "function": {"name": "add", "description": "Adds.",' in text
    assert text.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    calls = dialect_of(template).spec.calls
    assert calls is not None
    assert calls.opening == ("<tool_call>",)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ range .Messages }}{{ .Role }}={{ .Content }};{{ end }}", "system=S;user=A;assistant=B;user=C;"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }} {{ end }}", "0system 1user 2assistant 3user "),
        ("{{ range .Messages }}{{ with .Content }}<{{ . }}>{{ else }}-{{ end }}{{ end }}", "<S><A><B><C>"),
        ("{{ $x := 0 }}{{ range $i, $m := .Messages }}{{ $x = $i }}{{ end }}{{ $x }}", "3"),
        ("{{ range .Messages }}{{ if eq .Role `user` }}{{ continue }}{{ end }}{{ .Content }}{{ end }}", "SB"),
        ("{{ range .Messages }}{{ if eq .Role `assistant` }}{{ break }}{{ end }}{{ .Content }}{{ end }}", "SA"),
        ("{{ (index .Messages 0).Content }} {{ len .Messages | printx }}", None),
        ("a {{- /* a comment with }} in it */ -}} b{{ (index .Messages 1).Content }}", "abA"),
        (
            '{{ if or (eq .System "X") (and (gt (len .Messages) 3) (not .Tools)) }}yes{{ end }}{{ len .Messages }}',
            "yes4",
        ),
        ('{{ json .Messages }}{{ "}}\\n\\"" }}', None),
        ('x {{- "  y" -}}  z{{ .System }}{{ range .Messages }}{{ end }}', "x  yzS"),
    ],
)
def test_actions(template: str, text: str | None) -> None:
    if "printx" in template:
        with pytest.raises(TemplateError, match="'printx' is not known"):
            as_jinja(template)
        return
    found = ChatTemplate({"default": as_jinja(template)}).render_unfitted(CHAT)
    if text is None:
        assert found.endswith('}]}}\n"')
        assert found.startswith('[{"role": "system"')
    else:
        assert found == text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ if .System }}", "without {{ end }}"),
        ("{{ end }}", "without a beginning"),
        ("{{ .System", "does not end"),
        ("{{ .Nothing }}", ".Nothing"),
        ('{{ template "x" }}{{ .Prompt }}', "template"),
        ("{{ if }}{{ end }}", "ends too early"),
        ("{{ range 1 2 3 := .Messages }}{{ end }}", "not understood"),
        ("{{ .System ~ }}", "not understood"),
        ("{{ if .A.B }}" * 200, "nested too deeply"),
        ("{{ " + "(" * 200 + " }}", "nested too deeply"),
    ],
)
def test_what_is_not_known_is_refused(template: str, reason: str) -> None:
    with pytest.raises(TemplateError) as error:
        as_jinja(template)
    assert reason in str(error.value)


@given(st.text('{}-. /*"`|()$:=ifendrangeMsagSytmuv\n', max_size=60))
def test_any_text_is_translated_to_what_parses_or_refused(text: str) -> None:
    try:
        source = as_jinja(text)
    except TemplateError:
        return
    ChatTemplate({"default": source})


def test_texts_of_the_template_stay_texts() -> None:
    text = 'back\\slash "quoted" {% raw %} \N{GRINNING FACE} {# x #}\t\n'
    template = ChatTemplate({"default": as_jinja("{{ .System }}{{ `" + text + "` }}{{ .Prompt }}")})
    assert template.render(CHAT[:2]) == "S" + text + "A"


def test_jinja_is_not_go() -> None:
    for text in ("{% for m in messages %}{{ m.content }}{% endfor %}", "{{ messages[0].content }}", "{{- bos_token }}"):
        assert not is_go(text)
