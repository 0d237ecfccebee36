"""Commands that run a model, on a small random one with the reference backend."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import Run

import pyllm
from tiny_gguf import write_tiny_gguf

REFERENCE = ("--backend", "reference")
GREEDY = (*REFERENCE, "--temp", "0", "-n", "8")


def shown(text: str) -> str:
    """An answer as it is printed: with a line end, unless it has one or is empty."""
    return text if text.endswith("\n") or not text else text + "\n"


def answer(model: str, prompt: str, **options: object) -> str:
    """What the library answers."""
    with pyllm.load(model, backend="reference", max_seqs=1) as llm:
        return llm.chat(prompt, temperature=0, max_tokens=8, **options).text  # type: ignore[arg-type]


def test_run_prints_the_answer(run: Run, model: str) -> None:
    expected = shown(answer(model, "hi there"))
    for arguments in (["hi there"], ["hi", "there"], ["-p", "hi there"]):
        done = run("run", "-m", model, *GREEDY, *arguments)
        assert (done.code, done.out, done.err) == (0, expected, "")
    assert run("run", "-m", model, *GREEDY, stdin=b"hi there").out == expected


def test_run_joins_prompt_and_text(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("some notes")
    expected = shown(answer(model, "Sum:\n\nsome notes"))
    assert run("run", "-m", model, *GREEDY, "Sum:", "-f", str(file)).out == expected
    assert run("run", "-m", model, *GREEDY, "Sum:", "-f", "-", stdin=b"some notes").out == expected
    command = [sys.executable, "-m", "pyllm", "run", "-m", model, *GREEDY, "Sum:"]
    with open(file, "rb") as stdin:
        assert subprocess.run(command, stdin=stdin, capture_output=True, check=True).stdout.decode() == expected
    piped = subprocess.run(command, input=b"some notes", capture_output=True, check=True)
    assert piped.stdout.decode() == expected


def test_run_does_not_wait_for_a_silent_pipe(model: str) -> None:
    command = [sys.executable, "-m", "pyllm", "run", "-m", model, *GREEDY, "hi"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read().decode() == shown(answer(model, "hi"))
    assert process.wait(timeout=300) == 0


def test_run_json_and_stats(run: Run, model: str) -> None:
    done = run("run", "-m", model, *GREEDY, "--json", "--stats", "hi")
    fields = json.loads(done.out)
    assert fields["text"] == answer(model, "hi")
    assert fields["finish_reason"] == "length"
    assert fields["n_generated"] == len(fields["tokens"]) == 8
    assert re.fullmatch(r"prompt: 25 tokens, .*/s; answer: 8 tokens, .*\n", done.err)


def test_run_raw_seed_stop_and_system(run: Run, model: str) -> None:
    with pyllm.load(model, backend="reference", max_seqs=1) as llm:
        raw = llm.complete("Once", temperature=0, max_tokens=8).text
        told = llm.chat(
            [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], temperature=0, max_tokens=8
        ).text
    assert run("run", "-m", model, *GREEDY, "--raw", "Once").out == shown(raw)
    assert run("run", "-m", model, *GREEDY, "--system", "s", "hi").out == shown(told)
    plain = next(c for c in answer(model, "hi")[1:] if c.isprintable())
    stopped = run("run", "-m", model, *GREEDY, "--stop", plain, "hi").out
    assert stopped == shown(answer(model, "hi").partition(plain)[0])
    seeded = [run("run", "-m", model, *REFERENCE, "-n", "8", "--temp", "2", "-s", seed, "hi").out for seed in "112"]
    assert seeded[0] == seeded[1] != seeded[2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--backend", "nope", "hi"], 1, "nope"),
        ([*REFERENCE, "   "], 2, "empty"),
        ([*REFERENCE, "x" * 5000], 1, "context"),
        ([*REFERENCE, "--top-p", "-3", "hi"], 1, "top_p"),
    ],
)
def test_run_refuses(run: Run, model: str, arguments: list[str], code: int, words: str) -> None:
    done = run("run", "-m", model, *arguments)
    assert done.code == code
    assert words in done.err.lower()


def test_without_a_template(run: Run, tmp_path: Path) -> None:
    bare = str(write_tiny_gguf(tmp_path / "bare.gguf", template=None))
    for command in (["run", "-m", bare, *REFERENCE, "hi"], ["chat", "-m", bare, *REFERENCE]):
        done = run(*command)
        assert done.code == 1
        assert "--raw" in done.err
    assert run("run", "-m", bare, *GREEDY, "--raw", "hi").code == 0


def test_chat_from_a_pipe(run: Run, model: str, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    script = f'one\n\n"""two\nlines"""\n/save {saved}\n/regen\n/clear\n/load {saved}\n/what\n//slash\n/exit\nnever\n'
    done = run("chat", "-m", model, *GREEDY, "--system", "s", stdin=script.encode())
    assert done.code == 0
    assert done.err.count("\n") == 1
    assert "there is no /what" in done.err
    talk = json.loads(saved.read_text())
    assert talk["system"] == "s"
    assert [m["role"] for m in talk["messages"]] == ["user", "assistant"] * 2
    assert [m["content"] for m in talk["messages"]][::2] == ["one", "two\nlines"]
    with pyllm.load(model, backend="reference", max_seqs=1) as llm:
        history = [{"role": "system", "content": "s"}]
        for text in ("one", "two\nlines", "/slash"):
            history.append({"role": "user", "content": text})
            history.append(llm.chat(history, temperature=0, max_tokens=8).message)
    answers = [m["content"] for m in history if m["role"] == "assistant"]
    expected = [answers[0], answers[1], f"4 messages are in {saved}.", answers[1], "The conversation is forgotten."]
    expected += ["4 messages are loaded.", answers[2]]
    assert done.out == "".join(map(shown, expected))


def test_run_ends_where_the_context_is_full(run: Run, model: str) -> None:
    """25 tokens of prompt and 40 of answer: the last one need not be in the context of 64."""
    with pyllm.load(model, backend="reference", n_ctx=64) as llm:
        expected = llm.chat("hi", temperature=0, max_tokens=40)
    for limit in (["-n", "5000"], ["-n", "-1"], []):
        done = run("run", "-m", model, *REFERENCE, "--temp", "0", "--ctx", "64", *limit, "--json", "hi")
        fields = json.loads(done.out)
        assert (done.code, fields["finish_reason"]) == (0, "length")
        assert (fields["text"], fields["n_generated"]) == (expected.text, 40)
        assert done.err == "note: cut off: the context of 64 tokens is full; --ctx makes it larger\n"
    done = run("run", "-m", model, *REFERENCE, "--temp", "0", "--ctx", "64", "-n", "40", "hi")
    assert (done.code, done.out, done.err) == (0, shown(expected.text), "")


def test_chat_leaves_out_the_oldest_turns_and_says_so_once(run: Run, model: str, tmp_path: Path) -> None:
    """A turn takes some 35 tokens of 128: from the third on, the first ones go. What is saved is all of it."""
    saved = tmp_path / "talk.json"
    lines = [f"line {i}" for i in range(6)]
    script = "\n".join([*lines, f"/save {saved}", "/clear", "again", ""])
    done = run("chat", "-m", model, *GREEDY, "--ctx", "128", "--system", "s", stdin=script.encode())
    assert done.code == 0
    assert done.err.count("the oldest messages are left out from now on") == 1
    assert done.err.count("\n") == 1
    talk = json.loads(saved.read_text())["messages"]
    assert [m["content"] for m in talk[::2]] == lines
    system = {"role": "system", "content": "s"}
    with pyllm.load(model, backend="reference", max_seqs=1, n_ctx=128) as llm:
        whole = llm.chat([system, *talk[:1]], max_tokens=8, temperature=0)
        assert (whole.text, whole.n_dropped) == (talk[1]["content"], 0)
        with pytest.raises(pyllm.ContextFullError):
            llm.chat([system, *talk[:11]], max_tokens=8, temperature=0)
        last = llm.chat([system, *talk[:11]], max_tokens=8, temperature=0, truncate="oldest")
        assert last.text == talk[11]["content"]
        assert last.n_dropped in (6, 8)
        assert last.text == llm.chat([system, *talk[last.n_dropped : 11]], max_tokens=8, temperature=0).text


def test_chat_refuses_a_message_that_does_not_fit_and_goes_on(run: Run, model: str) -> None:
    script = "one\n" + "x" * 200 + "\n/regen\n"
    done = run("chat", "-m", model, *GREEDY, "--ctx", "128", stdin=script.encode())
    with pyllm.load(model, backend="reference", max_seqs=1, n_ctx=128) as llm:
        expected = shown(llm.chat("one", max_tokens=8, temperature=0).text)
    assert (done.code, done.out) == (0, expected * 2)
    assert re.fullmatch(r"error: the prompt has \d+ tokens and the context holds 128.*\n", done.err)


@pytest.mark.parametrize("content", ["[]", "{}", '{"messages": [{"role": "user", "content": "x"}]}', "not json"])
def test_chat_refuses_what_it_did_not_save(run: Run, model: str, tmp_path: Path, content: str) -> None:
    (tmp_path / "talk.json").write_text(content)
    done = run("chat", "-m", model, *GREEDY, stdin=f"/load {tmp_path / 'talk.json'}\n/regen\n".encode())
    assert done.code == 0
    assert done.out == ""
    assert done.err.count("error: ") == 2


def test_perplexity(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog " * 20)
    done = run("perplexity", "-m", model, *REFERENCE, "-f", str(file), "--ctx", "64", "--chunks", "2")
    assert done.code == 0
    assert re.fullmatch(r"\[1\]\d+\.\d+,\[2\]\d+\.\d+,\nFinal estimate: PPL = \d+\.\d+ \+/- \d+\.\d+\n", done.out)
    file.write_text("short")
    assert run("perplexity", "-m", model, *REFERENCE, "-f", str(file)).code == 1


def test_bench(run: Run, model: str) -> None:
    done = run(
        "bench", "-m", model, *REFERENCE, "-p", "8,16", "-n", "2", "-pg", "4,2", "-r", "2", "-t", "1", "-o", "json"
    )
    results = json.loads(done.out)
    assert [(r["n_prompt"], r["n_gen"]) for r in results] == [(8, 0), (16, 0), (0, 2), (4, 2)]
    assert all(len(r["samples_ts"]) == 2 and r["n_threads"] == 1 for r in results)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX terminal")
def test_a_terminal(tmp_path: Path) -> None:
    """Greeting and prompt appear, control characters are shown, Ctrl-C ends an answer and not the chat."""
    import fcntl
    import pty
    import select
    import struct
    import termios

    hostile = str(write_tiny_gguf(tmp_path / "hostile.gguf", name="evil\x1b]0;pwned\x07"))
    screen = b""

    def expect(pattern: bytes) -> re.Match[bytes]:
        """Read until the pattern is there; what stands before its end is not searched again."""
        nonlocal screen
        deadline = time.monotonic() + 300
        while not (found := re.search(pattern, screen, re.DOTALL)):
            assert time.monotonic() < deadline, screen
            if select.select([master], [], [], 0.1)[0]:
                screen += os.read(master, 4096)
        screen = screen[found.end() :]
        return found

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [
        sys.executable,
        "-m",
        "pyllm",
        "chat",
        "-m",
        hostile,
        *REFERENCE,
        "--ctx",
        "8192",
        "--logit-bias",
        "90=99",
    ]
    env = {**os.environ, "PYLLM_DATA": str(tmp_path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True, close_fds=True
    )
    os.close(slave)
    try:
        expect("evil␛]0;pwned␇, 8192 tokens of context.*>>>".encode())
        os.write(master, b"talk\r")
        expect(b"ZZZ")
        process.send_signal(signal.SIGINT)
        expect(b"\n.*>>>")
        os.write(master, b"/stats\r")
        assert 3 <= int(expect(rb"answer: (\d+) tokens")[1]) < 8000
        expect(b"threads.*>>>")
        os.write(master, b"\x04")
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        os.close(master)
    assert "talk" in (tmp_path / "chat_history").read_text()
