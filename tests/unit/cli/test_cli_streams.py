"""The streams of the process: closed, missing, full, broken, in other encodings. Each test starts a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import Run

import pyllm

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")

GREEDY = "--backend reference --temp 0 -n 8"
PYLLM = f"{sys.executable} -m pyllm"


def sh(script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """What a shell's script does that calls $PYLLM with a model $MODEL; its streams are pipes."""
    env = {**os.environ, "PYLLM": PYLLM, **environment}
    return subprocess.run(["sh", "-c", script], stdin=subprocess.PIPE, capture_output=True, timeout=120, env=env)


@pytest.fixture(scope="module")
def answer(model: str) -> bytes:
    with pyllm.load(model, backend="reference", max_seqs=1) as llm:
        text = llm.chat("hi", temperature=0, max_tokens=8).text
    return (text if text.endswith("\n") else text + "\n").encode()


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_run_answers_without_stdin_and_stderr(model: str, answer: bytes, closed: str) -> None:
    done = sh(f"$PYLLM run -m {model} {GREEDY} hi {closed}")
    assert (done.returncode, done.stdout, done.stderr) == (0, answer, b"")


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "command",
    ["--version", "list", "run --help", "run -m $MODEL GREEDY hi", "show $MODEL"],
)
def test_nothing_goes_wrong_where_nobody_listens(model: str, command: str, closed: str) -> None:
    done = sh(f"$PYLLM {command.replace('GREEDY', GREEDY)} {closed}", MODEL=model)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_chat_without_stdin_ends(model: str) -> None:
    done = sh(f"$PYLLM chat -m {model} {GREEDY} <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_chat_answers_without_stderr(model: str, answer: bytes) -> None:
    done = sh(f"echo hi | $PYLLM chat -m {model} {GREEDY} 2>&-")
    assert (done.returncode, done.stdout) == (0, answer)


def test_run_without_stdin_and_prompt_says_so(model: str) -> None:
    done = sh(f"$PYLLM run -m {model} {GREEDY} <&-")
    assert done.returncode == 2
    assert b"prompt is empty" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "code"), [("lst", 2), ("show nowhere.gguf", 1)])
@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_errors_that_cannot_be_said_keep_their_code(command: str, code: int, stderr: str) -> None:
    if "full" in stderr and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    done = sh(f"$PYLLM {command} {stderr}")
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["--version", "run --help", "show $MODEL", "run -m $MODEL G hi"])
def test_a_full_disk_is_an_error(model: str, command: str) -> None:
    done = sh(f"$PYLLM {command.replace('G hi', GREEDY + ' hi')} >/dev/full", MODEL=model)
    assert done.returncode == 1
    assert done.stderr == b"error: standard output cannot be written: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_for_notes_does_not_end_an_answer(model: str, answer: bytes) -> None:
    done = sh(f"$PYLLM run -m {model} {GREEDY} --stats hi 2>/dev/full")
    assert (done.returncode, done.stdout) == (0, answer)


@pytest.mark.parametrize("command", ["--version", "run --help", "show $MODEL", "run -m $MODEL G hi"])
def test_a_reader_that_has_left_is_no_error(model: str, command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [*PYLLM.split(), *command.replace("$MODEL", model).replace("G hi", GREEDY + " hi").split()]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_pipe_that_is_slow_and_does_not_block_gets_everything(tmp_path: Path, model: str) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    words = [*PYLLM.split(), "tokenize", "-m", model, "-f", str(tmp_path / "text")]
    (tmp_path / "text").write_text("x" * 20_000)  # some 300 kB of output, for a pipe of 64
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    with os.fdopen(read, "rb") as output:
        text = output.read()
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, b"")
    assert text.count(b'"x"\n') == 20_000


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_descriptors_of_missing_streams_are_not_given_to_files(model: str, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"""
import os, sys
from pyllm import cli
from pyllm.cli import run
def look(*_):
    fds = {{n: os.readlink(f"/proc/self/fd/{{n}}") for n in range(3)}}
    print(fds, [s is not None for s in (sys.stdin, sys.stdout, sys.stderr)], file=open({str(seen)!r}, "w"))
run._print_stream = look
cli.main(["run", "-m", {model!r}, *{GREEDY.split()!r}, "hi"])
"""
    (tmp_path / "script.py").write_text(script)
    done = sh(f"{sys.executable} {tmp_path / 'script.py'} <&- >&- 2>&-")
    assert done.returncode == 0
    expected = dict.fromkeys(range(3), "/dev/null")
    assert seen.read_text() == f"{expected} [True, True, True]\n"


def test_streams_that_python_calls_none_are_made(model: str, answer: bytes, tmp_path: Path) -> None:
    """As pythonw has it: no streams, though descriptors may be there."""
    words = ["run", "-m", model, *GREEDY.split(), "hi"]
    script = f"import sys; sys.stdin = sys.stdout = sys.stderr = None\nfrom pyllm import cli\ncli.main({words!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer, b"")


def test_the_library_warns_nobody_without_stderr(model: str, tmp_path: Path) -> None:
    script = (
        "import warnings, pyllm\n"
        f"with pyllm.load({model!r}, backend='reference') as llm:\n"
        "    warnings.warn('unheard')\n"
        f"    open({str(tmp_path / 'answer')!r}, 'w').write(llm.complete('a', max_tokens=1).finish_reason)\n"
        "import os\n"
        "assert {os.path.samestat(os.fstat(n), os.stat(os.devnull)) for n in range(3)} == {True}\n"
    )
    (tmp_path / "script.py").write_text(script)
    assert sh(f"{sys.executable} {tmp_path / 'script.py'} <&- >&- 2>&-").returncode == 0
    assert (tmp_path / "answer").read_text() == "length"


# Encodings


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "é☃ü"),
        ({"PYTHONIOENCODING": "ascii"}, "???"),
        ({"PYTHONIOENCODING": "latin-1"}, b"\xe9?\xfc"),
        ({"PYTHONIOENCODING": ":strict"}, "é☃ü"),
    ],
)
def test_encodings(model: str, environment: dict[str, str], expected: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(str(list("é☃ü".encode())))
    done = sh(f"$PYLLM tokenize -m {model} --decode -f {tmp_path / 'ids'}", **environment)
    wanted = expected if isinstance(expected, bytes) else expected.encode()
    assert (done.returncode, done.stdout, done.stderr) == (0, wanted + b"\n", b"")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_json_loses_nothing_in_any_encoding(model: str, tmp_path: Path, encoding: str) -> None:
    import json

    name = os.fsencode(str(tmp_path)) + b"/\xff \xe2\x98\x83.gguf"
    Path(os.fsdecode(name)).write_bytes(Path(model).read_bytes())
    done = subprocess.run(
        [*map(os.fsencode, PYLLM.split()), b"show", name, b"--output", b"json"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"},
        timeout=120,
    )
    assert done.returncode == 0
    assert os.fsencode(json.loads(done.stdout.decode(encoding))["path"]) == name


def test_a_terminal_that_is_not_utf8_shows_what_it_can(model: str) -> None:
    import pty

    master, slave = pty.openpty()
    words = [*PYLLM.split(), "tokenize", "-m", model, "--decode", str(list("é☃ü".encode()))]
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.PIPE, env=env, timeout=120)
    os.close(slave)
    shown = os.read(master, 100)
    os.close(master)
    assert (done.returncode, shown, done.stderr) == (0, b"\xe9?\xfc\r\n", b"")


# Odd input


def test_binary_junk_is_refused_in_one_line(model: str) -> None:
    done = sh(f"printf '\\377\\376\\000' | $PYLLM run -m {model} {GREEDY}")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: standard input is not UTF-8 text")
    assert done.stderr.count(b"\n") == 1


def test_binary_junk_in_a_chat_is_read_as_text(model: str) -> None:
    done = sh(f"printf '\\377\\376\\000\\n' | $PYLLM chat -m {model} {GREEDY}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


def test_a_directory_as_stdin_is_no_traceback(model: str, tmp_path: Path) -> None:
    """Python itself ends with status 1 and a message before any program of it begins."""
    done = sh(f"$PYLLM tokenize -m {model} < {tmp_path}")
    assert done.returncode == 1
    assert b"directory" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_directory_as_file_is_said(model: str, tmp_path: Path) -> None:
    done = sh(f"$PYLLM tokenize -m {model} -f {tmp_path}")
    assert (done.returncode, done.stderr.decode()) == (1, f"error: {tmp_path}: Is a directory\n")


def test_bytes_that_are_not_utf8_in_arguments(run: Run, model: str) -> None:
    words = [*PYLLM.split(), "tokenize", "-m", model, "--ids", "--no-special"]
    done = subprocess.run([*map(os.fsencode, words), b"a\xffb"], capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, str([97, *"\ufffd".encode(), 98]).encode() + b"\n")
    odd = ["--stop", "\udcff", "--system", "\udcff", "a\udcff"]
    assert run("run", "-m", model, *GREEDY.split(), *odd).code == 0


def test_long_arguments(run: Run, model: str) -> None:
    long = "x" * 100_000
    assert run("tokenize", "--count", "--no-special", "-m", model, long).out == "100000\n"
    for words in (["run", "-m", model, *GREEDY.split(), long], ["show", long], ["run", "-m", long, "hi"]):
        done = run(*words)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
