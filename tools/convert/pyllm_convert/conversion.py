"""A Hugging Face folder as a GGUF file would have it: metadata, and tensors that are computed as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError, TemplateError, TokenizerError
from pyllm.gguf.tensor import TensorInfo
from pyllm.gguf.values import Value
from pyllm.gguf.writer import TensorSpec
from pyllm.quant.source import SourceTensor
from pyllm_convert import lazy, names
from pyllm_convert.checkpoint import Checkpoint, text_config
from pyllm_convert.families import family_of
from pyllm_convert.lazy import Lazy
from pyllm_convert.quantized import check_method, without_scales
from pyllm_convert.sentence_transformers import surroundings

_SAME = ("F32", "F16", "BF16", "MXFP4")
"""Types of a checkpoint that are formats of a file."""
_READABLE = (*_SAME, "F64", "F8_E4M3", "F8_E5M2")
_ALWAYS_F32 = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight", "shortconv.conv.weight",
    "position_embd.weight", "token_types.weight",
)  # fmt: skip
_TOKEN_TABLES = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
_QUANTIZATION_VERSION = 2
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "MXFP4": 38}
"""general.file_type of files that are mostly of one of these formats."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor of the file to be: `format` is how its rows are read, `keep` how they are stored without a recipe."""

    name: str
    shape: tuple[int, ...]
    format: str
    keep: str
    values: Lazy

    @property
    def as_kept(self) -> TensorSpec:
        """Name, shape and the format it is stored in without a recipe."""
        return TensorSpec(self.name, self.shape, self.keep)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows [start, stop) of the tensor as a matrix, in `format`: uint8 [rows, bytes of a row]."""
        t = self.values
        rows = t.rows(start, stop) if t.dtype == self.format else t.floats(start, stop)
        return np.ascontiguousarray(rows).view(np.uint8).reshape(stop - start, -1)


class Conversion:
    """An open folder, read as far as needed to know the whole header of the file.

    `metadata` and `tensors` (by name, in the file's order) are those of the file; `notes` are sentences about what a
    GGUF file cannot say of this model. Weights are read when `sources` are.

    Raises ModelError: unknown architecture, settings without a place in GGUF, tensors that are missing or of shapes
    that contradict config.json, weights that are damaged or of a kind that cannot be converted.
    """

    def __init__(self, folder: Path, *, name: str | None = None, tokenizer: bool = True) -> None:
        self.checkpoint = Checkpoint(folder)
        try:
            self._read(folder, name, tokenizer)
        except BaseException:
            self.close()
            raise

    def _read(self, folder: Path, name: str | None, tokenizer: bool) -> None:
        raw = self.checkpoint.config
        config = text_config(raw)
        quantized = config.get("quantization_config") or {}
        if not isinstance(quantized, dict):
            raise ModelError("config.json's quantization_config is no table")
        check_method(quantized)
        stored = without_scales(self.checkpoint.tensors, quantized)
        model = family_of(raw, folder)(config)
        model.look(stored)
        keys = model.metadata()
        around = surroundings(self.checkpoint, model.arch)
        keys = around.keys | keys
        placed = model.tensors(stored) | around.tensors
        self.notes = model.notes + around.notes
        words = _vocabulary(folder, config) if tokenizer else {"tokenizer.ggml.model": Value.of("none")}
        if tokenizer:
            n_tokens = len(words["tokenizer.ggml.tokens"].value)
            placed = {n: self._as_many_rows(n, t, n_tokens) for n, t in placed.items()}
            keys["vocab_size"] = n_tokens
            self.notes += _template_problems(words)
        placed, words = model.with_vocabulary(placed, words)
        self.tensors = {n: _planned(n, t) for n, t in placed.items()}
        general = {"general.architecture": model.arch, **names.general(folder, name)}
        general["general.size_label"] = names.size_label(
            {t.name: t.shape for t in self.tensors.values()}, model.n_experts
        )
        general["general.quantization_version"] = _QUANTIZATION_VERSION
        general["general.file_type"] = FILE_TYPES[self._mostly()]
        own = {f"{model.arch}.{key}": value for key, value in keys.items()} | model.other_metadata() | around.prompts
        self.metadata = {key: Value.of(value) for key, value in (general | own).items()} | words
        self._check()

    def sources(self) -> list[SourceTensor]:
        """The tensors as the pipeline takes them; rows are read from the checkpoint when it asks for them."""
        return [SourceTensor(t.name, t.shape, t.format, t.read) for t in self.tensors.values()]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files with weights, which nothing may overwrite."""
        return self.checkpoint.files

    @property
    def n_bytes(self) -> int:
        """Size of these files together."""
        return sum(path.stat().st_size for path in self.files)

    def close(self) -> None:
        """Unmap the checkpoint."""
        self.checkpoint.close()

    def __enter__(self) -> Conversion:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _as_many_rows(self, name: str, t: Lazy, n_tokens: int) -> Lazy:
        """Token tables cut to the vocabulary: some checkpoints have rows to spare, for which there are no tokens."""
        if name not in _TOKEN_TABLES or t.shape[0] == n_tokens:
            return t
        if t.shape[0] < n_tokens:
            raise ModelError(f"the tokenizer has {n_tokens} tokens, but {t.name} only {t.shape[0]} rows")
        self.notes.append(f"{t.shape[0] - n_tokens} rows of {t.name}, for which there are no tokens, are left out")
        return lazy.slice_rows(t, 0, n_tokens)

    def _mostly(self) -> str:
        sizes = dict.fromkeys(FILE_TYPES, 0)
        for t in self.tensors.values():
            sizes[t.keep] += t.values.n_rows * t.values.n_columns
        return max(sizes, key=lambda kind: sizes[kind])

    def _check(self) -> None:
        """Raises ModelError where the architecture could not be loaded from these metadata and tensors."""
        from pyllm import archs

        archs.load({key: value.value for key, value in self.metadata.items()}, dict(self._infos()), None)

    def _infos(self) -> Iterator[tuple[str, TensorInfo]]:
        nothing = np.empty(0, np.uint8)
        for t in self.tensors.values():
            # Factors of frequencies are numbers that the pass is recorded with; of others, only shapes matter.
            data = t.read(0, 1).reshape(-1) if t.name.startswith("rope_") else nothing
            yield t.name, TensorInfo(t.name, t.shape, t.format, data)


def _planned(name: str, t: Lazy) -> Planned:
    lazy.require(t, None, _READABLE)
    format = t.dtype if t.dtype in _SAME else "F32"
    keep = t.keep or format
    if len(t.shape) < 2 or not name.endswith(".weight") or name.endswith(_ALWAYS_F32):
        format = keep = "F32"
    return Planned(name, t.shape, format, keep, t)


def _template_problems(words: Mapping[str, Value]) -> tuple[str, ...]:
    """What is wrong with the chat templates; they go into the file as they are."""
    from pyllm import chat

    try:
        template = chat.from_gguf({key: value.value for key, value in words.items() if "chat_template" in key})
    except TemplateError as error:
        return (str(error),)
    return () if template is None else template.problems


def _vocabulary(folder: Path, config: dict[str, Any]) -> dict[str, Value]:
    from pyllm_convert.tokenizer import tokenizer_metadata

    try:
        return tokenizer_metadata(folder, config)
    except TokenizerError as error:
        hint = "without a vocabulary (--no-tokenizer), the file would take token ids only"
        raise TokenizerError(f"{error}; {hint}") from None
