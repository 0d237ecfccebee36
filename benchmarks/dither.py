"""A model that was quantized once, made one that was not: noise blurs the levels that its weights were rounded to.

    python benchmarks/dither.py IN-f16.gguf OUT-f16.gguf

A quantizer that finds the old levels again loses next to nothing, which says little of it. Uniform noise of 0.15
standard deviations of its matrix is added to each weight that is not zero (padding stays padding). The result is
another, worse model, and is only good to be compared with itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import pyllm
from pyllm.gguf import GGUFWriter, TensorSpec, copy_metadata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    a = parser.parse_args()
    random = np.random.default_rng(0)
    with pyllm.open_gguf(a.source) as file:
        tensors = list(file.tensors.values())
        specs = [TensorSpec(t.name, t.shape, t.format) for t in tensors]
        with GGUFWriter(a.target, copy_metadata(file.metadata), specs, sources=[a.source]) as writer:
            for t in tensors:
                if t.format != "F16":
                    writer.write(t.data)
                    continue
                x = t.data.view(np.float16).astype(np.float32)
                step = 0.15 * x[x != 0].std()
                noise = random.uniform(-step, step, x.shape).astype(np.float32)
                writer.write(np.where(x != 0, x + noise, 0).astype(np.float16).view(np.uint8))


if __name__ == "__main__":
    main()
