"""pyllm's side of a comparison: peer.py's commands, flags and JSON, but `first`, for which there is `pyllm run`."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

import pyllm
from pyllm.bench import BenchCase, BenchOptions, BenchResult, run_cases
from pyllm.evaluation.kl_divergence import kl_divergence
from pyllm.evaluation.perplexity import load_options
from pyllm.evaluation.perplexity import perplexity as estimates
from sides import main, peak_bytes


def speed(a: Namespace) -> dict[str, Any]:
    def case(n_prompt: int, n_gen: int, n_parallel: int) -> BenchCase:
        return BenchCase(a.model, n_prompt, n_gen, 0, n_parallel, a.t, 512, "f16")

    peaks: list[int] = []

    def on_result(result: BenchResult) -> None:
        peaks.append(peak_bytes())

    options = BenchOptions((a.model,), backend=a.backend, repetitions=a.r)
    cases = [case(a.p, 0, 1), case(0, a.n, 1)] + ([case(0, a.n, a.parallel)] if a.parallel else [])
    pp, tg, *parallel = run_cases(cases, options, on_result)
    return {
        "pp": pp.samples_ts,
        "tg": tg.samples_ts,
        "peak_bytes": peaks[1],  # before the parallel run, whose KV cache is another size for each engine
        "tg_parallel": [rate for result in parallel for rate in result.samples_ts],
    }


def perplexity(a: Namespace) -> dict[str, Any]:
    with pyllm.load(a.model, backend=a.backend, n_threads=a.t, **load_options(a.c)) as llm:
        text = Path(a.text).read_text(encoding="utf-8")
        start = time.perf_counter()
        tokens = llm.tokenizer.encode(text)
        tokenized = time.perf_counter() - start
        start = time.perf_counter()
        *_, last = estimates(llm, tokens, a.c, a.windows)
        seconds = time.perf_counter() - start
    return {"ppl": last.ppl, "n_scored": last.n_scored, "seconds": seconds, "tokenize_seconds": tokenized}


def divergence(a: Namespace) -> dict[str, Any]:
    """With --write, the model's predictions are kept in the base; else they are compared with those kept there."""
    with pyllm.load(a.model, backend=a.backend, n_threads=a.t, **load_options(a.c)) as llm:
        if a.write:
            text = Path(a.text).read_text(encoding="utf-8")
            *_, written = estimates(llm, text, a.c, a.windows, base=a.base)
            return {"own_ppl": written.ppl}
        *_, last = kl_divergence(llm, a.base, a.windows)
    return {
        "own_ppl": last.ppl.value,
        "mean": last.mean_kld.value,
        "mean_error": last.mean_kld.error,
        "median": float(np.median(last.kld)),
        "p99": float(np.quantile(last.kld, 0.99)),
        "same_top": last.top_share.value,
    }


def logits(a: Namespace) -> dict[str, Any]:
    tokens = json.loads(Path(a.tokens).read_text())
    with pyllm.load(a.model, backend=a.backend, n_threads=a.t, n_ctx=len(tokens), max_seqs=1) as llm:
        np.save(a.out, llm.logits(tokens))
    return {"n_tokens": len(tokens)}


if __name__ == "__main__":
    main(__doc__, {"speed": speed, "perplexity": perplexity, "logits": logits, "divergence": divergence})
