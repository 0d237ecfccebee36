"""A server under load for minutes: whole and streamed answers, cancels, slow readers, bad requests, killed clients.

    python benchmarks/server_soak.py -m MODEL -m MODEL [--minutes 30] [-c 64] [--max-loaded 1] [--backend cpu]

Greedy answers must be those that each prompt gets alone, bad requests must be refused as such. With --max-loaded 1 the
models take turns. At the end no page is held, no descriptor or thread is left over, and memory is what it was after
the warm-up (the first 40 % of the time), within --growth. Exit status 1 where one of these fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyllm.config.serving import ServeOptions
from pyllm.jit.memory import resident
from pyllm.server import House, make_house
from pyllm.server.process import Running
from servers import ask

_PROMPTS = [f"{verb} {topic}" for verb in ("A poem on", "Why are there") for topic in ("clocks", "bread", "rivers")]
_PER_PROCESS = 8
_TOKENS = 24
_ANSWER_LIMIT = 300.0
"""Seconds for one answer: a model may have to be loaded again and again before its turn comes."""
_BAD: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b'{"prompt": "a", "max_tokens": "many"}', 400),
    (b'{"prompt": {"no": 1}}', 400),
    (b'{"prompt": "a", "model": "nobody"}', 404),
)
Known = dict[str, dict[str, str]]
"""Answers by model and prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", action="append", default=[])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("-c", "--clients", type=int, default=64)
    parser.add_argument("--max-loaded", type=int, default=2)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--growth", type=float, default=0.02)
    parser.add_argument("--client", type=int, metavar="PORT", help="be a process of clients")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    if a.client is not None:
        sys.exit(asyncio.run(clients(a.client, a.seed, a.minutes * 60)))
    sys.exit(soak(a))


def soak(a: argparse.Namespace) -> int:
    """The number of checks that failed."""
    options = ServeOptions(
        models=tuple(a.model), port=0, n_ctx=512, max_loaded=a.max_loaded, keep_alive=-1, load={"backend": a.backend}
    )
    with serving(options) as (house, port):
        known = alone(port, [Path(model).stem for model in a.model])
        idle = counts()
        counted, memory, wrong = under_load(a, port, known)
        wait_idle(house)
        wrong += [f"{left} {what} are left over" for what, left in (counts() - idle).items()]
        for served in house.models.loaded:
            engine = served.llm.llm.engine
            engine.check()
            if engine.pool.n_available != engine.pool.n_pages:
                wrong.append(f"{served.known.name} holds {engine.pool.n_pages - engine.pool.n_available} pages")
    growth = max(memory[7:]) / max(memory[4:7]) - 1
    if growth > a.growth:
        wrong.append(f"memory has grown by {growth:.1%}")
    print(json.dumps({"requests": counted, "growth": round(growth, 4), "wrong": wrong}), flush=True)
    return len(wrong)


@contextmanager
def serving(options: ServeOptions) -> Iterator[tuple[House, int]]:
    house = make_house(options)
    server = Running(house)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 120
        while not server.listens or house.models.starting:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < end, "the server is not ready"
            time.sleep(0.05)
        yield house, int(server.address.rpartition(":")[2])
    finally:
        server.end(at_once=True)
        thread.join(60)


def alone(port: int, models: list[str]) -> Known:
    known: Known = {}
    for model in models:
        for prompt in _PROMPTS:
            status, body = ask(port, "/v1/completions", asked(model, prompt, stream=False))
            assert status == 200, body
            known.setdefault(model, {})[prompt] = json.loads(body)["choices"][0]["text"]
    return known


def asked(model: str, prompt: str, stream: bool) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, "max_tokens": _TOKENS, "temperature": 0, "ignore_eos": True}
    return {**body, "stream": stream}


def counts() -> Counter[str]:
    folder = "/proc/self/fd"
    n_open = len(os.listdir(folder)) if os.path.isdir(folder) else 0
    # The event loop's own pool grows as it needs, up to its limit.
    n_threads = sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())
    return Counter({"descriptors": n_open, "threads": n_threads})


def under_load(a: argparse.Namespace, port: int, known: Known) -> tuple[Counter[str], list[int], list[str]]:
    """What the clients counted, the most memory in each tenth of the time, and what went wrong."""
    end = time.monotonic() + a.minutes * 60
    rng, number, memory = random.Random(0), 0, [0] * 10
    running: list[subprocess.Popen[str]] = []
    counted: Counter[str] = Counter()
    wrong: list[str] = []

    def begin() -> None:
        nonlocal number
        number += 1
        minutes = max(0.0, end - time.monotonic()) / 60
        command = [sys.executable, str(Path(__file__).resolve()), "--client", str(port), "--seed", str(number)]
        process = subprocess.Popen(
            [*command, "--minutes", str(minutes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(known) + "\n")
        process.stdin.close()
        process.stdin = None  # `communicate` would flush it
        running.append(process)

    for _ in range(max(1, a.clients // _PER_PROCESS)):
        begin()
    next_kill = time.monotonic() + 3
    while (now := time.monotonic()) < end:
        tenth = min(9, int(10 * (1 - (end - now) / (a.minutes * 60))))
        memory[tenth] = max(memory[tenth], resident() or 0)
        if now > next_kill and end - now > 2:
            victim = running.pop(rng.randrange(len(running)))
            victim.kill()
            wrong += victim.communicate()[0].splitlines()
            counted["killed processes"] += 1
            begin()
            next_kill = now + 3
        time.sleep(0.05)
    for process in running:
        try:
            output, _ = process.communicate(timeout=_ANSWER_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            wrong.append("clients got no answer")
            continue
        *lines, last = output.splitlines() or ["a process of clients failed"]
        wrong += lines if process.returncode == 0 else [*lines, last]
        if process.returncode == 0:
            counted += Counter(json.loads(last))
    return counted, memory, wrong


def wait_idle(house: House) -> None:
    end = time.monotonic() + 60
    while house.busy:
        assert time.monotonic() < end, "requests of clients that are gone still run"
        time.sleep(0.05)
    time.sleep(1)  # connections close after their answers


async def clients(port: int, seed: int, seconds: float) -> int:
    """Be some clients; prints what went wrong, then what was done."""
    known: Known = json.loads(sys.stdin.readline())
    count: Counter[str] = Counter()
    end = time.monotonic() + seconds
    await asyncio.gather(*(client(port, random.Random(seed * 100 + i), known, count, end) for i in range(_PER_PROCESS)))
    print(json.dumps(count))
    return 0


async def client(port: int, rng: random.Random, known: Known, count: Counter[str], end: float) -> None:
    while time.monotonic() < end:
        model, how = rng.choice(list(known)), rng.choice(["whole", "stream", "stream", "slow", "left", "bad"])
        prompt = rng.choice(_PROMPTS)
        try:
            async with asyncio.timeout(_ANSWER_LIMIT):
                problem = await one(port, how, rng, asked(model, prompt, how != "whole"), known[model][prompt])
        except (OSError, TimeoutError, ValueError, KeyError) as error:
            problem = f"{type(error).__name__} {error}"
        count[how] += 1
        if problem:
            print(f"{how}, {model}, {prompt}: {problem}"[:500], flush=True)


async def one(port: int, how: str, rng: random.Random, body: dict[str, Any], answer: str) -> str:
    """What is wrong with one answer; "" for nothing."""
    data, wanted = (json.dumps(body).encode(), 200) if how != "bad" else rng.choice(_BAD)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + data)
        if how == "left":
            await asyncio.sleep(rng.random())
            return ""
        status = int((await reader.readline()).split()[1])
        if status != wanted:
            return f"status {status}: {(await reader.read()).decode()}"
        got = b""
        while piece := await reader.read(256 if how == "slow" else 1 << 16):
            got += piece
            if how == "slow":
                await asyncio.sleep(0.02)
        text = "" if how == "bad" else text_of(got, how == "whole")
        return "" if how == "bad" or text == answer else f"{text!r} instead of {answer!r}"
    finally:
        writer.close()


def text_of(got: bytes, is_whole: bool) -> str:
    body = got.partition(b"\r\n\r\n")[2]
    if is_whole:
        # One that took long comes in chunks, after their sizes.
        return str(json.loads(next(line for line in body.split(b"\r\n") if b"{" in line))["choices"][0]["text"])
    events = [line[6:] for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


if __name__ == "__main__":
    main()
