"""Markdown on a terminal while it comes: what stands there at the end, and what is written again until then."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable

import pytest
from command import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from terminal import Terminal

from pyllm.chat.events import ReasoningDelta, TextDelta, ToolCall, ToolCallEnd
from pyllm.cli import _live
from pyllm.cli._answer import Printer
from pyllm.cli._live import Document

SOURCE = """\
# A *title*

Some `code`, **bold** and a [link](http://a.example/b), <http://c.example>; this line is long.
The next line, Vec<T>, &lt;, ![picture](d.png).

1. one
2. two
   - within, which is a rather long item

     a paragraph
3. three:

   ```sh
   ls -l
   ```

* loose

* list

```python
def f(x):
\tif x:
        return "a long line of code that stays one line"

    return 0
```

| name | n |
|:--|--:|
| one | 1 |
| **twenty** | 20 |

> a quotation that is
> long enough to be wrapped twice
---
[r]: http://reference.example

日本語の長い文章は折り返されるべきです。日本語"""

# Written by hand, for 40 columns.
SHOWN = """\
A title

Some code, bold and a link
(http://a.example/b), http://c.example;
this line is long.
The next line, Vec<T>, <, picture
(d.png).

 1. one
 2. two
     • within, which is a rather long
       item

       a paragraph
 3. three:

    ── sh ──────────────────
    ls -l
    ────────────────────────

 • loose

 • list

── python ──────────────
def f(x):
    if x:
        return "a long line of code that
 stays one line"

    return 0
────────────────────────

name      n
───────────
one       1
twenty   20

▌ a quotation that is
▌ long enough to be wrapped twice

────────────────────────────────────────

[r]: http://reference.example

日本語の長い文章は折り返されるべきです。
日本語
"""

Output = Callable[[], str]


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    return lambda: capsys.readouterr().out


def document(columns: int = 40, rows: int = 12, **options: bool) -> Document:
    console = Console(force_terminal=True, color_system="truecolor", width=columns, height=rows, **options)  # type: ignore[arg-type]
    return Document(console)


def shown(terminal: Terminal) -> str:
    return "\n".join(terminal.lines)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 10_000])
@pytest.mark.parametrize("rows", [4, 12, 80])
def test_a_document_however_it_comes(size: int, rows: int, output: Output) -> None:
    terminal, doc = Terminal(40, rows), document(40, rows)
    for start in range(0, len(SOURCE), size):
        doc.add(SOURCE[start : start + size])
        doc.flush()
        terminal.write(output())
    assert doc.end()
    terminal.write(output() + "\n")
    assert shown(terminal) == SHOWN


LETTERS = "ab1"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.one_of(
            st.text(LETTERS + ".*_`~#->+[]!<:\n ", max_size=12),
            st.sampled_from(["\n\n", "```", "```\n", "\n- ", "\n1. ", "\n   ", "\n> ", "**", "\n---\n", "\n# "]),
        ),
        max_size=25,
    ),
    columns=st.integers(10, 60),
    rows=st.integers(2, 20),
)
def test_no_text_is_lost_or_shown_twice(pieces: list[str], columns: int, rows: int, output: Output) -> None:
    terminal, doc = Terminal(columns, rows), document(columns, rows)
    for piece in pieces:
        doc.add(piece)
        doc.flush()
        terminal.write(output())
    doc.end()
    terminal.write(output())
    letters = re.sub(f"[^{LETTERS}]", "", "".join(pieces))
    assert re.sub(f"[^{LETTERS}]", "", shown(terminal)) == letters


def test_finished_blocks_and_lines_of_code_are_written_once(output: Output) -> None:
    source = "first text\n\n- item one\n- item two\n\n```\ncode one\ncode two\ncode three"
    doc = document(rows=30)
    for character in source:
        doc.add(character)
        doc.flush()
    written = output()
    for text in ("first text", "item one", "item two", "code one", "code two", "code three"):
        assert written.count(text) == 1, text


def test_a_line_that_grows_leaves_those_above_it_alone(output: Output) -> None:
    doc = document()
    doc.add("word " * 20)
    doc.flush()
    assert output().count("\n") == 2
    doc.add("more")
    doc.flush()
    written = output()
    assert "\n" not in written
    assert not re.search(r"\x1b\[\d+A", written)


def test_drawing_waits_while_it_takes_long(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(_live.time, "monotonic", lambda: next(clock))  # each drawing takes a second
    doc = document()
    times = []
    for i in range(40):
        doc.add("a ")
        if output():
            times.append(i)
    assert times[0] == 0
    assert len(times) < 15
    doc.end()
    assert "a " * 15 in output()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("\x1b[2J", "␛[2J"),
        ("\x1b]8;;http://x.example\x1b\\y\x1b]8;;\x1b\\", "␛]8;;http://x.example␛"),
        ("`\x1b[2J`", "␛[2J"),
        ("```\n\x07\n```", "␇"),
        ("a &#27; &#x9b; &#13;b", "a"),
        ("[red]x[/red] :smile: {y}", "[red]x[/red] :smile: {y}"),
        ("[a](javascript:b)", "[a](javascript:b)"),
        ("| a\x1b[1A |\n|---|\n", "␛[1A"),
    ],
)
def test_what_a_model_writes_moves_no_cursor(
    source: str, text: str, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_live, "document", document)
    printer = Printer("hide", markdown=True)
    printer.show(TextDelta(source))
    printer.end()
    terminal = Terminal(40, 12)
    terminal.write(output())
    assert text in shown(terminal)


def test_a_terminal_that_gets_narrower_loses_nothing(output: Output) -> None:
    source = "finished\n\n- one\n- two\n\n" + "words that fill some lines " * 6
    doc, terminal = document(60, 20), Terminal(60, 20)
    doc.add(source)
    doc.flush()
    terminal.write(output())
    terminal.columns = 25
    doc._console.width = 25
    doc.add("end")
    doc.end()
    terminal.write(output())
    text = shown(terminal)
    assert text.startswith("finished\n\n • one\n • two\n\n")
    assert ("words that fill some lines " * 6 + "end") in " ".join(text.split())


def test_colours(output: Output) -> None:
    source = "# a\n\n```python\ndef f(): pass\n```\n"
    for no_color in (False, True):
        doc = document(no_color=no_color)
        doc.add(source)
        doc.end()
        written = output()
        assert bool(re.search(r"\x1b\[(\d+;)*(3|9)[0-7]", written)) is not no_color
        assert "\x1b[1" in written


def test_reasoning_calls_and_text(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_live, "document", document)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    printer = Printer(None, markdown=True)
    events = [
        ReasoningDelta("It is *two*."),
        TextDelta("It is *two*"),
        TextDelta(".\n\n"),
        TextDelta("- or not"),
        ToolCallEnd(0, ToolCall("a", "add", {})),
        ReasoningDelta("Then."),
        TextDelta("**End**"),
    ]
    for event in events:
        printer.show(event)
    printer.end()
    terminal = Terminal(80, 24)
    terminal.write(output())
    call = '{"id": "a", "name": "add", "arguments": {}}'
    assert shown(terminal) == f"It is *two*.\n\nIt is two.\n\n • or not\n{call}\nThen.\n\nEnd\n"


def test_an_interrupted_answer_is_shown_as_far_as_it_came(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_live, "document", document)
    printer = Printer("hide", markdown=True)
    for text in ("a **b", "old** an", "d more"):
        printer.show(TextDelta(text))
    printer.interrupted()
    terminal = Terminal(40, 12)
    terminal.write(output() + "^C")
    printer.end()
    terminal.write(output())
    assert shown(terminal) == "a bold and more^C\n"


def test_no_markdown_without_a_terminal_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        encoding = "utf-8"
        terminal = True

        def isatty(self) -> bool:
            return self.terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert _live.document() is not None
    monkeypatch.setenv("TERM", "dumb")
    assert _live.document() is None
    monkeypatch.setenv("TERM", "xterm")
    stream.encoding = "iso8859-1"
    assert _live.document() is None
    stream.encoding = "utf-8"
    stream.terminal = False
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert _live.document() is None


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], None, True),
        (["--no-markdown"], None, False),
        ([], "0", False),
        (["--markdown"], "0", True),
        (["--raw"], None, False),
        (["--raw", "--markdown"], None, True),
        (["--json-schema", '{"type": "object"}'], None, False),
    ],
)
def test_when_answers_are_markdown(
    arguments: list[str],
    environment: str | None,
    expected: bool,
    run: Run,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class Asked(Printer):
        def __init__(self, reasoning: str | None, markdown: bool) -> None:
            asked.append(markdown)
            super().__init__(reasoning, markdown)

    monkeypatch.setattr("pyllm.cli._answer.Printer", Asked)
    if environment is not None:
        monkeypatch.setenv("PYLLM_MARKDOWN", environment)
    done = run("run", "-m", model, "--backend", "reference", "-n", "2", *arguments, "hi")
    assert (done.code, asked) == (0, [expected]), done.err
