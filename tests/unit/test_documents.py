"""What the documents say is so: links lead somewhere, commands parse, snippets run, messages exist, lists are whole."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import commands
import pyllm
from pyllm import cli
from tiny_gguf import write_tiny_gguf

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "models" / "README.md",
    ROOT / "examples" / "README.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# Links


def slugs(text: str) -> set[str]:
    """Anchors of a page's headings, as hosting platforms make them."""
    plain = FENCE.sub("", text)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_of_the_repository(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}, which is not there"
        assert file.is_relative_to(ROOT)
        if anchor:
            assert anchor in slugs(file.read_text(encoding="utf-8")), f"{name_of(page)} links to {target}"


# Commands


def command_lines() -> Iterator[tuple[str, str]]:
    """(page, line) for each line with pyllm in it, of blocks of shell and of tables."""
    for page in PAGES:
        if page.name in ("CHANGELOG.md", "commands.md"):
            continue
        text = page.read_text(encoding="utf-8")
        blocks = [body for kind, body in FENCE.findall(text) if kind == "sh"]
        blocks += re.findall(r"(?<=\n\n)(?: {4}.+\n)+", FENCE.sub("", text))
        shown = [line.strip() for block in blocks for line in block.splitlines()]
        shown += re.findall(r"`(pyllm [^`…]+)`", FENCE.sub("", text))
        for line in shown:
            for part in re.split(r"&&|\|(?!auto)", line):
                if part.strip().startswith("pyllm "):
                    yield name_of(page), part.strip()


@pytest.mark.parametrize(("page", "line"), sorted(set(command_lines())))
def test_command_lines_are_understood(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((i for i, word in enumerate(words) if word in ("<", ">")), None)]
    if words[0] in ("COMMAND", "--help", "--version") or "--help" in words:
        return
    top = click.Context(cli.group, info_name="pyllm", obj={}, **cli.group.context_settings)
    command = cli.group.get_command(top, words[0])
    assert command is not None, f"{page}: there is no command {words[0]}"
    if len(words) == 1:  # the name of a command, in a sentence
        return
    try:
        command.make_context(words[0], words[1:], parent=top)
    except click.exceptions.Exit:  # an option that prints, and leaves
        return
    except click.MissingParameter:  # a part of a command line, in a sentence
        assert not any(line in block for kind, block in FENCE.findall(text_of(page)) if kind == "sh")


def test_reference_of_commands_is_current() -> None:
    assert commands.PAGE.read_text(encoding="utf-8") == commands.page(), "run `python docs/site/commands.py`"


def test_every_variable_that_pyllm_reads_is_described() -> None:
    source = text_of("src/pyllm/env.py")
    read = set(re.findall(r"\bPYLLM_[A-Z_]+[A-Z]", source))
    assert set(re.findall(r"^\| `(PYLLM_[A-Z_]+)` \|", text_of("docs/command-line.md"), re.MULTILINE)) == read


# Python


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def tiny(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., pyllm.LLM]]:
    """`pyllm.load` gives a tiny model on the reference backend, whatever is asked for."""
    load, loaded = pyllm.load, []

    def replacement(name: str, **options: Any) -> pyllm.LLM:
        options.pop("adapters", None)
        options.setdefault("n_ctx", 2048)  # its tokens are single bytes
        if options.get("kv_dtype") == "q8_0":  # which the reference backend does not have
            options["kv_dtype"] = "f16"
        loaded.append(load(model, backend="reference", **options))
        return loaded[-1]

    monkeypatch.setattr(pyllm, "load", replacement)
    yield replacement
    for llm in loaded:
        llm.close()


def python_blocks(name: str) -> str:
    """All blocks of Python of a page, one after the other, lines where they are on the page."""
    lines = text_of(name).splitlines()
    inside = False
    for i, line in enumerate(lines):
        if line.startswith("```"):
            inside, lines[i] = line == "```python", ""
        elif not inside:
            lines[i] = ""
    return "\n".join(lines)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "page", ["README.md", "docs/getting-started.md", "docs/python.md", "docs/sampling.md", "docs/agents.md"]
)
def test_snippets_run(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = python_blocks(page)
    assert "pyllm" in source
    monkeypatch.chdir(tmp_path)  # they may write files
    exec(compile(source, page, "exec", dont_inherit=True), {"__name__": page})
    out = capsys.readouterr().out
    if page == "docs/python.md":
        assert "did you mean temperature?" in out
    if page == "docs/agents.md":
        assert "arguments={'city': 'Paris'}" in out


def expressions(page: str) -> list[str]:
    """What stands for llama-cpp-python's and Ollama's calls: code in the last column of tables."""
    rows = re.findall(r"^\|.*\| ([^|]+) \|$", text_of(page), re.MULTILINE)
    return [code for cell in rows for code in re.findall(r"`((?:pyllm|llm)\.[^`]+)`", cell)]


@pytest.mark.parametrize("page", ["docs/from-llama-cpp-python.md", "docs/from-ollama.md"])
def test_what_stands_for_calls_of_other_programs_works(page: str, tiny: Callable[..., pyllm.LLM]) -> None:
    calls = expressions(page)
    assert len(calls) > 4
    names = {
        "pyllm": pyllm,
        "llm": tiny("tiny"),
        "ids": [257, 1, 2, 3],
        "messages": [{"role": "user", "content": "Hello"}],
    }
    for call in sorted(calls, key=lambda call: ".close()" in call):
        eval(call, names)


def test_options_that_stand_for_those_of_llama_cpp_python_exist(tiny: Callable[..., pyllm.LLM]) -> None:
    section = text_of("docs/from-llama-cpp-python.md").split("## Options of loading")[1].split("\n## ")[0]
    cells = re.findall(r"^\|.*\| ([^|]+) \|$", section, re.MULTILINE)
    given = [code for cell in cells for code in re.findall(r"`(\w+=[^`]+)`", cell)]
    assert len(given) > 5
    for option in given:
        eval(f"load('tiny', {option})", {"load": tiny})


def test_sampling_options_are_those_that_the_page_names(tiny: Callable[..., pyllm.LLM]) -> None:
    sentence = re.search(r"^(`temperature`.*) mean the same", text_of("docs/from-llama-cpp-python.md"), re.MULTILINE)
    assert sentence is not None
    named = re.findall(r"`(\w+)`", sentence[1])
    assert {"temperature", "logprobs"} <= set(named)
    values = {"stop": ["x"], "logit_bias": {1: 1.0}}
    tiny("tiny").complete("Hello", max_tokens=1, **{name: values.get(name, 1) for name in named})


def test_reference_names_everything_that_pyllm_promises() -> None:
    listed = re.findall(r"^::: pyllm\.(\w+)$", text_of("docs/reference/api.md"), re.MULTILINE)
    assert sorted(listed) == sorted(set(pyllm.__all__) - {"__version__"})


# Messages


def messages_of_the_source() -> set[str]:
    """Every text in the code, with `…` for what is put in."""
    found = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tools" / "convert").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_messages_that_troubleshooting_explains_are_pyllms() -> None:
    headings = re.findall(r"^### (`+) ?(.+?) ?\1$", text_of("docs/troubleshooting.md"), re.MULTILINE)
    assert len(headings) > 15
    source = messages_of_the_source()
    for _, quoted in headings:
        words = quoted.strip("… ")
        pattern = re.escape(words).replace("…", ".*?")
        assert any(re.search(pattern, text) for text in source), f"no code says: {quoted}"
