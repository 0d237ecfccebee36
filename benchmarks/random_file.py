"""Files of models of real shapes with random weights: what scripts that make such files share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyllm.bench.random_weights import RandomWeights
from pyllm.gguf import GGUFWriter, TensorSpec
from pyllm.gguf.tensor import TensorInfo
from pyllm.gguf.types import by_name
from pyllm.gguf.writer import Value
from pyllm.quant.recipes import choose, recipe_named

Shapes = Mapping[str, tuple[int, ...]]


def write(out: Path, metadata: Mapping[str, Any], shapes: Shapes, recipe_name: str) -> None:
    """Write the file, its matrices in the recipe's formats, without a vocabulary but its size; or, named .json, a
    description for tests/golden/make_archs.py."""
    if out.suffix == ".json":
        held = {"seed": 1, "metadata": {**metadata, "tokenizer.ggml.model": "test"}, "tensors": shapes}
        out.write_text(json.dumps(held, indent=1) + "\n")
        return
    values = {**metadata, "tokenizer.ggml.model": "no_vocab"}
    plain = [TensorInfo(name, shape, "F32", np.zeros(0, np.uint8)) for name, shape in shapes.items()]
    formats = {choice.name: choice.format for choice in choose(recipe_named(recipe_name), values, plain)}
    most: dict[str, int] = {}
    for name, shape in shapes.items():
        most[formats[name]] = max(math.prod(shape), most.get(formats[name], 0))
    weights = RandomWeights(most)
    specs = [TensorSpec(name, shape, formats[name]) for name, shape in shapes.items()]
    with GGUFWriter(out, {key: Value.of(value) for key, value in values.items()}, specs) as writer:
        for spec in specs:
            value = _constant(spec.name, spec.shape)
            n = math.prod(spec.shape)
            if value is None:
                data = weights.view(spec.format, n)
            else:
                data = np.full(n, value, np.float32).view(np.uint8)
            assert data.nbytes == by_name(spec.format).n_bytes(n), spec
            writer.write(data)
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB")


def _constant(name: str, shape: tuple[int, ...]) -> float | None:
    """What all numbers of a tensor are, so that activations and states keep their size; None: random ones."""
    if name.endswith("ssm_a"):
        return -1.0
    if name.endswith(".bias"):
        return 0.0
    return 1.0 if len(shape) == 1 or name.endswith(("ssm_d", "ssm_norm.weight")) else None
