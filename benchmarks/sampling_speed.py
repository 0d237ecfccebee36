"""µs a row for each step of sampling, beside what it takes to read a row of logits from memory once.

    python benchmarks/sampling_speed.py [--rows 16] [--model FILE]

Rows are those of a model after a text, or made up: a normal distribution with some tokens that stand out of it.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyllm.config import SamplingParams
from pyllm.sampling import Sampler, choose, prepare

OFF = SamplingParams(top_k=0, top_p=1.0, min_p=0.0, temperature=1.0, seed=1)
CASES: dict[str, SamplingParams] = {
    "greedy": replace(OFF, temperature=0),
    "usual: top_k 40, top_p, min_p, temperature": SamplingParams(seed=1),
    "usual, and repeat_penalty": SamplingParams(seed=1, repeat_penalty=1.1),
    "usual, and DRY over 1000 tokens": SamplingParams(
        seed=1, dry_multiplier=0.8, dry_penalty_last_n=-1, dry_sequence_breakers=()
    ),
    "none: a token of the whole distribution": OFF,
    "temperature": replace(OFF, temperature=0.7),
    "dynamic temperature": replace(OFF, dynatemp_range=0.5),
    "top_k 1000": replace(OFF, top_k=1000),
    "top_p": replace(OFF, top_p=0.95),
    "min_p": replace(OFF, min_p=0.05),
    "typical_p": replace(OFF, typical_p=0.9),
    "top_n_sigma": replace(OFF, top_n_sigma=1.0),
    "tfs_z": replace(OFF, tfs_z=0.95),
    "top_a": replace(OFF, top_a=0.2),
    "epsilon_cutoff": replace(OFF, epsilon_cutoff=3e-4),
    "eta_cutoff": replace(OFF, eta_cutoff=3e-4),
    "xtc": replace(OFF, xtc_probability=1.0),
    "smoothing": replace(OFF, smoothing_factor=0.3),
    "mirostat 1": replace(OFF, mirostat=1),
    "mirostat 2": replace(OFF, mirostat=2),
    "adaptive_p": replace(OFF, adaptive_target=0.4),
    "temperature 1.5, top_p, min_p, top_k": SamplingParams(
        seed=1, temperature=1.5, samplers=("temperature", "top_p", "min_p", "top_k")
    ),
}


def made_up(n_rows: int, n_vocab: int) -> NDArray[np.float32]:
    """Logits as of most models: a few tokens far above a normal distribution of many."""
    random = np.random.default_rng(0)
    rows = random.normal(scale=2.2, size=(n_rows, n_vocab)).astype(np.float32)
    for row in rows:
        row[random.integers(0, n_vocab, 2000)] += random.exponential(2.5, 2000).astype(np.float32)
        row[random.integers(0, n_vocab, 20)] += np.linspace(18, 8, 20, dtype=np.float32)
    return rows


def of_model(path: str, n_rows: int) -> NDArray[np.float32]:
    """Logits of a model after words of this file's own description."""
    import pyllm

    with pyllm.load(path, n_ctx=512) as llm:
        rows = llm.logits(llm.tokenizer.encode(f"{__doc__}\n{of_model.__doc__}"))
    return np.ascontiguousarray(rows[-n_rows:])


def best(run: Callable[[], object], times: int = 25) -> float:
    found = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        run()
        found = min(found, time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--model")
    args = parser.parse_args()
    prepare()
    rows = of_model(args.model, args.rows) if args.model else made_up(args.rows, args.vocab)
    n_rows, n_vocab = rows.shape
    seen = [np.random.default_rng(i).integers(0, 500, 1000).astype(np.int32) for i in range(n_rows)]
    chances = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    entropy = -(chances * np.log(np.maximum(chances, 1e-300))).sum(axis=1)
    print(f"{platform.processor() or platform.machine()}, {n_rows} rows of {n_vocab} logits, {rows.nbytes >> 20} MiB")
    print(f"entropy of the rows: {entropy.min():.1f} to {entropy.max():.1f}, mean {entropy.mean():.1f} nats\n")
    print(f"| {'µs a row':44} | {n_rows} rows | 1 row |\n|{'-' * 46}|---|---|")
    several, one = best(lambda: rows.max()), best(lambda: rows[0].max())
    print(f"| {'reading it once (numpy max)':44} | {1e6 * several / n_rows:6.1f} | {1e6 * one:6.1f} |")
    for name, params in CASES.items():
        samplers = [Sampler(params, n_vocab) for _ in range(n_rows)]
        several = best(lambda s=samplers: choose(rows, s, seen))  # type: ignore[misc]
        one = best(lambda s=samplers: choose(rows[:1], s[:1], seen[:1]))  # type: ignore[misc]
        print(f"| {name:44} | {1e6 * several / n_rows:6.1f} | {1e6 * one:6.1f} |")


if __name__ == "__main__":
    main()
