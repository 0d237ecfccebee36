"""A file of given metadata and shapes with random weights and no vocabulary but its size."""

from __future__ import annotations

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


def write(
    out: Path,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    recipe_name: str,
    vectors: Mapping[str, float] = {},
) -> None:
    """Write the file, its matrices in the recipe's formats. Vectors hold ones, or what `vectors` says for the end of
    their names."""
    values, recipe = {**metadata, "tokenizer.ggml.model": "no_vocab"}, recipe_named(recipe_name)
    plain = [TensorInfo(name, shape, "F32", np.zeros(0, np.uint8)) for name, shape in shapes.items()]
    formats = {choice.name: choice.format for choice in choose(recipe, values, plain)}
    most: dict[str, int] = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            most[formats[name]] = max(math.prod(shape), most.get(formats[name], 0))
    weights = RandomWeights(most)
    specs, data = [], []
    for name, shape in shapes.items():
        whole = len(shape) > 1
        format = formats[name] if whole else "F32"
        specs.append(TensorSpec(name, shape, format))
        number = next((n for end, n in vectors.items() if name.endswith(end)), 1.0)
        vector = np.full(0 if whole else shape, number, np.float32).view(np.uint8)
        data.append(weights.view(format, math.prod(shape)) if whole else vector)
        assert data[-1].nbytes == by_name(format).n_bytes(math.prod(shape))
    with GGUFWriter(out, {key: Value.of(value) for key, value in values.items()}, specs) as writer:
        for array in data:
            writer.write(array)
