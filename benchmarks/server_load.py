"""Throughput and waiting times of `pyllm serve`, beside llama-server where there is one, in turn.

    python benchmarks/server_load.py -m MODEL [-m MODEL …] [--llama-server PATH] [-s 1 8 32] [-p 200] [-n 100] [-r 3]

Each stream sends a prompt of its own, whose first half all share, and reads an answer of `-n` tokens, greedy, without
an end. Prompts are token ids, new in each run but for the shared half. A process of its own reads all streams. The
medians of the runs are printed: tokens per second of all streams together, from the first request to the last token;
milliseconds to the first token of a stream; milliseconds between its tokens. `alone`: one prompt in `pyllm run`'s way.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyllm
from pyllm.jit.processors import default_threads
from servers import Server, pyllm_command, running

_WORDS = (
    "river",
    "stone",
    "because",
    "morning",
    "who",
    "never",
    "walked",
    "between",
    "houses",
    "told",
    "them",
    "seven",
)
_TOKEN = re.compile(rb'"text":"[^"]')
_USAGE = re.compile(rb'"completion_tokens":(\d+)')
_TAIL = 8
"""Bytes of a part that a match may have begun in."""
_END = 4096
"""Bytes that are kept of an answer's end, where its usage is."""
_LIMIT = 300.0
"""Seconds for which nothing may come."""

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", action="append", required=True)
    parser.add_argument("--llama-server", metavar="PATH")
    parser.add_argument("-s", "--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("-p", "--prompt", type=int, default=200)
    parser.add_argument("-n", "--tokens", type=int, default=100)
    parser.add_argument("-r", "--runs", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("--read", type=int, metavar="PORT", help="be the process that reads")
    a = parser.parse_args()
    if a.read is not None:
        read_all(a.read)
        return
    for model in a.model:
        compare(a, model)


def compare(a: argparse.Namespace, model: str) -> None:
    prompts = Prompts(model, a.prompt)
    most, room = max(a.streams), a.prompt + a.tokens + 56
    print(f"\n{Path(model).name}, {a.threads} threads, {a.prompt} + {a.tokens} tokens, median of {a.runs}\n")
    print("| streams | server | tokens/s | first token p50, ms | p95 | between tokens p95 |\n|---|---|---|---|---|---|")
    rate = statistics.median(alone(a, model, prompts))
    print(f"| 1 | alone | {rate:.0f} | | | |", flush=True)
    with ExitStack() as stack:
        own = ["--ctx", str(2 * room), "--max-seqs", str(most), "-t", str(a.threads), "--backend", "cpu"]
        commands = {"pyllm": pyllm_command([model], *own)}
        if a.llama_server is not None:
            peer = ["-c", str(most * room), "-np", str(most), "-t", str(a.threads)]
            commands["llama-server"] = [a.llama_server, "-m", model, *peer]
        ready = {"pyllm": "/ready", "llama-server": "/health"}
        servers = [stack.enter_context(running(name, command, ready[name])) for name, command in commands.items()]
        readers = [stack.enter_context(Reader(server)) for server in servers]
        for n in a.streams:
            rows: dict[str, list[Figures]] = {reader.name: [] for reader in readers}
            for run in range(a.runs + 1):
                for reader in readers:
                    found = reader.run(prompts.make(n), a.tokens)
                    if run:
                        rows[reader.name].append(found)
            report(n, {name: medians(found) for name, found in rows.items()})


def medians(rows: Sequence[Figures]) -> Figures:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def report(n: int, rows: dict[str, Figures]) -> None:
    for name, row in rows.items():
        print(f"| {n} | {name} | " + " | ".join(f"{row[key]:.0f}" for key in row) + " |")
    if len(rows) == 2:
        ours, theirs = rows.values()
        print(f"| {n} | ratio | " + " | ".join(f"{ours[key] / theirs[key]:.2f}" for key in ours) + " |", flush=True)


class Prompts:
    """Prompts as token ids of sentences, half shared; no prompt comes twice."""

    def __init__(self, model: str, n_tokens: int) -> None:
        from pyllm.gguf import open_gguf
        from pyllm.tokenizers import Tokenizer, from_gguf

        with open_gguf(model) as file:
            self._tokenizer: Tokenizer = from_gguf(file.metadata)
        self._random = random.Random(0)
        self._n = n_tokens
        self._shared = self._text(n_tokens // 2)

    def make(self, n: int) -> list[list[int]]:
        return [self._shared + self._text(self._n - len(self._shared)) for _ in range(n)]

    def _text(self, n: int) -> list[int]:
        words = " ".join(self._random.choice(_WORDS) for _ in range(2 * n))
        return self._tokenizer.encode(" " + words, add_special=False)[:n]


def alone(a: argparse.Namespace, model: str, prompts: Prompts) -> Iterator[float]:
    """Tokens per second of one answer after another, prompt included, without a server."""
    with pyllm.load(model, max_seqs=1, n_threads=a.threads, backend="cpu") as llm:
        for run in range(a.runs + 1):
            (prompt,) = prompts.make(1)
            began = time.perf_counter()
            for _ in llm.complete(prompt, stream=True, max_tokens=a.tokens, temperature=0, ignore_eos=True):
                pass
            if run:
                yield a.tokens / (time.perf_counter() - began)


class Reader:
    """The process that reads a server's streams."""

    def __init__(self, server: Server) -> None:
        self.name = server.name
        command = [sys.executable, str(Path(__file__).resolve()), "-m", "", "--read", str(server.port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, prompts: list[list[int]], n_tokens: int) -> Figures:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([prompts, n_tokens]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} failed")
        found: Figures = json.loads(answer)
        return found


@dataclass
class Stream:
    """One answer as it came."""

    times: list[float] = field(default_factory=list)
    """Of each token, in seconds since the request."""
    tail: bytes = b""
    end: bytes = b""

    @property
    def n_tokens(self) -> int:
        """As the server counts."""
        found = _USAGE.findall(self.end)
        return int(found[-1]) if found else 0

    def add(self, data: bytes, at: float) -> None:
        text = self.tail + data
        self.times += [at] * len(_TOKEN.findall(text))
        self.end = (self.end + data)[-_END:]
        self.tail = text[-_TAIL:]


def read_all(port: int) -> None:
    for line in sys.stdin:
        prompts, n_tokens = json.loads(line)
        requests = [request(prompt, n_tokens) for prompt in prompts]
        streams, seconds = read(port, requests)
        counts = {stream.n_tokens for stream in streams}
        assert counts == {n_tokens}, f"{counts} tokens were counted"
        firsts = sorted(stream.times[0] for stream in streams)
        gaps = sorted(b - a for s in streams for a, b in zip(s.times, s.times[1:], strict=False))
        figures = {
            "rate": n_tokens * len(streams) / seconds,
            "first p50": quantile(firsts, 0.5) * 1e3,
            "first p95": quantile(firsts, 0.95) * 1e3,
            "between p95": quantile(gaps, 0.95) * 1e3,
        }
        print(json.dumps(figures), flush=True)


def quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def request(prompt: list[int], n_tokens: int) -> bytes:
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    text = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text


def read(port: int, requests: Sequence[bytes]) -> tuple[list[Stream], float]:
    """The streams, and the seconds that all took."""
    streams = []
    with selectors.DefaultSelector() as selector:
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in requests]
        began = time.perf_counter()
        for connection, text in zip(connections, requests, strict=True):
            streams.append(Stream())
            selector.register(connection, selectors.EVENT_READ, streams[-1])
            connection.sendall(text)
        while selector.get_map():
            found = selector.select(_LIMIT)
            assert found, "nothing comes"
            now = time.perf_counter() - began
            for key, _ in found:
                take(selector, key, now)
    return streams, time.perf_counter() - began


def take(selector: selectors.BaseSelector, key: selectors.SelectorKey, now: float) -> None:
    connection, stream = key.fileobj, key.data
    assert isinstance(connection, socket.socket)
    if data := connection.recv(1 << 16):
        stream.add(data, now)
    else:
        selector.unregister(connection)
        connection.close()


if __name__ == "__main__":
    main()
