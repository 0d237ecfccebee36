"""Words as people type them: which of them name a model, and what a shell completes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from command import Run

from pyllm import hub
from pyllm.cli import _naming

GREEDY = ("--backend", "reference", "--temp", "0", "-n", "4")
KNOWN = sorted(name for name in (m.name for m in hub.models()) if not name.startswith("hf.co/"))


@pytest.mark.parametrize("name", KNOWN)
def test_every_name_of_the_catalog_is_a_model(name: str) -> None:
    assert _naming.names_model(name)
    assert _naming.names_model(name.upper())


@pytest.mark.parametrize(
    "word",
    [
        "qwen2.5-coder:0.5b",
        "qwen2.5-coder:1.5b",
        "llama9:8b",  # not there: an error, and no prompt of the default model
        "llama3.2:3b-instruct-q4_K_M",
        "smollm2",
        "hf.co/user/repo",
        "hf.co/Qwen/Qwen3-0.6B-GGUF:Q8_0",
        "huggingface.co/user/repo:Q4_K_M",
        "nowhere.gguf",
        "C:\\models\\model.GGUF",
    ],
)
def test_words_that_name_a_model(word: str) -> None:
    assert _naming.names_model(word)


@pytest.mark.parametrize(
    "word",
    [
        "",
        "hello",
        "Hello, world",
        "model",
        "run",
        "qwen",
        "mistral",
        "What is hf.co/user/repo about?",
        "hf.co",
        "hf.co/",
        "Explain model.gguf",
        "a file.gguf",
        ".",
        "/tmp",
        "12:30",
        "at 10:15 am",
        "ratio 3:4b",
        "3:4b",
        "Note: 8b",
        "note:",
        "https://example.com/8b",
        "smollm2:135m ",
        "2+2=",
        "x" * 100_000,
        "\0",
        "\udcff",
        __file__,
    ],
)
def test_words_that_are_a_prompt(word: str) -> None:
    assert not _naming.names_model(word)


def test_a_file_with_blanks_in_its_name_is_a_model_where_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert _naming.names_model("my model.gguf")
    assert not _naming.names_model("your model.gguf")


def test_run_takes_the_model_as_first_word(run: Run, model: str) -> None:
    expected = run("run", "-m", model, *GREEDY, "hi there")
    assert expected.code == 0
    for words in ([model, "hi there"], [model, "hi", "there"], [model, "-p", "hi there"]):
        assert run("run", *GREEDY, *words) == expected
    assert run("run", *GREEDY, model, stdin=b"hi there") == expected


def test_the_words_are_the_prompt_where_a_model_is_named(run: Run, model: str) -> None:
    named = run("run", "-m", model, *GREEDY, "smollm2:135m", "hi")
    assert named == run("run", "-m", model, *GREEDY, "-p", "smollm2:135m hi")


def test_a_first_word_goes_before_the_environment(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run("run", "-m", model, *GREEDY, "hi")
    monkeypatch.setenv("PYLLM_MODEL", "nowhere.gguf")
    assert run("run", *GREEDY, model, "hi") == expected
    assert run("show", model).code == run("fit", model, "-c", "64").code == 0
    monkeypatch.setenv("PYLLM_MODEL", model)
    assert run("run", *GREEDY, "hi") == expected


def test_an_ordinary_word_is_the_prompt(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_MODEL", model)
    done = run("run", *GREEDY, "hello")
    assert (done.code, done.out, done.err) == (0, run("run", *GREEDY, "-p", "hello").out, "")


def test_a_family_without_a_digit_is_a_word_and_said_so(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_naming, "_catalog", lambda: ["mistral:7b"])
    done = run("tokenize", "-m", model, "mistral", "winds")
    assert (done.code, done.err) == (0, "")
    monkeypatch.setenv("PYLLM_MODEL", model)
    assert "-m mistral is the model" in run("tokenize", "mistral", "winds").err


@pytest.mark.parametrize(
    ("words", "said"),
    [(["nowhere.gguf", "hi"], "no file nowhere.gguf"), (["llama9:8b", "hi"], "no known model is called 'llama9:8b'")],
)
def test_a_model_that_is_not_there_is_said(run: Run, words: list[str], said: str) -> None:
    for command in ("run", "tokenize"):
        done = run(command, *words)
        assert done.code == 1
        assert said in done.err


def test_other_commands_take_the_model_without_a_flag(run: Run, model: str) -> None:
    assert run("tokenize", model, "--ids", "hi").out == "[257, 104, 105]\n"
    assert run("show", "-m", model) == run("show", model)
    assert run("fit", model, "-c", "64").out.startswith(f"{model}, context of 64 tokens")
    assert run("chat", model, *GREEDY, stdin=b"hi\n") == run("chat", "-m", model, *GREEDY, stdin=b"hi\n")
    flags = ["--backend", "reference", "-p", "4", "-n", "0", "-r", "1", "-o", "jsonl"]
    results = [json.loads(line) for line in run("bench", model, model, *flags).out.splitlines()]
    assert [r["model_filename"] for r in results] == [model, model]


@pytest.mark.parametrize("command", ["chat", "show", "fit"])
def test_a_model_named_twice_is_refused(run: Run, model: str, command: str) -> None:
    done = run(command, model, "-m", model)
    assert done.code == 2
    assert "named twice" in done.err


def test_chat_is_recommended_with_the_model(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    import io

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(io, "TextIOWrapper", Terminal)  # what the fixture makes standard input of
    done = run("run", model)
    assert done.code == 2
    assert f"`pyllm chat {model}` holds a conversation" in done.err


# What a shell completes


def completed(run: Run, monkeypatch: pytest.MonkeyPatch, line: str, shell: str = "bash") -> list[str]:
    """What completes a line whose words are separated as bash does: at blanks and colons."""
    words = line.replace(":", " : ").split() if shell == "bash" else line.split()
    words += [""] if line.endswith(" ") else []
    monkeypatch.setenv("_PYLLM_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1) if shell == "bash" else words[-1])
    return [line for line in run().out.splitlines() if line]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pyllm per", ["plain,perplexity"]),
        ("pyllm run --chat-template-f", ["plain,--chat-template-file"]),
        ("pyllm run -m smoll", ["plain,smollm2:135m"]),
        ("pyllm run -m smollm2:", ["plain,135m"]),
        ("pyllm run -m smollm2:1", ["plain,135m"]),
        ("pyllm run smollm2:1", ["plain,135m"]),
        ("pyllm show smoll", ["plain,smollm2:135m"]),
        ("pyllm run --kv q", ["plain,q8_0"]),
        ("pyllm run -m ./mod", ["file,./mod"]),
        ("pyllm run --ctx-si", []),
        ("pyllm run --flash", []),
    ],
)
def test_bash_completes(run: Run, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]) -> None:
    assert completed(run, monkeypatch, line) == expected


def test_models_that_were_fetched_complete(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--user--repo" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "model-Q4_0.gguf").touch()
    found = completed(run, monkeypatch, "pyllm run -m hf.co/us")
    assert len(found) == 1
    assert found[0].startswith("plain,hf.co/user/repo")


def test_bash_completes_in_bash(tmp_path: Path) -> None:
    """The words that bash itself hands over, and what it makes of the answer."""
    bash = shutil.which("bash")
    if bash is None or os.name == "nt":
        pytest.skip("no bash")
    import subprocess
    import sys

    program = tmp_path / "pyllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pyllm "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(_PYLLM_COMPLETE=bash_source pyllm)" || exit\n'
        "COMP_WORDS=(pyllm run -m smollm2 : 1) COMP_CWORD=5\n"
        "compopt() { :; }\n"
        '_pyllm_completion pyllm; echo "${COMPREPLY[@]}"\n'
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYLLM_MODELS": str(tmp_path)}
    done = subprocess.run([bash, "--norc", "-c", script], capture_output=True, text=True, env=env, timeout=120)
    assert (done.stdout, done.stderr) == ("135m\n", "")


def test_other_shells_get_names_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "smollm2:135m" in "".join(completed(run, monkeypatch, "pyllm run -m smoll", "fish"))
