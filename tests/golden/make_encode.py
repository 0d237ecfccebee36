"""Makes encode.json: errors of llama.cpp's encoders (ggml_quantize_chunk of llama-cpp-python 0.3.36).

    PYTHONPATH=../../src:../unit python make_encode.py encode.json

Sums of w (decoded - x)² over the matrices of tests/unit/encode_cases.py, w the importance or 1, decoded by pyllm's
formats. Needs llama-cpp-python, which the tests do not.
"""

from __future__ import annotations

import ctypes
import json
import sys
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from encode_cases import importances, matrices

from pyllm.quant import formats

NAMES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0",
         "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"]  # fmt: skip


def main(target: str) -> None:
    spec = find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    ggml = ctypes.CDLL(glob(f"{Path(spec.origin).parent}/lib/libggml-base.*")[0])
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    found: dict[str, dict[str, float]] = {}
    for name in NAMES:
        fmt = formats.get(name)
        ggml.ggml_quantize_init(fmt.ggml_type)
        found[name] = {}
        for matrix, x in matrices().items():
            for kind, w in importances().items():
                out = np.zeros((len(x), x.shape[1] // fmt.block_size * fmt.block_bytes), np.uint8)
                weights = None if w is None else w.ctypes.data
                ggml.ggml_quantize_chunk(fmt.ggml_type, x.ctypes.data, out.ctypes.data, 0, *x.shape, weights)
                error = np.square(fmt.decode(out).astype(np.float64) - x) * (1 if w is None else w)
                found[name][f"{matrix} {kind}"] = float(error.sum())
    Path(target).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
