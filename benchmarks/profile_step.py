"""Where the time of a step goes, op by op, on the CPU backend.

    python benchmarks/profile_step.py -m MODEL [-t 2] [-n 1] [-d 128] [-s 1]

Ops are run one by one, so the sum is a little more than a step takes as a whole; that is printed too. Of all
repetitions the quickest counts, of the step and of each op: a busy machine makes the others longer.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import replace

import numpy as np

from pyllm import archs, backends
from pyllm.backends.base import Batch
from pyllm.config import ExecutionOptions
from pyllm.gguf import open_gguf
from pyllm.jit.processors import default_threads
from pyllm.llm.loading import find_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("-n", "--tokens", type=int, default=1, help="tokens of each sequence in the step")
    parser.add_argument("-d", "--depth", type=int, default=128, help="tokens before them")
    parser.add_argument("-s", "--seqs", type=int, default=1, help="sequences")
    parser.add_argument("-r", "--repetitions", type=int, default=30)
    a = parser.parse_args()
    pages = -(-(a.depth + a.tokens) // 32)
    options = ExecutionOptions(
        pages * a.seqs, max_tokens=max(512, a.tokens * a.seqs), max_seqs=a.seqs, n_threads=a.threads
    )
    with open_gguf(find_model(a.model)) as file:
        arch = archs.load(file.metadata, file.tensors, pages * 32)
        program = arch.program
        options = replace(options, n_slots=2 * a.seqs if program.slots else 0)
        executable = backends.get("cpu").compile(program, arch.tensors, options)
        batch = Batch(options)
        for s in range(a.seqs):
            states = (2 * s if a.depth else -1, [(a.tokens, 2 * s + 1)]) if program.slots else ()
            batch.add([1] * a.tokens, a.depth, range(s * pages, (s + 1) * pages), "last", a.tokens == 1, *states)
        report(executable, batch, a.repetitions)
        executable.close()


def report(executable, batch, repetitions) -> None:  # type: ignore[no-untyped-def]
    whole, runs = [], []
    for _ in range(repetitions):
        start = time.perf_counter()
        executable.run(batch)
        whole.append(time.perf_counter() - start)
        runs.append([seconds for _, seconds in executable.profile(batch)])
    labels = [label for label, _ in executable.profile(batch)]
    times = defaultdict(list)
    for label, seconds in zip(labels, np.min(runs, axis=0), strict=True):
        times[label].append(seconds)
    total = sum(sum(t) for t in times.values())
    print(f"step {np.min(whole) * 1e6:10.1f} us, its ops one by one {total * 1e6:.1f} us")
    print(f"{'us':>10} {'%':>5} {'ops':>4} {'us each':>9}  op")
    for label, t in sorted(times.items(), key=lambda item: -sum(item[1])):
        print(f"{sum(t) * 1e6:10.1f} {100 * sum(t) / total:5.1f} {len(t):4} {np.mean(t) * 1e6:9.2f}  {label}")


if __name__ == "__main__":
    main()
