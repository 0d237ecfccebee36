"""Gaps between the tokens of streams while a long prompt is read beside them.

    python benchmarks/gaps.py -m MODEL [-s 4] [-p 8000] [-t 2]

Prints the median gap just before the prompt and just after it: the streams' contexts grow meanwhile, and so does what a
step takes. Then the gaps' distribution while it is read, also as multiples of the usual gap at that time; and how long
the prompt took, beside the time that it takes alone.
"""

from __future__ import annotations

import argparse
import threading
from time import perf_counter

import numpy as np

import pyllm
from pyllm.jit.processors import default_threads
from pyllm.llm.events import TokenLogprobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-s", "--streams", type=int, default=4)
    parser.add_argument("-p", "--prompt", type=int, default=8000, help="tokens of the long prompt")
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    a = parser.parse_args()
    n_ctx = a.prompt + 512
    sizes = {"n_ctx": n_ctx, "n_kv": 2 * n_ctx + a.streams * 4096, "max_seqs": a.streams + 1}
    with pyllm.load(a.model, n_threads=a.threads, backend="cpu", **sizes) as llm:
        random = np.random.default_rng(0)
        long, alone = (random.integers(100, 20_000, a.prompt).tolist() for _ in range(2))
        start = perf_counter()
        llm.complete(alone, max_tokens=1)
        alone_seconds = perf_counter() - start
        moments: list[list[float]] = [[] for _ in range(a.streams)]
        stop = threading.Event()

        def read(i: int) -> None:
            prompt = random.integers(100, 20_000, 20).tolist()
            options = {"max_tokens": 4000, "ignore_eos": True, "temperature": 0}
            with llm.complete(prompt, stream="events", logprobs=0, **options) as stream:
                for event in stream:
                    if isinstance(event, TokenLogprobs):
                        moments[i].append(perf_counter())
                    if stop.is_set():
                        return

        threads = [threading.Thread(target=read, args=(i,)) for i in range(a.streams)]
        for thread in threads:
            thread.start()
        while min(map(len, moments)) < 100:
            stop.wait(0.05)
        began = perf_counter()
        result = llm.complete(long, max_tokens=1)
        ended = perf_counter()
        n_read = max(map(len, moments))
        while min(map(len, moments)) < n_read + 100:
            stop.wait(0.05)
        stop.set()
        for thread in threads:
            thread.join()
    before, after = gaps(moments, 0, began)[1][20:], gaps(moments, ended, perf_counter())[1]
    times, beside = gaps(moments, began, ended)
    usual = np.interp(times, [began, ended], [np.median(before), np.median(after)])
    print(f"{a.streams} streams, usual gap {np.median(before) * 1e3:.2f} ms before, {np.median(after) * 1e3:.2f} after")
    print(f"beside a prompt of {result.usage.n_prompt}, of {len(beside)} gaps:")
    for what, values in (("ms", beside * 1e3), ("x usual", beside / usual)):
        median, most = np.median(values), values.max()
        high = ", ".join(f"{q} % {np.quantile(values, q / 100):.2f}" for q in (75, 90, 95, 99))
        print(f"    median {median:.2f} {what}, {high}, most {most:.2f}")
    print(f"the prompt took {ended - began:.1f} s; alone {alone_seconds:.1f} s")


def gaps(moments: list[list[float]], start: float, stop: float) -> tuple[np.ndarray, np.ndarray]:
    """Gaps between tokens of all streams that began and ended in this time: when they ended, and their seconds."""
    within = [np.array([m for m in own if start <= m <= stop]) for own in moments]
    return np.concatenate([own[1:] for own in within]), np.concatenate([np.diff(own) for own in within])


if __name__ == "__main__":
    main()
