"""What the server adds to a token: processor time of the event loop, and tokens per second, beside `AsyncLLM` alone.

    python benchmarks/server_overhead.py -m MODEL [-s 16] [-n 60] [-r 3]

The same streams are read in this process, then over HTTP by a process of its own. The event loop's thread and the
whole process are measured apart: threads that compute wait in loops, so the process's figure depends on what else runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pyllm import AsyncLLM
from pyllm.server import ServeOptions, make_house
from pyllm.server.process import Running

CHAT = {"messages": [{"role": "user", "content": "Write a long story about a fox."}]}
N_CTX = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-s", "--streams", type=int, default=16)
    parser.add_argument("-n", "--tokens", type=int, default=60)
    parser.add_argument("-r", "--runs", type=int, default=3)
    parser.add_argument("--read", type=int, metavar="PORT", help="be the process that reads")
    a = parser.parse_args()
    if a.read is not None:
        read(a.read, a.streams, a.tokens)
        return
    load = {"backend": "cpu", "n_kv": a.streams * 512}
    rows = asyncio.run(alone(a, load))
    rows += served(a, load)
    print("| | loop, us per token | process, us per token | tokens per second |\n|---|---|---|---|")
    for name, loop, process, rate in rows:
        print(f"| {name} | {loop:.1f} | {process:.0f} | {rate:.0f} |")


Row = tuple[str, float, float, float]


def row(name: str, n_tokens: int, before: tuple[float, ...], after: tuple[float, ...]) -> Row:
    """Of two readings of the thread's, the process's and the wall's clock, in seconds."""
    loop, process, wall = (b - a for a, b in zip(before, after, strict=True))
    return name, loop / n_tokens * 1e6, process / n_tokens * 1e6, n_tokens / wall


def clocks(thread: int) -> tuple[float, float, float]:
    clock = time.pthread_getcpuclockid(thread)
    return time.clock_gettime(clock), time.process_time(), time.perf_counter()


async def alone(a: argparse.Namespace, load: dict[str, Any]) -> list[Row]:
    options: Any = {"max_tokens": a.tokens, "temperature": 0, "ignore_eos": True}

    async def one() -> None:
        async for _ in llm.chat(CHAT["messages"], stream="events", **options):
            pass

    rows = []
    async with await AsyncLLM.load(a.model, n_ctx=N_CTX, max_seqs=a.streams, **load) as llm:
        for run in range(a.runs + 1):
            before = clocks(threading.get_ident())
            await asyncio.gather(*(one() for _ in range(a.streams)))
            if run:
                rows.append(row("alone", a.streams * a.tokens, before, clocks(threading.get_ident())))
    return rows


def served(a: argparse.Namespace, load: dict[str, Any]) -> list[Row]:
    house = make_house(ServeOptions(models=(a.model,), port=0, n_ctx=N_CTX, max_seqs=a.streams, load=load))
    server = Running(house)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.listens and not house.models.starting)
    command = [sys.executable, __file__, "-m", a.model, "-s", str(a.streams), "-n", str(a.tokens)]
    command += ["--read", server.address.rpartition(":")[2]]
    rows = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert thread.ident is not None
        for run in range(a.runs + 1):
            before = clocks(thread.ident)
            reader.stdin.write("go\n")
            reader.stdin.flush()
            n_read = int(reader.stdout.readline())
            if run:
                rows.append(row("served", a.streams * a.tokens, before, clocks(thread.ident)))
            assert n_read >= a.streams * a.tokens * 0.9, f"{n_read} chunks came"  # parts of characters come together
    server.end(at_once=True)
    thread.join()
    return rows


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


def read(port: int, n_streams: int, n_tokens: int) -> None:
    """Read the streams for each line of the input, as cheaply as may be; print the number of chunks."""
    body = json.dumps({**CHAT, "stream": True, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"Connection: close\r\n\r\n" + body
    for _ in sys.stdin:
        found: dict[socket.socket, list[bytes]] = {}
        with selectors.DefaultSelector() as selector:
            for _ in range(n_streams):
                connection = socket.create_connection(("127.0.0.1", port))
                connection.sendall(request)
                selector.register(connection, selectors.EVENT_READ)
                found[connection] = []
            while selector.get_map():
                for key, _ in selector.select():
                    connection = key.fileobj  # type: ignore[assignment]
                    if data := connection.recv(1 << 16):
                        found[connection].append(data)
                    else:
                        selector.unregister(connection)
                        connection.close()
        print(sum(b"".join(pieces).count(b'"delta"') for pieces in found.values()), flush=True)


if __name__ == "__main__":
    main()
