"""`pyllm serve` in a shell: what is refused, what it says, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import Run

from pyllm.cli.serve import command
from pyllm.config.serving import ServeOptions

REFERENCE = ("--backend", "reference")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "port must be between 0 and 65535, not 70000"),
        (["--port", "http"], "'http' is not a whole number of 0 or more"),
        (["--host", "0.0.0.0"], "0.0.0.0 is reachable from other machines, and there is no key; give --api-key"),
        (["--host", "::"], ":: is reachable from other machines, and there is no key"),
        (["--api-key", ""], "an API key must be printable ASCII, and not empty"),
        (["--keep-alive", "soon"], "'soon' is not a time such as 90, 5m or 1h30m"),
        (["--alias", "gpt"], "'gpt' is not of the form NAME=MODEL"),
        (["--max-body", "much"], "'much' is not a size such as 2G, 900M or 700MiB"),
        (["--ssl-keyfile", "key.pem"], "ssl_keyfile needs ssl_certfile"),
        (["--ssl-certfile", "none.pem", "--port", "0"], "cannot use the certificate none.pem: No such file"),
        (["--backend", "none"], "none"),
        (["no-such-model"], "no-such-model"),
        (["--pin", "no-such-model"], "no-such-model"),
        (["--alias", "gpt=other"], "the alias gpt is of other, which is not served"),
    ],
)
def test_what_cannot_be_served_is_one_clear_error(run: Run, model: str, arguments: list[str], words: str) -> None:
    done = run("serve", *([] if arguments == ["no-such-model"] else [model]), "--offline", *arguments)
    assert done.code in (1, 2)
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_port_that_is_taken_is_refused(run: Run, model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("serve", model, "--port", str(port))
    assert done.code == 1
    assert f"error: cannot listen on 127.0.0.1:{port}: " in done.err
    assert done.err.rstrip().endswith("choose another with --port")


def test_missing_packages_are_named_with_what_brings_them(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("pyllm.cli.serve.find_spec", lambda name: None if name == "uvicorn" else object())
    done = run("serve", model)
    assert done.code == 1
    assert done.err == ('error: the server needs further packages, uvicorn; pip install "pyllm[server]" brings them\n')


def test_a_file_of_keys_without_keys_is_refused(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n\n")
    done = run("serve", model, "--host", "0.0.0.0", "--api-key-file", str(tmp_path / "keys"))
    assert (done.code, done.err) == (1, f"error: {tmp_path / 'keys'} has no keys\n")


def test_flags_become_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[ServeOptions] = []
    monkeypatch.setattr("pyllm.server.process.serve", lambda options, ready: given.append(options))
    monkeypatch.setenv("PYLLM_API_KEY", "first\nsecond")
    monkeypatch.setenv("PYLLM_MAX_WAITING", "7")
    (tmp_path / "keys").write_text("# of the office\nthird\n")
    command.main(
        [
            *("a", "b", "--alias", "chat=a", "--alias", "code=b", "--pin", "a", "--host", "::1", "--port", "0"),
            *(
                "--uds",
                "/tmp/s",
                "--api-key-file",
                str(tmp_path / "keys"),
                "--insecure",
                "--origin",
                "https://a.example",
            ),
            *("--allow-host", "box", "--ssl-certfile", "c", "--ssl-keyfile", "k", "-c", "4096", "--max-seqs", "3"),
            *("--max-loaded", "2", "--keep-alive", "1h30m", "--max-body", "2MiB", "--max-blob", "1G"),
            *("--max-tokens", "99", "--timeout", "2m", "--drain", "5", "--max-connections", "9", "--log-json"),
            *("--log-prompts", "--no-page", "--backend", "cpu", "-t", "2", "--kv", "q8_0", "-ngl", "0", "--lora", "x"),
        ],
        standalone_mode=False,
    )
    assert given == [
        ServeOptions(
            models=("a", "b"),
            aliases=(("chat", "a"), ("code", "b")),
            pinned=("a",),
            host="::1",
            port=0,
            uds="/tmp/s",
            api_keys=("first", "second", "third"),
            insecure=True,
            origins=("https://a.example",),
            hosts=("box",),
            ssl_certfile="c",
            ssl_keyfile="k",
            n_ctx=4096,
            max_seqs=3,
            max_waiting=7,
            max_loaded=2,
            keep_alive=5400.0,
            load={
                "backend": "cpu",
                "n_threads": 2,
                "kv_dtype": "q8_0",
                "n_gpu_layers": 0,
                "adapters": [("x", 1.0)],
            },
            max_body=2 << 20,
            max_blob=10**9,
            max_tokens=99,
            timeout=120.0,
            drain=5.0,
            max_connections=9,
            log_json=True,
            log_prompts=True,
            page=False,
        )
    ]


@contextmanager
def served(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server of its own: process, address, lines of its standard error."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "pyllm", "serve", "--port", "0", *REFERENCE, *arguments]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stderr is not None
    lines: list[str] = []
    address = ""
    for line in process.stderr:
        lines.append(line)
        if (found := re.search(r"http://[\d.]+:\d+", line)) is not None:
            address = found[0]
            break
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
    reader.start()
    try:
        yield process, address, lines
    finally:
        process.kill()
        process.wait(60)
        reader.join(60)
        process.stderr.close()


def chat(address: str, **body: object) -> urllib.request.Request:
    body = {"messages": [{"role": "user", "content": "hi"}], **body}
    return urllib.request.Request(
        address + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )


@pytest.mark.skipif(sys.platform == "win32", reason="ends by signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_end(model: str, number: signal.Signals) -> None:
    with served(model, "--drain", "300") as (process, address, lines):
        body = {"max_tokens": 40, "logit_bias": {"256": -100}, "stream": True}
        with urllib.request.urlopen(chat(address, **body), timeout=300) as answer:
            answer.readline()
            process.send_signal(number)
            rest = answer.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert process.wait(300) == 0
    text = "".join(lines)
    assert "Traceback" not in text
    assert " loaded model=" in text
    assert " ending requests=1" in text
    assert f"pyllm serves at {address}\n" in text


@pytest.mark.skipif(sys.platform == "win32", reason="ends by signals of POSIX")
def test_a_second_signal_ends_at_once(model: str) -> None:
    with served(model, "--log-json") as (process, address, lines):
        body = {"max_tokens": 100_000, "logit_bias": {"256": -100}, "stream": True, "context_shift": True}
        with urllib.request.urlopen(chat(address, **body), timeout=60) as answer:
            answer.readline()
            process.send_signal(signal.SIGTERM)
            while not any('"ending"' in line for line in lines):
                answer.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    assert "Traceback" not in "".join(lines)
    events = [json.loads(line)["event"] for line in lines]
    assert events[0] == "listening"
    assert {"ending", "unloaded"} <= set(events)
