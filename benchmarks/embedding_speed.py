"""Texts embedded per second, beside llama.cpp and ONNX Runtime on the same threads, in turn.

    python benchmarks/embedding_speed.py -m MODEL.gguf [--peer-python PATH] [--onnx MODEL.onnx] [--lengths 16 128 512]
    python benchmarks/embedding_speed.py -m OUT.gguf --random minilm [--recipe Q8_0]

Texts are random token ids, as many tokens of each length, in random order. llama.cpp runs through llama-cpp-python in
`--peer-python`, in batches of up to 512 tokens, its default, and 64 texts; ONNX Runtime in batches of 16 texts of like
length, padded to the longest. Texts per second are the median of the rounds. `--random` makes the file first, with
random weights; benchmarks/onnx_encoder.py makes ONNX files.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_MINILM = {"n_layers": 6, "n_embd": 384, "n_heads": 12, "n_ff": 1536, "n_vocab": 30522}
_SHAPES = {"minilm": _MINILM, "bge-base": {**_MINILM, "n_layers": 12, "n_embd": 768, "n_ff": 3072}}
Texts = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 128, 512])
    parser.add_argument("--tokens", type=int, default=8192, help="of each length")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--peer-python")
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--random", choices=_SHAPES)
    parser.add_argument("--recipe", default="Q8_0")
    parser.add_argument("--side", choices=_SIDES, help="be one side; the texts come on standard input")
    a = parser.parse_args()
    if a.side:
        print(json.dumps(list(_SIDES[a.side](a, json.load(sys.stdin)))))
        return
    if a.random:
        write_random(a)
    sides = {"pyllm": sys.executable}
    if a.peer_python:
        sides["llama.cpp"] = a.peer_python
    if a.onnx:
        sides["onnx"] = sys.executable
    cases = {"mixed": texts_of(a, a.lengths), **{f"{n} tokens": texts_of(a, [n]) for n in a.lengths}}
    print(f"\n{a.model.name}, {a.threads} threads, median of {a.rounds}, texts per second\n")
    print(f"| texts | {' | '.join(sides)} |{' pyllm / other |' * (len(sides) - 1)}")
    print(f"|---{'|---' * len(sides)}{'|---' * (len(sides) - 1)}|")
    for name, texts in cases.items():
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(a.rounds):
            for side, python in sides.items():
                rates[side] += measured(python, side, texts)
        medians = [statistics.median(rates[side]) for side in sides]
        row = [f"{rate:.1f}" for rate in medians] + [f"{medians[0] / rate:.2f}" for rate in medians[1:]]
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def texts_of(a: argparse.Namespace, lengths: list[int]) -> Texts:
    """As many tokens of each length, in random order."""
    source = random.Random(1)
    texts = [
        [source.randrange(1000, 20000) for _ in range(n)]
        for n in lengths
        for _ in range(max(4, a.tokens // len(lengths) // n))
    ]
    source.shuffle(texts)
    return texts


def measured(python: str, side: str, texts: Texts) -> list[float]:
    """Texts per second of two runs, after one to warm up, in a process of its own."""
    command = [python, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    seconds: list[float] = json.loads(done.stdout)
    return [len(texts) / one for one in seconds[1:]]


def timed(run: Callable[[], object]) -> Iterator[float]:
    for _ in range(3):
        began = time.perf_counter()
        run()
        yield time.perf_counter() - began


def with_pyllm(a: argparse.Namespace, texts: Texts) -> Iterator[float]:
    import pyllm

    n_ctx = max(map(len, texts))
    with pyllm.load(a.model, backend=a.backend, n_ctx=n_ctx, n_threads=a.threads) as llm:
        yield from timed(lambda: llm.embed(texts, pooling="mean"))


def with_llama_cpp(a: argparse.Namespace, texts: Texts) -> Iterator[float]:
    import llama_cpp as api
    import numpy as np

    silent = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(silent, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(str(a.model).encode(), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_seq_max = 64
    params.n_threads = params.n_threads_batch = a.threads
    params.embeddings, params.pooling_type = True, 1  # the mean
    context = api.llama_init_from_model(model, params)
    batch = api.llama_batch_init(512, 0, 64)
    n_embd = api.llama_model_n_embd(model)

    def flush(n_seqs: int) -> None:
        if api.llama_encode(context, batch):
            sys.exit("llama.cpp does not encode the batch")
        for s in range(n_seqs):
            np.ctypeslib.as_array(api.llama_get_embeddings_seq(context, s), (n_embd,)).copy()
        batch.n_tokens = 0

    def run() -> None:
        n_seqs = 0
        for text in texts:
            if batch.n_tokens + len(text) > 512 or n_seqs == 64:
                flush(n_seqs)
                n_seqs = 0
            at = batch.n_tokens
            for i, token in enumerate(text):
                batch.token[at + i], batch.pos[at + i], batch.n_seq_id[at + i] = token, i, 1
                batch.seq_id[at + i][0], batch.logits[at + i] = n_seqs, True
            batch.n_tokens += len(text)
            n_seqs += 1
        flush(n_seqs)

    yield from timed(run)


def with_onnx(a: argparse.Namespace, texts: Texts) -> Iterator[float]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = a.threads, 1
    session = onnxruntime.InferenceSession(str(a.onnx), options, providers=["CPUExecutionProvider"])
    wanted = {node.name for node in session.get_inputs()}

    def run() -> None:
        in_order = sorted(texts, key=len)
        for start in range(0, len(in_order), 16):
            some = in_order[start : start + 16]
            ids = np.zeros((len(some), max(map(len, some))), np.int64)
            mask = np.zeros_like(ids)
            for row, text in enumerate(some):
                ids[row, : len(text)], mask[row, : len(text)] = text, 1
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            states = session.run(None, {name: given[name] for name in wanted})[0]
            (states * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)

    yield from timed(run)


_SIDES = {"pyllm": with_pyllm, "llama.cpp": with_llama_cpp, "onnx": with_onnx}


def write_random(a: argparse.Namespace) -> None:
    """A BERT in a real shape, with random weights."""
    from random_file import write

    s = _SHAPES[a.random]
    e, f, v = s["n_embd"], s["n_ff"], s["n_vocab"]
    values = {
        "attention.causal": False, "attention.head_count": s["n_heads"], "attention.layer_norm_epsilon": 1e-12,
        "block_count": s["n_layers"], "context_length": 512, "embedding_length": e, "feed_forward_length": f,
        "pooling_type": 1, "vocab_size": v,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (v, e), "position_embd.weight": (512, e), "token_types.weight": (2, e),
        "token_embd_norm.weight": (e,), "token_embd_norm.bias": (e,),
    }  # fmt: skip
    for il in range(s["n_layers"]):
        blk = f"blk.{il}."
        for name, rows, columns in (
            *((f"attn_{c}", e, e) for c in ("q", "k", "v", "output")), ("ffn_up", f, e), ("ffn_down", e, f)
        ):  # fmt: skip
            shapes[f"{blk}{name}.weight"], shapes[f"{blk}{name}.bias"] = (rows, columns), (rows,)
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes[f"{blk}{name}.weight"] = shapes[f"{blk}{name}.bias"] = (e,)
    metadata = {"general.architecture": "bert", **{f"bert.{key}": value for key, value in values.items()}}
    write(a.model, {**metadata, "tokenizer.ggml.token_type_count": 2}, shapes, a.recipe)


if __name__ == "__main__":
    main()
