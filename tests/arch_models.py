"""Tiny models of each architecture beside llama.cpp's logits: a file holds all but the weights, which a seed gives.

`tests/golden/archs/NAME.json`, made by `tests/golden/make_archs.py`:

- `metadata`: the model's, without a tokenizer: llama.cpp's tokenizer "test" is added, with tokens tok_0, tok_1, …
- `tensors`: shapes by name, outermost first; all are F32.
- `seed`: of the weights. `values` says how they come about.
- `kinds`, where it is there: patterns of names with mean and deviation, of a model's own.
- `logits`: llama.cpp's, float32, little-endian, base64: every n-th of the flattened [N_TOKENS, n_vocab], so that each
  token and each part of the vocabulary is among them; n is `step(n_vocab)`. Of a model without a head, its final states
  in the place of logits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import archs
from pyllm.gguf import GGUFWriter, TensorSpec, Value
from pyllm.gguf.tensor import TensorInfo

FOLDER = Path(__file__).parent / "golden" / "archs"
N_TOKENS = 96

_KINDS = [
    # pattern of the name, mean, deviation; the first that fits
    (r"norm.*\.weight|\.scales?$|_scale\.weight|ssm_d$", 1, 0.2),
    (r"rope_f", 1, 0.25),
    (r"ssm_a$", -1, 0.2),
    (r"sinks|ssm_dt\.bias|time_mix_([wav]0|decay)\.weight", 0, 1),
    (r"\.bias$", 0, 0.2),
]
"""How vectors and a few matrices are distributed. Other matrices give outputs of about their inputs' size."""

_GAIN = 1.4  # of matrices: enough for attention that tells positions apart
_EMBEDDING_GAIN = 4  # of token_embd, whose rows some models take times the root of their length


@dataclass(frozen=True)
class ArchModel:
    """One of the files."""

    name: str
    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    seed: int
    logits: NDArray[np.float32]
    kinds: tuple[tuple[str, float, float], ...] = ()

    @classmethod
    def load(cls, name: str) -> ArchModel:
        """The model with this name (of `names()`)."""
        return cls.read(FOLDER / f"{name}.json")

    @classmethod
    def read(cls, path: Path) -> ArchModel:
        """The model of a file; one without logits describes a model to make."""
        held = json.loads(path.read_text("utf-8"))
        logits = np.frombuffer(base64.b64decode(held.get("logits", "")), "<f4")
        shapes = {tensor: tuple(shape) for tensor, shape in held["tensors"].items()}
        kinds = tuple((pattern, mean, deviation) for pattern, mean, deviation in held.get("kinds", ()))
        return cls(path.stem, held["metadata"], shapes, held["seed"], logits, kinds)

    @property
    def n_vocab(self) -> int:
        return self.shapes["token_embd.weight"][0]

    @cached_property
    def has_head(self) -> bool:
        """Whether the model gives logits; else they are the states before a head: an encoder's."""
        return archs.load(self.all_metadata, self.tensors, N_TOKENS).program.logits is not None

    @property
    def tokens(self) -> list[int]:
        """Those whose logits llama.cpp gave, N_TOKENS."""
        return [1 + (i * i * 31 + i * 17 + 5) % (self.n_vocab - 1) for i in range(N_TOKENS)]

    @property
    def source(self) -> list[int]:
        """What an encoder reads before a decoder's `tokens`."""
        return self.tokens[::-2]

    @cached_property
    def all_metadata(self) -> dict[str, Any]:
        """What a reader of the GGUF file would find."""
        return {key: _as_read(value) for key, value in self.metadata.items()} | {
            "tokenizer.ggml.model": "test",
            "tokenizer.ggml.tokens": [f"tok_{i}" for i in range(self.n_vocab)],
        }

    @cached_property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        return {name: values(self.seed, name, shape, self.kinds) for name, shape in self.shapes.items()}

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """What a reader of the GGUF file would find."""
        return {
            name: TensorInfo(name, weight.shape, "F32", weight.reshape(-1).view(np.uint8))
            for name, weight in self.weights.items()
        }

    def write(self, path: Path, weights: Mapping[str, NDArray[np.float32]] | None = None) -> Path:
        """Write the GGUF file, with other `weights` where they are given; a tensor at a time is in memory."""
        specs = [TensorSpec(name, shape, "F32") for name, shape in self.shapes.items()]
        metadata = {key: Value.of(value) for key, value in self.all_metadata.items()}
        with GGUFWriter(path, metadata, specs, overwrite=True) as writer:
            for name, shape in self.shapes.items():
                given = (weights or {}).get(name)
                writer.write(values(self.seed, name, shape, self.kinds) if given is None else given)
        return path

    def nmse(self, logits: NDArray[np.float32]) -> float:
        """Mean squared error of the first tokens' logits, [n, n_vocab], by the mean square of llama.cpp's."""
        got = sample(logits).astype(np.float64)
        wanted = self.logits[: got.size]
        return float(np.mean((got - wanted) ** 2) / np.mean(wanted.astype(np.float64) ** 2))


def names() -> list[str]:
    """Models that are there, in alphabetical order."""
    found = sorted(path.stem for path in FOLDER.glob("*.json"))
    assert found, f"{FOLDER} is empty"
    return found


def step(n_vocab: int) -> int:
    """Which logits are kept, every how many: about 2000 of all tokens', an odd number, as vocabularies are even."""
    return N_TOKENS * n_vocab // 2048 | 1


def sample(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits that are kept, of [n, n_vocab]."""
    return logits.reshape(-1)[:: step(logits.shape[1])]


def values(
    seed: int, name: str, shape: tuple[int, ...], kinds: Sequence[tuple[str, float, float]] = ()
) -> NDArray[np.float32]:
    """A tensor's values, the same bits everywhere.

    Noise is the sum of the four 16-bit parts of a Philox number, less its mean, by its deviation: nearly normal, never
    over 3.5. The key of Philox is the first 16 bytes of SHA-256 of "SEED NAME".
    """
    key = np.frombuffer(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "<u8").astype(np.uint64)
    raw = np.random.Philox(key=key).random_raw(prod(shape))
    parts = (raw.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int32) - 2 * 65535).astype(np.float32)
    mean, deviation = _kind(name, shape, kinds)
    return (np.float32(mean) + parts * np.float32(deviation * 3**0.5 / 65536)).reshape(shape)


def _kind(name: str, shape: tuple[int, ...], kinds: Sequence[tuple[str, float, float]]) -> tuple[float, float]:
    for pattern, mean, deviation in (*kinds, *_KINDS):
        if re.search(pattern, name):
            return mean, deviation
    gain = _EMBEDDING_GAIN if name == "token_embd.weight" else _GAIN
    return 0, gain / shape[-1] ** 0.5


def _as_read(value: Any) -> Any:
    """A value of JSON as the GGUF reader gives it."""
    if isinstance(value, list) and not isinstance(value[0], str):
        array = np.array(value)
        narrow = {"f": np.float32, "i": np.int32}.get(array.dtype.kind)
        return (
            array.astype(narrow)
            if narrow and (narrow is np.float32 or np.all(array.astype(narrow) == array))
            else array
        )
    return float(np.float32(value)) if isinstance(value, float) else value
