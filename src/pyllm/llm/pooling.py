"""From the states of a text's tokens to one vector, or to a classifier's scores, as the file says.

Metadata and tensors are those of llama.cpp: `ARCH.pooling_type`, dense layers (`dense_2`, `dense_3`) behind the pooling
and a classifier (`cls`, `cls.norm`, `cls.output`). They are small, and computed in float32 with numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError, RequestError
from pyllm.llm.embedding import Pooling
from pyllm.quant import formats

if TYPE_CHECKING:
    from pyllm.gguf import GGUFFile

_KINDS = ("none", "mean", "cls", "last", "rank")
"""By the number in files."""
F32 = NDArray[np.float32]


class Pooler:
    """What a file says of embeddings and scores."""

    def __init__(self, file: GGUFFile, *, causal: bool) -> None:
        """`causal`: tokens see no later ones, so that the last one knows the whole text. Raises ModelError."""
        self._file = file
        self._arch = str(file.metadata.get("general.architecture"))
        kind = self._kind("pooling_type")
        self.ranks = kind == "rank" or self._has("cls.output.weight") or self._has("cls.weight")
        """Whether the file has a classifier."""
        if kind == "rank":
            default = "mean" if self._arch == "modern-bert" else "last" if causal else "cls"
            kind = self._kind("classifier.pooling_type", default)
        self.pooling: Pooling = kind if kind in ("mean", "cls", "last") else "mean"  # type: ignore[assignment]
        """How a text's embedding is made where the caller does not say: as the file says, else the mean."""
        self._matrices: dict[str, F32] = {}

    @property
    def labels(self) -> list[str]:
        """Names of the classifier's scores, as far as the file has them."""
        found = self._file.metadata.get(f"{self._arch}.classifier.output_labels")
        return [str(label) for label in found] if isinstance(found, list) else []

    def dense(self, pooled: F32) -> F32:
        """A pooled state [n_embd] behind the dense layers of the file."""
        for name in ("dense_2", "dense_3"):
            if self._has(f"{name}.weight"):
                pooled = self._linear(name, pooled)
        return pooled

    def scores(self, pooled: F32) -> F32:
        """The classifier's scores of a pooled state [n_embd] → [n_labels]. Raises RequestError where there is none."""
        if not self.ranks:
            raise RequestError(f"{self._file.path} has no classifier; embed() gives vectors to compare")
        x = pooled
        if self._has("cls.weight"):
            x = self._linear("cls", x)
            x = _gelu(x) if self._arch == "modern-bert" else np.tanh(x)
            x = self._normed(x)
        if self._has("cls.output.weight"):
            x = self._linear("cls.output", x)
        return softmax(x) if self._arch in ("qwen3", "qwen3vl") else x

    def _kind(self, key: str, default: str = "") -> str:
        value = self._file.metadata.get(f"{self._arch}.{key}")
        if value is None:
            return default
        if not isinstance(value, int) or not 0 <= value < len(_KINDS):
            raise ModelError(f"{self._arch}.{key} is {value!r}, not a kind of pooling from 0 to {len(_KINDS) - 1}")
        return _KINDS[value]

    def _has(self, name: str) -> bool:
        return name in self._file.tensors

    def _linear(self, name: str, x: F32) -> F32:
        matrix = self._read(f"{name}.weight")
        if matrix.ndim != 2 or matrix.shape[1] != len(x):
            raise ModelError(f"tensor {name}.weight has shape {list(matrix.shape)}, but rows of {len(x)} are needed")
        y = matrix @ x
        return y + self._read(f"{name}.bias", len(y)) if self._has(f"{name}.bias") else y

    def _normed(self, x: F32) -> F32:
        if not self._has("cls.norm.weight"):
            return x
        eps = float(self._file.metadata.get(f"{self._arch}.attention.layer_norm_epsilon", 1e-5))
        centred = x - x.mean()
        scale = np.float32(1 / np.sqrt(np.mean(centred**2) + eps))
        return (centred * scale * self._read("cls.norm.weight", len(x))).astype(np.float32)

    def _read(self, name: str, *shape: int) -> F32:
        if name not in self._matrices:
            tensor = self._file.tensors[name]
            if shape and tensor.shape != shape:
                raise ModelError(f"tensor {name} has shape {list(tensor.shape)}, but the model needs {list(shape)}")
            self._matrices[name] = formats.get(tensor.format).decode(tensor.data).reshape(tensor.shape)
        return self._matrices[name]


class Collector:
    """Takes a text's states block by block, and pools them."""

    def __init__(self, pooling: Pooling, n_tokens: int) -> None:
        self._pooling, self._n = pooling, n_tokens
        self._sum: NDArray[np.float64] | None = None
        self._rows: list[F32] = []

    @property
    def first(self) -> int:
        """The first token whose state is needed."""
        return self._n - 1 if self._pooling == "last" else 0

    def take(self, at: int, block: F32) -> None:
        """States of tokens from `at` on [n, n_embd], which are overwritten later."""
        if self._pooling == "mean":
            total = block.sum(axis=0, dtype=np.float64)
            self._sum = total if self._sum is None else self._sum + total
        elif self._pooling == "cls":
            self._rows = self._rows or [block[0].copy()]
        elif self._pooling == "last":
            self._rows = [block[-1].copy()]
        else:
            self._rows.append(block.copy())

    @property
    def result(self) -> F32:
        """float32 [n_embd], or [n_tokens, n_embd] without pooling."""
        if self._sum is not None:
            return (self._sum / self._n).astype(np.float32)
        return np.concatenate(self._rows) if self._pooling == "none" else self._rows[0]


def normed(rows: F32) -> F32:
    """Rows [..., n] of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def softmax(x: F32) -> F32:
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x: F32) -> F32:
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-x))).astype(np.float32)


def _gelu(x: F32) -> F32:
    """The tanh form, as ggml's."""
    inner = np.float32(0.7978845608) * x * (1 + np.float32(0.044715) * x * x)
    return (0.5 * x * (1 + np.tanh(inner))).astype(np.float32)
