"""Makes importance.npz: sums of squared inputs as llama.cpp (llama-cpp-python 0.3.36) computes them.

    python tests/golden/make_importance.py MODEL.gguf tests/golden/importance.npz

MODEL.gguf is what `ArchModel.load("llama-moe").write(path)` writes (tests/arch_models.py). llama.cpp reads two windows
of 96 random tokens; its callback for evaluated nodes shows the inputs of every matrix product. Needs llama-cpp-python,
which the tests do not.
"""

from __future__ import annotations

import ctypes
import sys
from glob import glob
from typing import Any

import numpy as np

KEPT = ("blk.0.attn_output", "blk.0.ffn_gate_inp", "blk.1.ffn_up_exps", "blk.1.ffn_down_exps")


class Tensor(ctypes.Structure):
    """`struct ggml_tensor`."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def values(t: Tensor, dtype: Any) -> np.ndarray[Any, Any]:
    """A tensor's contents, outermost axis first."""
    shape, strides = list(t.ne)[::-1], list(t.nb)[::-1]
    n = sum((e - 1) * b for e, b in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
    flat = np.frombuffer((ctypes.c_char * n).from_address(t.data), dtype)
    return np.lib.stride_tricks.as_strided(flat, shape, strides)


def main(model_path: str, out_path: str) -> None:
    import llama_cpp
    from llama_cpp import llama_cpp as api

    (base,) = glob(f"{llama_cpp.__path__[0]}/lib/libggml-base*.so")
    op_name = ctypes.CDLL(base).ggml_op_name
    op_name.restype, op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    sums: dict[str, np.ndarray[Any, Any]] = {}
    counts: dict[str, np.ndarray[Any, Any]] = {}

    def look(node: Any, ask: bool, _: Any) -> bool:
        t = node.contents
        op = op_name(t.op).decode()
        if op not in ("MUL_MAT", "MUL_MAT_ID"):
            return not ask
        name = t.src[0].contents.name.decode()
        if ask or not name.startswith(KEPT):
            return name.startswith(KEPT) or not ask
        x = values(t.src[1].contents, np.float32).astype(np.float64)
        n = t.src[0].contents.ne[2]
        s, c = sums.setdefault(name, np.zeros((n, x.shape[-1]))), counts.setdefault(name, np.zeros(n, np.int64))
        if op == "MUL_MAT":
            s += np.square(x).reshape(-1, x.shape[-1]).sum(axis=0)
            c += x.size // x.shape[-1]
        else:
            chosen = values(t.src[2].contents, np.int32)[0, 0]  # [tokens, used]
            for token, experts in enumerate(chosen):
                for j, e in enumerate(experts):
                    s[e] += np.square(x[0, token, j % x.shape[2]])
                    c[e] += 1
        return True

    callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Tensor), ctypes.c_bool, ctypes.c_void_p)(look)
    api.llama_backend_init()
    options = api.llama_model_default_params()
    options.use_extra_bufts = False  # weights that are packed anew hide their products
    model = api.llama_model_load_from_file(model_path.encode(), options)
    context = api.llama_context_default_params()
    context.n_ctx = context.n_batch = context.n_ubatch = 96
    context.cb_eval = ctypes.cast(callback, type(context.cb_eval))
    ctx = api.llama_init_from_model(model, context)
    windows = np.random.default_rng(1).integers(0, 100, (2, 96), dtype=np.int32)
    for window in windows:
        api.llama_memory_clear(api.llama_get_memory(ctx), True)
        batch = api.llama_batch_init(len(window), 0, 1)
        batch.n_tokens = len(window)
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
            batch.seq_id[i][0] = 0
        assert api.llama_decode(ctx, batch) == 0
    out = {f"{name}/sums": s.astype(np.float32) for name, s in sums.items()}
    out |= {f"{name}/counts": c for name, c in counts.items()}
    np.savez_compressed(out_path, tokens=windows, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
