"""One style of messages: lower case at the beginning, no full stop at the end, clauses joined by "; ".

What is read is the source: every text that an error, a warning or a refusal of the command line is made with.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyllm.errors
from pyllm.backends.cuda import driver, failures
from pyllm.cli._llama_cpp import DIFFERENT

ROOT = Path(__file__).parents[2]
FILES = sorted(p for folder in ("src/pyllm", "tools/convert") for p in (ROOT / folder).rglob("*.py"))

OF_PYTHON = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
OF_CLICK = {"ClickException", "UsageError", "BadParameter", "BadOptionUsage", "BadArgumentUsage"}
OWN = {name for name, kind in vars(pyllm.errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
HELPERS = {"warn", "_warn", "error", "_error", "fail", "refusal", "PartOutOfMemoryError", "Unsupported", "TooLarge"}
"""Functions that make an error of a text, and errors of single modules."""

# Names keep their capitals: acronyms, names in mixed case (SmolLM3, NaN), and these.
NAMES = {"Hugging", "Python", "Unicode"}
HOLE = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for what is only known when the message is made."""


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may be, with a `HOLE` for each placeholder; none for what is no literal."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(p.value if isinstance(p, ast.Constant) else HOLE for p in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from (a + b for a in [*texts(left)] or [HOLE] for b in [*texts(right)] or [HOLE])
        case ast.IfExp(body=body, orelse=other):
            yield from texts(body)
            yield from texts(other)


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each message in a source. A number before the text, where a file is wrong, is passed over."""
    makers = OF_PYTHON | OF_CLICK | OWN | HELPERS
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in makers:
            for argument in node.args[:2]:
                if found := [*texts(argument)]:
                    yield from ((argument.lineno, text) for text in found)
                    break


def faults(text: str) -> list[str]:
    """What is wrong with the style of a message."""
    found = []
    first = re.match(r"[\w'-]+", text)
    if first and re.fullmatch(r"[A-Z][a-z']*", first[0]) and first[0].removesuffix("'s") not in NAMES:
        found.append(f"begins with a capital: {first[0]}")
    if re.search(r"(?<!\.\.)\.['\")`]*\s*$", text):
        found.append("ends with a full stop")
    if re.search(rf"(?<!\.\.)[.!?]\s+(?=[A-Z{HOLE}`'\"-]|[a-z])", text):
        found.append("has several sentences; join them by '; '")
    return found


@pytest.mark.parametrize(
    ("text", "n_faults"),
    [
        ("the file is damaged; download it again", 0),
        (f"{HOLE} is no size; 2.5G would do", 0),
        ("GGUF metadata has no type for it", 0),
        ("SmolLM3 files have none", 0),
        ("PyLLM's own", 0),
        ("`pyllm list` shows what is here", 0),
        ("say how large: --size 2G, or -o ...", 0),
        ("The model was closed", 1),
        ("the model was closed.", 1),
        ("the model was closed. load it again", 1),
        (f"no such option {HOLE}. {HOLE}", 1),
        ("Give MODEL or -m. Not both.", 3),
        ("A file is missing", 1),
    ],
)
def test_faults_are_found(text: str, n_faults: int) -> None:
    assert len(faults(text)) == n_faults


def test_messages_are_found_in_a_source() -> None:
    source = """
def f(x, error):
    raise ValueError(f"a {x} is none" if x else "nothing")
    raise file.error(4, "short" + x)
    warnings.warn("slow", PyllmWarning)
    raise KeyError(x)
    print("Other text.")
"""
    assert [text for _, text in messages(source)] == [f"a {HOLE} is none", "nothing", f"short{HOLE}", "slow"]


@pytest.mark.parametrize(
    "text",
    [
        *DIFFERENT.values(),
        *failures._LOST.values(),
        *failures._OTHER.values(),
        *driver._NO_START.values(),
        driver.INSTALL_DRIVER,
        driver.wrong_cupy("cupy-cuda13x", 12080),
    ],
)
def test_texts_in_tables_have_it_too(text: str) -> None:
    assert not faults(text)


def test_messages_have_one_style() -> None:
    found = [(path, line, text) for path in FILES for line, text in messages(path.read_text("utf-8"))]
    assert len(found) > 500
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {fault}: {text.replace(HOLE, '{}')!r}"
        for path, line, text in found
        for fault in faults(text)
    ]
    assert not wrong, "\n" + "\n".join(wrong)
