"""What Python adds to steps: everything between two calls of the executable, when many sequences generate.

    python benchmarks/engine_overhead.py -m MODEL [-s 16] [-n 96] [-t 2] [-r 3]

Counts the steps in which all sequences generate one token each. `python` is the time from the end of one such step to
the beginning of the next: sampling, scheduling, text, and readers. Medians over steps; the best repetition counts.
"""

from __future__ import annotations

import argparse
import threading
from time import perf_counter
from typing import Any

import numpy as np

import pyllm
from pyllm.jit.processors import default_threads

HOW = ("generate", "streams")


class Watch:
    """Notes when steps of `n_seqs` generated tokens begin and end."""

    def __init__(self, executable: Any, n_seqs: int) -> None:
        self.moments: list[tuple[float, float]] = []
        self._executable, self._n_seqs, self._run = executable, n_seqs, executable.run_all
        executable.run_all = self.run

    def run(self, batch: Any, wants: Any) -> Any:
        start = perf_counter()
        try:
            return self._run(batch, wants)
        finally:
            full = batch.n_seqs == batch.n_tokens == self._n_seqs
            self.moments.append((start, perf_counter()) if full else (-1.0, -1.0))

    def shares(self) -> tuple[float, float, int]:
        """Median seconds of a step and of what comes between two, and how many there were."""
        m = np.array(self.moments)
        pairs = (m[:-1, 0] > 0) & (m[1:, 0] > 0)
        step, between = (m[:, 1] - m[:, 0])[m[:, 0] > 0], (m[1:, 0] - m[:-1, 1])[pairs]
        return float(np.median(step)), float(np.median(between)), len(between)

    def close(self) -> None:
        self._executable.run_all = self._run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-s", "--seqs", type=int, default=16)
    parser.add_argument("-n", "--tokens", type=int, default=96)
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    a = parser.parse_args()
    settings: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0},
        "default": {"seed": 1},
    }
    with pyllm.load(a.model, n_ctx=1024, max_seqs=a.seqs, n_threads=a.threads, backend="cpu") as llm:
        print(f"{llm.path.name}, {a.seqs} sequences, {a.threads} threads")
        for name, options in settings.items():
            for how in HOW:
                found = [measure(llm, a.seqs, a.tokens, how, options) for _ in range(a.repetitions)]
                step, python, n = min(found, key=lambda f: f[1])
                print(
                    f"{name:8} {how:9} step {step * 1e3:7.2f} ms, python {python * 1e3:6.3f} ms: "
                    f"{python / (step + python):6.1%} of {n} steps"
                )


def measure(llm: pyllm.LLM, n_seqs: int, n_tokens: int, how: str, options: dict[str, Any]) -> tuple[float, float, int]:
    prompts = [f"Number {i} of a list of stories begins:" for i in range(n_seqs)]
    options = {**options, "max_tokens": n_tokens, "ignore_eos": True}
    watch = Watch(llm.engine.executable, n_seqs)
    try:
        if how == "generate":
            llm.generate(prompts, **options)
        else:
            streams = [llm.complete(prompt, stream=True, **options) for prompt in prompts]
            threads = [threading.Thread(target=lambda s=s: "".join(s)) for s in streams]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return watch.shares()
    finally:
        watch.close()


if __name__ == "__main__":
    main()
