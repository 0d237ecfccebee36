"""Files of low-rank adapters (LoRA), which add scale * alpha / rank * B(A x) to products of a model's matrices.

`pyllm.program.lora` applies them. The files are llama.cpp's
(convert_lora_to_gguf.py): `general.type` "adapter", `adapter.type` "lora", and for a matrix [rows, columns] called NAME
the tensors NAME.lora_a [rank, columns] and NAME.lora_b [rows, rank]. Of a token table [n_vocab, n_embd], lora_a is
[n_vocab, rank] and lora_b [n_embd, rank].
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pyllm import env
from pyllm.config import AdapterChoice
from pyllm.errors import ModelError
from pyllm.gguf import GGUFFile, TensorInfo, open_gguf
from pyllm.program.lora import TOKENS, Pair


class Adapter:
    """An open adapter. `pairs` are by the name of the adapted matrix; `arch` is the model's architecture.

    Raises GGUFError for a damaged file, ModelError for one that holds no LoRA adapter, or one with parts that cannot be
    applied: norms, invocation tokens.
    """

    def __init__(self, path: Path, scale: float = 1.0) -> None:
        if not math.isfinite(scale):
            raise ModelError(f"the scale of {path} is {scale}; it must be a finite number")
        if not os.path.isfile(path):
            raise ModelError(f"there is no adapter {path}; `pyllm convert --lora` makes one of a PEFT folder")
        self.path, self.scale = path, scale
        self._file: GGUFFile = open_gguf(path)
        try:
            self.arch, alpha = self._read_metadata()
            self.pairs: dict[str, Pair] = self._read_pairs(alpha)
        except BaseException:
            self._file.close()
            raise

    def fingerprint(self) -> str:
        """Tells adapters apart, and their scales."""
        return f"{self._file.fingerprint()} * {self.scale}"

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def error(self, text: str) -> ModelError:
        return ModelError(f"adapter {self.path}: {text}")

    def _read_metadata(self) -> tuple[str, float]:
        metadata = self._file.metadata
        kind, method = metadata.get("general.type"), metadata.get("adapter.type")
        if kind != "adapter" or method != "lora":
            raise self.error(
                f"this is not a LoRA adapter (general.type is {kind!r}, adapter.type {method!r}); `pyllm convert "
                "--lora` makes one of a PEFT folder"
            )
        if metadata.get("adapter.alora.invocation_tokens") is not None:
            raise self.error("it begins to work at certain tokens only (activated LoRA), which pyllm cannot do")
        alpha = metadata.get("adapter.lora.alpha", 0.0)
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise self.error(f"adapter.lora.alpha is {alpha!r}, not a finite number")
        return str(metadata.get("general.architecture")), float(alpha)

    def _read_pairs(self, alpha: float) -> dict[str, Pair]:
        halves: dict[str, dict[str, TensorInfo]] = {}
        for tensor in self._file.tensors.values():
            name, _, half = tensor.name.rpartition(".")
            if half not in ("lora_a", "lora_b") or not name:
                raise self.error(
                    f"tensor {tensor.name} is neither lora_a nor lora_b of a matrix, and cannot be applied"
                )
            halves.setdefault(name, {})[half] = tensor
        if not halves:
            raise self.error("it holds no tensors")
        pairs = {}
        for name, pair in halves.items():
            if len(pair) < 2:
                raise self.error(f"tensor {name} has no {'lora_b' if 'lora_a' in pair else 'lora_a'}")
            a, b = pair["lora_a"], pair["lora_b"]
            if len(a.shape) == 3 or len(b.shape) == 3:
                raise self.error(f"it adapts experts ({name}), which pyllm cannot do")
            rank = b.shape[-1] if len(b.shape) == 2 == len(a.shape) else 0
            if rank < 1 or rank != a.shape[1 if name == TOKENS else 0]:
                raise self.error(f"lora_a {list(a.shape)} and lora_b {list(b.shape)} of {name} do not go together")
            pairs[name] = Pair(a, b, self.scale * (alpha / rank if alpha else 1.0))
        return pairs


def open_adapters(choices: Sequence[AdapterChoice]) -> list[Adapter]:
    """Open adapter files. Raises GGUFError and ModelError; then none is left open."""
    opened: list[Adapter] = []
    try:
        for choice in choices:
            path, scale = choice if isinstance(choice, tuple) else (choice, 1.0)
            opened.append(Adapter(env.user_path(path), float(scale)))
    except BaseException:
        for adapter in opened:
            adapter.close()
        raise
    return opened
