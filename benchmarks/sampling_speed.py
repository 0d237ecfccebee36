"""µs a row for each step of sampling, alone and after temperature 1.5, beside what it takes to read a row once.

    python benchmarks/sampling_speed.py [--rows 16] [--vocab 151936] [--model FILE] [--only NAME]

Rows are those of a model after a text, or made up: `peaked` is a normal distribution with some tokens that stand out
of it, as of most models; the others have no peak. The last line names the slowest chain.
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
from pyllm.sampling import Sampler, choose, prepare, steps

OFF = SamplingParams(top_k=0, top_p=1.0, min_p=0.0, temperature=1.0, seed=1)
CASES: dict[str, SamplingParams] = {
    "greedy": replace(OFF, temperature=0),
    "usual: top_k 40, top_p, min_p, temperature": SamplingParams(seed=1),
    "usual, and repeat_penalty": SamplingParams(seed=1, repeat_penalty=1.1),
    "usual, and DRY over 1000 tokens": SamplingParams(
        seed=1, dry_multiplier=0.8, dry_penalty_last_n=-1, dry_sequence_breakers=()
    ),
}
STEPS: dict[str, SamplingParams] = {
    "none: a token of the whole distribution": OFF,
    "dynamic temperature": replace(OFF, dynatemp_range=0.5),
    "top_k 1000": replace(OFF, top_k=1000),
    "top_k 50000": replace(OFF, top_k=50000),
    "top_p 0.95": replace(OFF, top_p=0.95),
    "top_p 0.5": replace(OFF, top_p=0.5),
    "min_p": replace(OFF, min_p=0.05),
    "typical_p": replace(OFF, typical_p=0.9),
    "top_n_sigma": replace(OFF, top_n_sigma=1.0),
    "tfs_z": replace(OFF, tfs_z=0.95),
    "top_a": replace(OFF, top_a=0.2),
    "epsilon_cutoff": replace(OFF, epsilon_cutoff=3e-4),
    "eta_cutoff": replace(OFF, eta_cutoff=3e-4),
    "xtc": replace(OFF, xtc_probability=1.0),
    "xtc from probability 1e-6 on": replace(OFF, xtc_probability=1.0, xtc_threshold=1e-6),
    "smoothing": replace(OFF, smoothing_factor=0.3),
    "mirostat 1": replace(OFF, mirostat=1),
    "mirostat 2": replace(OFF, mirostat=2),
    "adaptive_p": replace(OFF, adaptive_target=0.4),
    "top_p, min_p, top_k": replace(
        OFF, top_p=0.95, min_p=0.05, top_k=40, samplers=("temperature", "top_p", "min_p", "top_k")
    ),
    "typical_p, top_p, xtc": replace(OFF, typical_p=0.95, top_p=0.95, xtc_probability=0.5),
}
"""Each is measured as it is, and after temperature 1.5."""


def made_up(n_rows: int, n_vocab: int) -> NDArray[np.float32]:
    """Logits as of most models: a few tokens far above a normal distribution of many."""
    random = np.random.default_rng(0)
    rows = random.normal(scale=2.2, size=(n_rows, n_vocab)).astype(np.float32)
    for row in rows:
        row[random.integers(0, n_vocab, 2000)] += random.exponential(2.5, 2000).astype(np.float32)
        row[random.integers(0, n_vocab, 20)] += np.linspace(18, 8, 20, dtype=np.float32)
    return rows


def without_peak(n_rows: int, n_vocab: int) -> dict[str, NDArray[np.float32]]:
    """Logits of which most have a part in the distribution."""
    random = np.random.default_rng(1)
    normal = random.normal(size=(n_rows, n_vocab)).astype(np.float32)
    return {
        "flat": normal,
        "nearly even": normal * np.float32(1e-3),
        "two values": np.where(normal > 0, np.float32(1), np.float32(0)),
        "constant": np.zeros_like(normal),
    }


def of_model(path: str, n_rows: int) -> NDArray[np.float32]:
    """Logits of a model after words of this file's own description."""
    import pyllm

    with pyllm.load(path, n_ctx=512) as llm:
        rows = llm.logits(llm.tokenizer.encode(f"{__doc__}\n{of_model.__doc__}"))
    return np.ascontiguousarray(rows[-n_rows:])


def best(run: Callable[[], object], times: int = 15) -> float:
    found = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        run()
        found = min(found, time.perf_counter() - began)
    return found


def first(params: SamplingParams, temperature: float) -> SamplingParams:
    """The same steps after this temperature."""
    names = params.samplers or [step.name() for step in steps.all_steps()]
    return replace(params, temperature=temperature, samplers=("temperature", *(n for n in names if n != "temperature")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--model")
    parser.add_argument("--only", default="", help="what the names of the chains hold")
    args = parser.parse_args()
    prepare()
    peaked = of_model(args.model, args.rows) if args.model else made_up(args.rows, args.vocab)
    n_rows, n_vocab = peaked.shape
    kinds = {"peaked": peaked, **without_peak(n_rows, n_vocab)}
    seen = [np.random.default_rng(i).integers(0, 500, 1000).astype(np.int32) for i in range(n_rows)]
    chances = np.exp(peaked.astype(np.float64) - peaked.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    entropy = -(chances * np.log(np.maximum(chances, 1e-300))).sum(axis=1)
    print(f"{platform.processor() or platform.machine()}, {n_rows} rows of {n_vocab} logits, {peaked.nbytes >> 20} MiB")
    print(f"entropy of the peaked: {entropy.min():.1f} to {entropy.max():.1f}, mean {entropy.mean():.1f} nats\n")
    print(f"| {'µs a row':44} | {' | '.join(f'{kind:>11}' for kind in kinds)} |\n|{'-' * 46}|{'---|' * len(kinds)}")
    cases = CASES | STEPS | {f"temperature 1.5, then {name}": first(params, 1.5) for name, params in STEPS.items()}
    times: dict[str, list[float]] = {}

    def show(name: str, measured: list[float]) -> None:
        times[name] = measured
        print(f"| {name:44} | {' | '.join(f'{1e6 * t / n_rows:11.1f}' for t in measured)} |", flush=True)

    show("reading it once (numpy max)", [best(rows.max) for rows in kinds.values()])
    for name, params in cases.items():
        if args.only in name:
            samplers = [Sampler(params, n_vocab) for _ in range(n_rows)]
            show(name, [best(lambda r=r, s=samplers: choose(r, s, seen)) for r in kinds.values()])  # type: ignore[misc]
    slowest = max(times, key=lambda name: max(times[name]))
    print(f"\nslowest: {slowest}, {1e6 * max(times[slowest]) / n_rows:.1f} µs a row")


if __name__ == "__main__":
    main()
