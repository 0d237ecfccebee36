"""llama.cpp's side of a comparison, through llama-cpp-python's low-level calls. Prints one JSON object.

    python peer.py speed      MODEL -t 2 -p 512 -n 64 --parallel 16 -r 3
    python peer.py first      MODEL -t 2 -p "The capital of France is"
    python peer.py perplexity MODEL TEXT -t 2 -c 512 --windows 20
    python peer.py logits     MODEL TOKENS.json OUT.npy -t 2
    python peer.py tokenize   MODEL TEXT
    python peer.py quantize   MODEL OUT.gguf Q4_K_M -t 2 [--imatrix FILE] [--pure]

Runs in any Python that has llama-cpp-python and numpy; it needs nothing of pyllm.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np

from sides import main, peak_bytes


@ll.llama_log_callback
def _silent(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    pass


class Model:
    def __init__(self, path: str, n_threads: int) -> None:
        ll.llama_log_set(_silent, ctypes.c_void_p(0))
        ll.llama_backend_init()
        self.n_threads = n_threads
        params = ll.llama_model_default_params()
        params.n_gpu_layers = 999  # all, where it was built for GPUs; the default differs between versions
        self.handle = ll.llama_model_load_from_file(path.encode(), params)
        self.vocab = ll.llama_model_get_vocab(self.handle)
        self.n_vocab = ll.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        buffer = (ll.llama_token * (len(data) + 16))()
        n = ll.llama_tokenize(self.vocab, data, len(data), buffer, len(buffer), True, False)
        return list(buffer[:n])


class Context:
    """A KV cache for `n_seqs` sequences of `n_ctx` positions each."""

    def __init__(self, model: Model, n_ctx: int, n_seqs: int = 1, f32_kv: bool = False) -> None:
        self.model = model
        params = ll.llama_context_default_params()
        params.n_ctx = n_ctx * n_seqs
        params.n_seq_max = n_seqs
        params.n_batch = max(512, n_ctx)
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = model.n_threads
        if f32_kv:
            params.type_k = params.type_v = 0
        self.handle = ll.llama_init_from_model(model.handle, params)
        self.batch = ll.llama_batch_init(params.n_batch, 0, 1)

    def clear(self) -> None:
        ll.llama_memory_clear(ll.llama_get_memory(self.handle), True)

    def read(self, tokens: Sequence[int], all_logits: bool = False) -> None:
        """One sequence, from position 0."""
        for i, token in enumerate(tokens):
            self._put(i, token, i, 0, all_logits or i == len(tokens) - 1)
        self._decode(len(tokens))

    def step(self, tokens: Sequence[int], position: int) -> None:
        """One token for each sequence."""
        for s, token in enumerate(tokens):
            self._put(s, token, position, s, True)
        self._decode(len(tokens))

    def logits(self, i: int) -> np.ndarray:
        return np.ctypeslib.as_array(ll.llama_get_logits_ith(self.handle, i), (self.model.n_vocab,))

    def close(self) -> None:
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.handle)

    def _put(self, i: int, token: int, position: int, sequence: int, want: bool) -> None:
        b = self.batch
        b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = int(token), position, 1, sequence, want

    def _decode(self, n: int) -> None:
        self.batch.n_tokens = n
        if ll.llama_decode(self.handle, self.batch) != 0:
            raise SystemExit("llama_decode failed")
        ll.llama_synchronize(self.handle)


def speed(a: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    model = Model(a.model, a.t)
    loaded = time.perf_counter() - start
    return {
        "load_seconds": loaded,
        "pp": _prompt_rates(model, a.p, a.r),
        "tg": _generation_rates(model, a.n, 1, a.r),
        # Before the parallel run, whose KV cache is another size for each engine.
        "peak_bytes": peak_bytes(),
        "tg_parallel": _generation_rates(model, a.n, a.parallel, a.r) if a.parallel else [],
    }


def _prompt_rates(model: Model, n: int, repetitions: int) -> list[float]:
    random = np.random.default_rng(0)
    context = Context(model, n)
    rates = []
    for _ in range(repetitions + 1):
        context.clear()
        tokens = random.integers(0, model.n_vocab, n)
        start = time.perf_counter()
        context.read(tokens)
        rates.append(n / (time.perf_counter() - start))
    context.close()
    return rates[1:]  # the first one warmed up


def _generation_rates(model: Model, n: int, n_seqs: int, repetitions: int) -> list[float]:
    random = np.random.default_rng(0)
    context = Context(model, n, n_seqs)
    context.step(random.integers(0, model.n_vocab, n_seqs), 0)
    rates = []
    for _ in range(repetitions):
        context.clear()
        start = time.perf_counter()
        for i in range(n):
            context.step(random.integers(0, model.n_vocab, n_seqs), i)
        rates.append(n_seqs * n / (time.perf_counter() - start))
    context.close()
    return rates


def first(a: argparse.Namespace) -> dict[str, Any]:
    model = Model(a.model, a.t)
    tokens = model.tokenize(a.prompt)
    context = Context(model, 512)
    context.read(tokens)
    token = int(context.logits(len(tokens) - 1).argmax())
    buffer = ctypes.create_string_buffer(64)
    n = ll.llama_token_to_piece(model.vocab, token, buffer, len(buffer), 0, False)
    return {"text": buffer.raw[:n].decode("utf-8", "replace")}


def perplexity(a: argparse.Namespace) -> dict[str, Any]:
    model = Model(a.model, a.t)
    start = time.perf_counter()
    tokens = model.tokenize(Path(a.text).read_text(encoding="utf-8"))
    tokenized = time.perf_counter() - start
    context = Context(model, a.c)
    nll = []
    start = time.perf_counter()
    for k in range(min(a.windows, len(tokens) // a.c)):
        window = tokens[k * a.c : (k + 1) * a.c]
        targets = window[1:]
        if ll.llama_vocab_get_add_bos(model.vocab):
            window = [ll.llama_vocab_bos(model.vocab), *window[1:]]
        context.clear()
        context.read(window, all_logits=True)
        for i in range(a.c // 2, a.c - 1):
            row = context.logits(i).astype(np.float64)
            top = row.max()
            nll.append(np.log(np.exp(row - top).sum()) + top - row[targets[i]])
    seconds = time.perf_counter() - start
    return {"ppl": float(np.exp(np.mean(nll))), "n_scored": len(nll), "seconds": seconds, "tokenize_seconds": tokenized}


def logits(a: argparse.Namespace) -> dict[str, Any]:
    tokens = json.loads(Path(a.tokens).read_text())
    model = Model(a.model, a.t)
    context = Context(model, max(len(tokens), 32), f32_kv=True)
    context.read(tokens, all_logits=True)
    np.save(a.out, np.stack([context.logits(i) for i in range(len(tokens))]))
    return {"n_tokens": len(tokens)}


def tokenize(a: argparse.Namespace) -> dict[str, Any]:
    """The file may hold a vocabulary alone."""
    ll.llama_log_set(_silent, ctypes.c_void_p(0))
    ll.llama_backend_init()
    params = ll.llama_model_default_params()
    params.vocab_only = True
    vocab = ll.llama_model_get_vocab(ll.llama_model_load_from_file(a.model.encode(), params))
    data = Path(a.text).read_bytes()
    buffer = (ll.llama_token * (2 * len(data) + 16))()
    start = time.process_time()
    n = ll.llama_tokenize(vocab, data, len(data), buffer, len(buffer), False, False)
    return {"seconds": time.process_time() - start, "ids": list(buffer[:n])}


def quantize(a: argparse.Namespace) -> dict[str, Any]:
    ll.llama_log_set(_silent, ctypes.c_void_p(0))
    ll.llama_backend_init()
    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{a.recipe}")
    params.nthread = a.t
    params.pure = a.pure
    params.allow_requantize = True
    if a.imatrix:
        keep = _importance(a.imatrix)
        params.imatrix = keep[0]
    start = time.perf_counter()
    if ll.llama_model_quantize(a.model.encode(), a.out.encode(), params) != 0:
        raise SystemExit(f"llama.cpp cannot make {a.recipe} of {a.model}")
    return {"seconds": time.perf_counter() - start, "peak_bytes": peak_bytes()}


def _importance(path: str) -> tuple[Any, ...]:
    """A GGUF imatrix file as the array that llama_model_quantize takes, and what must be kept alive with it."""
    from gguf import GGUFReader

    tensors = {t.name: t.data for t in GGUFReader(path).tensors}
    names = [n.removesuffix(".in_sum2") for n in tensors if n.endswith(".in_sum2")]
    data_type = ll.llama_model_quantize_params().imatrix._type_
    entries, keep = (data_type * (len(names) + 1))(), []
    for entry, name in zip(entries, names, strict=False):
        counts = np.maximum(tensors[f"{name}.counts"].reshape(-1, 1), 1)
        means = np.ascontiguousarray(tensors[f"{name}.in_sum2"].reshape(len(counts), -1) / counts, np.float32)
        keep.append(means)
        entry.name = name.encode()
        entry.data = means.ctypes.data_as(type(entry.data))
        entry.size = means.size
    return ctypes.cast(entries, ctypes.POINTER(data_type)), entries, keep


if __name__ == "__main__":
    every = (speed, first, perplexity, logits, tokenize, quantize)
    main(__doc__, {command.__name__: command for command in every})
