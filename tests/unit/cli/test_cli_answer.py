"""What is shown of an answer: its text, reasoning on demand, tool calls as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Run

from pyllm.chat.events import ReasoningDelta, TextDelta, ToolCall, ToolCallBegin, ToolCallEnd
from pyllm.cli._answer import Printer

SWITCH = "{% for m in messages %}{{ m.content }}{% endfor %}{% if thinking is defined and not thinking %}!{% endif %}"
EVENTS = [
    ReasoningDelta("Let me "),
    ReasoningDelta("think."),
    TextDelta("Four"),
    TextDelta("."),
    ToolCallBegin(0, "a", "add"),
    ToolCallEnd(0, ToolCall("a", "add", {"x": 1, "é": [2]})),
]
CALL = '{"id": "a", "name": "add", "arguments": {"x": 1, "é": [2]}}\n'


@pytest.mark.parametrize(
    ("terminal", "reasoning", "shown"),
    [
        (False, None, "Four.\n" + CALL),
        (False, "show", "Let me think.\n\nFour.\n" + CALL),
        (True, None, "\x1b[2mLet me think.\x1b[0m\n\nFour.\n" + CALL),
        (True, "hide", "Four.\n" + CALL),
        (True, "off", "Four.\n" + CALL),
    ],
)
def test_what_is_shown(
    terminal: bool,
    reasoning: str | None,
    shown: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    printer = Printer(reasoning, markdown=False)
    for event in EVENTS:
        printer.show(event)
    printer.end()
    assert capsys.readouterr().out == shown


def test_reasoning_is_turned_off_in_the_template(run: Run, model: str, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(SWITCH)
    ask = [
        "run",
        "-m",
        model,
        "--backend",
        "reference",
        "--temp",
        "0",
        "-n",
        "4",
        "--chat-template-file",
        str(template),
    ]
    off = run(*ask, "--reasoning", "off", "hi", "--json")
    plain, marked = (run(*ask, text, "--json") for text in ("hi", "hi!"))
    tokens = [json.loads(done.out)["n_prompt"] for done in (off, plain, marked)]
    assert tokens[0] == tokens[2] > tokens[1]


def test_a_template_that_reasons_always(run: Run, model: str, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
        "{% endif %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    )
    done = run("run", "-m", model, "--chat-template-file", str(template), "--reasoning", "off", "hi")
    assert done.code == 2
    assert "cannot turn reasoning off" in done.err


def test_tools_out_of_a_file(run: Run, model: str, tmp_path: Path) -> None:
    tools, template = tmp_path / "tools.json", tmp_path / "template.jinja"
    template.write_text("{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{{ messages[0].content }}")
    ask = ["run", "-m", model, "--backend", "reference", "--temp", "0", "-n", "4", "--json", "hi"]
    ask += ["--chat-template-file", str(template)]
    tools.write_text(json.dumps([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]))
    with_tools, without = (json.loads(run(*ask, *more).out) for more in (["--tools", str(tools)], []))
    assert with_tools["n_prompt"] > without["n_prompt"]
    assert with_tools["tool_calls"] == []
    tools.write_text("[{")
    assert "is not JSON" in run(*ask, "--tools", str(tools)).err
    assert "does not go with --raw" in run("run", "-m", model, "--raw", "--tools", str(tools), "hi").err
