"""Replicas on Ray: throughput of two beside one, each of one thread; prefix cache hits by routing.

    python benchmarks/ray_replicas.py -m MODEL [-s 16] [-p 100] [-n 64] [-r 5] [--max-seqs 8] [--hits-model MODEL]

Needs pyllm[ray]. Both applications run at the same time, and are loaded in turn by as many clients at once as `-s`
says; a replica computes up to `--max-seqs` requests together. Prompts are random token ids, answers greedy, without an
end. Tokens per second of all clients together are printed for each round, for whole answers and for streamed ones, and
the median of the rounds' ratios. Then conversations are held through each router in turn: the share of their prompts'
tokens that was in a prefix cache, and the seconds that all took.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.serve.request_router import RequestRouter

from pyllm.ray import PrefixRouter, ServeOptions, application
from servers import ask, free_port

_LIMIT = 600.0
"""Seconds for one answer."""


class RandomRouter(RequestRouter):
    """Sends each request anywhere."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [[replica] for replica in random.sample(candidate_replicas, len(candidate_replicas))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-s", "--streams", type=int, default=16)
    parser.add_argument("-p", "--prompt", type=int, default=100)
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--max-seqs", type=int, default=8)
    parser.add_argument("--hits-model", metavar="MODEL", help="for the conversations; default: the same")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what Ray and the servers log")
    a = parser.parse_args()
    if not a.verbose:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
    os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever runs beside them comes first
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=a.verbose, logging_level="WARNING")
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        throughput(a, port)
        hits(a, port)
    finally:
        serve.shutdown()
        ray.shutdown()


def throughput(a: argparse.Namespace, port: int) -> None:
    room = a.prompt + a.tokens + 16
    options = served(a, a.model, n_ctx=max(512, room), max_seqs=a.max_seqs)
    print(f"\n{Path(a.model).name}, one thread a replica, {a.streams} clients, {a.prompt} + {a.tokens} tokens\n")
    print("| answers | round | one replica, tokens/s | two | ratio |\n|---|---|---|---|---|")
    with running("one", options, replicas=1), running("two", options, replicas=2):
        for stream in (False, True):
            ratios = []
            for number in range(a.rounds + 1):
                one, two = (rate(a, port, f"/{name}/v1/completions", stream) for name in ("one", "two"))
                if number:  # the first warms up
                    ratios.append(two / one)
                    kind = "streamed" if stream else "whole"
                    print(f"| {kind} | {number} | {one:.1f} | {two:.1f} | {two / one:.2f} |", flush=True)
            print(f"| | median | | | {statistics.median(ratios):.2f} |", flush=True)


def rate(a: argparse.Namespace, port: int, path: str, stream: bool) -> float:
    """Tokens per second of as many clients as were asked for, each with a prompt of its own."""
    source = random.Random()
    bodies = []
    for _ in range(a.streams):
        ids = [source.randrange(1000, 20000) for _ in range(a.prompt)]
        settings = {"max_tokens": a.tokens, "temperature": 0, "ignore_eos": True, "stream": stream}
        bodies.append({"prompt": ids, **settings, **({"stream_options": {"include_usage": True}} if stream else {})})
    with ThreadPoolExecutor(a.streams) as pool:
        began = time.perf_counter()
        ends = list(pool.map(lambda body: end_of(port, path, body), bodies))
        seconds = time.perf_counter() - began
    count = f'"completion_tokens":{a.tokens}'.encode()
    assert all(count in end for end in ends), f"answers without {a.tokens} tokens: {ends}"
    return a.streams * a.tokens / seconds


def end_of(port: int, path: str, body: dict[str, Any]) -> bytes:
    """The last bytes of an answer. Little is done with it, for the processors have other work."""
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=_LIMIT) as connection:
        connection.sendall(f"{head}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text)
        end = b""
        while data := connection.recv(1 << 16):
            end = (end + data)[-2000:]
    return end


def hits(a: argparse.Namespace, port: int) -> None:
    model = a.hits_model or a.model
    options = served(a, model, n_ctx=4096, max_seqs=a.max_seqs)
    print(f"\n{Path(model).name}, two replicas of one thread, 12 conversations of 5 turns, 3 at a time\n")
    print("| routing | prompt tokens | in the prefix cache | seconds |\n|---|---|---|---|")
    for name, router in (("by prefix", PrefixRouter), ("at random", RandomRouter)):
        with running("hits", options, replicas=2, router=router):
            began = time.perf_counter()
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda number: converse(port, number), range(12)))
            seconds = time.perf_counter() - began
            page = ask(port, "/hits/metrics")[1].decode()
        asked, found = (total(page, f"pyllm:prefix_cache_{kind}_total") for kind in ("queries", "hits"))
        print(f"| {name} | {asked:.0f} | {found / asked:.1%} | {seconds:.1f} |", flush=True)


def converse(port: int, number: int) -> None:
    """A conversation whose every turn sends all before it."""
    words = random.Random(number)
    history = [{"role": "system", "content": sentence(words, 200)}]
    for _ in range(5):
        history.append({"role": "user", "content": sentence(words, 40)})
        body = {"messages": history, "max_tokens": 32, "temperature": 0, "ignore_eos": True}
        status, answer = ask(port, "/hits/v1/chat/completions", body, limit=_LIMIT)
        assert status == 200, answer
        message = json.loads(answer)["choices"][0]["message"]
        history.append({"role": "assistant", "content": message["content"]})


def sentence(words: random.Random, n: int) -> str:
    return " ".join(words.choice(("river", "stone", "because", "morning", "who", "never", "walked")) for _ in range(n))


def total(page: str, name: str) -> float:
    families = text_string_to_metric_families(page)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def served(a: argparse.Namespace, model: str, **options: Any) -> ServeOptions:
    return ServeOptions(models=(model,), load={"backend": a.backend}, **options)


@contextmanager
def running(name: str, options: ServeOptions, **settings: Any) -> Iterator[None]:
    """An application at /NAME."""
    serve.run(application(options, **settings), name=name, route_prefix=f"/{name}")
    try:
        yield
    finally:
        serve.delete(name)


if __name__ == "__main__":
    main()
