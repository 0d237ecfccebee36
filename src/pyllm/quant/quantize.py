"""Quantization of a GGUF file: the plan of its tensors' formats, its checks, and its execution."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pyllm.arguments import FilePath, checked
from pyllm.config import Progress
from pyllm.errors import FormatError, RequestError
from pyllm.gguf.reader import GGUFFile, open_gguf
from pyllm.gguf.types import ValueType, by_name
from pyllm.gguf.writer import GGUFWriter, TensorSpec, Value, copy_metadata
from pyllm.quant.imatrix import ImportanceMatrix
from pyllm.quant.pipeline import Summary, TensorResult, write_model
from pyllm.quant.recipes import Choice, RecipeOptions, Tensor, choose, recipe_named
from pyllm.quant.source import SourceTensor, sources_of
from pyllm.records import dataclass

_QUANTIZATION_VERSION = 2
"""Version of the block layouts; ggml's GGML_QNT_VERSION."""
_IMATRIX_KEYS = ("file", "dataset", "entries_count", "chunks_count")
_OF_OUTPUT = ("token_embd.weight", "output.weight")
"""Matrices that importance matrices often lack."""


class TensorFile(Protocol):
    """A source of tensors to quantize: a `GGUFFile`, a checkpoint."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...


class Origin(Protocol):
    """The origin of a file: a GGUF file (`GGUFOrigin`), a checkpoint."""

    @property
    def metadata(self) -> Mapping[str, Value]: ...

    @property
    def files(self) -> Sequence[Path]: ...

    def sources(self) -> Sequence[SourceTensor]: ...


class GGUFOrigin:
    """An open GGUF file as origin."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self.metadata: Mapping[str, Value] = copy_metadata(file.metadata)
        self.files: Sequence[Path] = file.parts

    def sources(self) -> list[SourceTensor]:
        return sources_of(self._file)


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a quantization."""

    file_type: int | None
    """`general.file_type` of the new file; None: no standard type."""
    specs: tuple[TensorSpec, ...]
    """The tensors of the new file."""
    source_formats: tuple[str, ...]
    """The tensors' present formats."""
    fallbacks: Mapping[str, str]
    """By tensor that cannot have its format: the reason, and the format used instead."""
    unweighted: tuple[str, ...]
    """Matrices missing from the importance matrix."""

    @property
    def formats(self) -> dict[str, str]:
        return {t.name: t.format for t in self.specs}


def plan(
    file: TensorFile,
    choices: Sequence[Choice],
    file_type: int | None,
    *,
    imatrix: ImportanceMatrix | None = None,
    allow_requantize: bool = False,
) -> Plan:
    """Plan the quantization by the chosen formats, and check it.

    Raises FormatError where a tensor is quantized already, or cannot have its format; RequestError where a format needs
    importance that is missing, or the importance matrix is of another model.
    """
    tensors = list(file.tensors.values())
    changed = [c for t, c in zip(tensors, choices, strict=True) if t.format != c.format]
    if not allow_requantize:
        check_sources([t for t in tensors if t.name in {c.name for c in changed}])
    unweighted = _unweighted(file, changed, imatrix)
    return Plan(
        file_type,
        tuple(TensorSpec(t.name, t.shape, c.format) for t, c in zip(tensors, choices, strict=True)),
        tuple(t.format for t in tensors),
        {c.name: c.reason for c in choices if c.reason},
        tuple(name for name in unweighted if name not in _OF_OUTPUT),
    )


@checked
def quantize(
    source: FilePath,
    target: FilePath,
    recipe: str,
    *,
    options: RecipeOptions | None = None,
    imatrix: FilePath | None = None,
    allow_requantize: bool = False,
    overwrite: bool = False,
    split_bytes: int | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
    on_tensor: Callable[[TensorResult], None] | None = None,
) -> Summary:
    """Quantize a GGUF file (the first part of a split one) by a recipe ("Q4_K_M"; `pyllm quantize --list` shows all).

    `options` override the recipe; `imatrix` is a file made by `pyllm imatrix`, which some recipes require and most
    benefit from. `split_bytes`: size above which the result is split. `progress(tensor, share)` and `on_tensor(result)`
    report progress. An incomplete file is removed.

    Raises FormatError (unknown recipe or format; already quantized, unless `allow_requantize`), GGUFError (a file
    cannot be read or written, or exists already), RequestError (an importance matrix is required, or does not fit).
    """
    if (split_bytes is not None and split_bytes < 1) or (n_threads or 0) < 0:
        raise RequestError("split_bytes and n_threads must be 1 or more, or None")
    matrix = None if imatrix is None else ImportanceMatrix.load(imatrix)
    with open_gguf(source) as file:
        chosen = recipe_named(recipe)
        options = replace(options or RecipeOptions(), has_imatrix=matrix is not None)
        choices = choose(chosen, file.metadata, file.tensors.values(), options)
        planned = plan(file, choices, chosen.file_type, imatrix=matrix, allow_requantize=allow_requantize)
        return carry_out(
            GGUFOrigin(file),
            target,
            planned,
            imatrix=matrix,
            imatrix_name=Path(imatrix).name if imatrix is not None else "",
            overwrite=overwrite,
            split_bytes=split_bytes,
            n_threads=n_threads,
            progress=progress,
            on_tensor=on_tensor,
        )


def carry_out(
    origin: Origin,
    target: str | os.PathLike[str],
    plan: Plan,
    *,
    imatrix: ImportanceMatrix | None = None,
    imatrix_name: str = "",
    overwrite: bool = False,
    split_bytes: int | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
    on_tensor: Callable[[TensorResult], None] | None = None,
) -> Summary:
    """Carry out a plan. Otherwise as `quantize`."""
    from pyllm.jit.processors import default_threads

    return write_model(
        target,
        quantized_metadata(origin.metadata, plan.file_type, imatrix, imatrix_name),
        origin.sources(),
        plan.formats,
        imatrix=imatrix,
        n_threads=n_threads or default_threads(),
        progress=progress,
        on_tensor=on_tensor,
        overwrite=overwrite,
        split_bytes=split_bytes,
        read_from=origin.files,
    )


def header_bytes(
    file: GGUFFile, alignment: int, imatrix: ImportanceMatrix | None = None, imatrix_name: str = ""
) -> int:
    """Bytes of the quantized file beside its tensors, which are padded to multiples of `alignment`."""
    metadata = quantized_metadata(copy_metadata(file.metadata), None, imatrix, imatrix_name)
    empty = [TensorSpec(t.name, t.shape, t.format) for t in file.tensors.values()]
    writer = GGUFWriter(file.path, metadata, empty, alignment=alignment)
    return writer.n_bytes - sum(-(-t.n_bytes // alignment) * alignment for t in empty)


def planned_bytes(file: GGUFFile, plan: Plan, split_bytes: int | None = None) -> int:
    """Bytes of the file, or files, of the plan."""
    metadata = quantized_metadata(copy_metadata(file.metadata), plan.file_type)
    return GGUFWriter(file.path, metadata, plan.specs, split_bytes=split_bytes).n_bytes


def quantized_metadata(
    metadata: Mapping[str, Value],
    file_type: int | None,
    imatrix: ImportanceMatrix | None = None,
    imatrix_name: str = "",
) -> dict[str, Value]:
    """Metadata of the quantized file: its type, and the importance matrix, in llama.cpp's keys."""
    stale = {"general.file_type", *(f"quantize.imatrix.{key}" for key in _IMATRIX_KEYS)}
    out = {key: value for key, value in metadata.items() if key not in stale}
    out["general.quantization_version"] = Value(ValueType.UINT32, _QUANTIZATION_VERSION)
    if file_type is not None:
        out["general.file_type"] = Value(ValueType.UINT32, file_type)
    if imatrix is not None:
        facts: tuple[Any, ...] = imatrix_name, ", ".join(imatrix.datasets), len(imatrix.sums), imatrix.chunks
        out |= {f"quantize.imatrix.{k}": Value.of(v) for k, v in zip(_IMATRIX_KEYS, facts, strict=True) if v}
    return out


def check_sources(tensors: Iterable[Tensor]) -> None:
    """Raise FormatError where one of the tensors is quantized already."""
    for t in tensors:
        if by_name(t.format).block_size > 1:
            raise FormatError(
                f"{t.name} is {t.format} already, and what was lost stays lost: quantize the original weights, or "
                "allow it (--allow-requantize)"
            )


def _unweighted(file: TensorFile, changed: Sequence[Choice], imatrix: ImportanceMatrix | None) -> list[str]:
    """Names of matrices that are quantized without importance, although there is an importance matrix."""
    missing = []
    for c in changed:
        columns = file.tensors[c.name].shape[-1]
        if imatrix is None or imatrix.importance(c.name, columns) is None:
            missing.append(c)
    if imatrix is not None and changed and len(missing) == len(changed):
        raise RequestError(
            f"the importance matrix is of another model: it has {len(imatrix.sums)} weights, but none of those that "
            f"are to be quantized, such as {changed[0].name}"
        )
    for c in missing:
        if c.needs_importance and imatrix is None:
            raise RequestError(
                f"{c.format}, which {c.name} should be, is useless without an importance matrix: collect one "
                "(`pyllm imatrix`) and name it (--imatrix)"
            )
        if c.needs_importance:
            raise RequestError(
                f"{c.format}, which {c.name} should be, is useless without importance, and the importance matrix has "
                "none of it: collect one on this model"
            )
    return [] if imatrix is None else [c.name for c in missing]
