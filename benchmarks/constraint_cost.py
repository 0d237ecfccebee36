"""What it costs to hold answers to a schema: the same tokens with and without masks, at several sequences.

    python benchmarks/constraint_cost.py -m MODEL [-s 1 16] [-n 96] [-t 2] [-r 3]

Answers that are held are lists of texts, which have a choice at every token, so that none is forced; those that are
free are as long. Tokens of all sequences per second, the median of the repetitions, which take turns.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter
from typing import Any

import pyllm
from pyllm.jit.processors import default_threads

SCHEMA = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 100_000}
KINDS: dict[str, dict[str, Any]] = {"free": {"ignore_eos": True}, "held": {"response_format": SCHEMA}}


def rate(llm: pyllm.LLM, n_seqs: int, n_tokens: int, options: dict[str, Any]) -> float:
    prompts = [f"{i} things in a JSON list:" for i in range(n_seqs)]
    began = perf_counter()
    results = llm.generate(prompts, max_tokens=n_tokens, temperature=0.8, seed=1, **options)
    seconds = perf_counter() - began
    assert all(result.usage.n_generated == n_tokens for result in results)
    return n_seqs * n_tokens / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-s", "--seqs", type=int, nargs="+", default=[1, 16])
    parser.add_argument("-n", "--tokens", type=int, default=96)
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    a = parser.parse_args()
    with pyllm.load(a.model, n_ctx=1024, n_threads=a.threads) as llm:
        print(f"{llm.path.name}, {llm.n_vocab} tokens, {a.threads} threads")
        print(f"{'sequences':>9} {'free t/s':>9} {'held t/s':>9} {'cost':>6}")
        for n_seqs in a.seqs:
            rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for i in range(a.repetitions + 1):
                for kind, options in KINDS.items():
                    found = rate(llm, n_seqs, a.tokens if i else 8, options)
                    rates[kind] += [found] if i else []
            free, held = median(rates["free"]), median(rates["held"])
            print(f"{n_seqs:>9} {free:>9.1f} {held:>9.1f} {(free / held - 1) * 100:>5.1f}%", flush=True)


if __name__ == "__main__":
    main()
