"""Quantization to a given size: the best formats for a model's matrices within a number of bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyllm.config import Progress
from pyllm.errors import FormatError
from pyllm.jit.processors import default_threads
from pyllm.quant.calibrate.sensitivity import sensitivities
from pyllm.quant.imatrix import ImportanceMatrix
from pyllm.quant.pipeline import Summary, TensorResult
from pyllm.quant.quantize import GGUFOrigin, carry_out, check_sources, header_bytes, plan
from pyllm.quant.recipes import Choice, RecipeOptions
from pyllm.quant.recipes.roles import is_quantized
from pyllm.quant.sizing import Task, candidates, choose_for_size, measure_errors
from pyllm.quant.source import sources_of

if TYPE_CHECKING:
    from pyllm.gguf import GGUFFile

_COARSE_BELOW = 3.25
"""Bits per weight below which matrices are probed with about two bits instead of three."""
_FURTHEST_BELOW = 2.5
"""Formats with this many bits less than the average are not tried: they cost more than they save."""
_SHARE_OF_PROBES = 0.75
"""Share of the progress for probes of the model."""


def formats_for_size(
    file: GGUFFile,
    *,
    n_bytes: int | None = None,
    bits_per_weight: float | None = None,
    options: RecipeOptions | None = None,
    imatrix: ImportanceMatrix | None = None,
    imatrix_name: str = "",
    text: str | Sequence[int] | None = None,
    fast: bool = False,
    allow_requantize: bool = False,
    backend: str = "cpu",
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> list[Choice]:
    """The format of each tensor, in file order, for a file of at most `n_bytes`, or tensors of `bits_per_weight`.

    Errors are measured on samples of all matrices in all formats; their effect on the model, by quantizing one matrix
    after another while the model reads `text` (token ids; None: pyllm's own mix). `fast` skips the latter and assumes
    typical effects. Nothing is measured where all tensors fit unchanged. `options.pure` has no effect.

    Raises FormatError where the size is impossible or missing, RequestError where the text is too short.
    """
    task = Task.of(sources_of(file), options, allow_requantize)
    alignment = int(file.metadata.get("general.alignment", 32))
    if n_bytes is not None:
        budget = n_bytes - header_bytes(file, alignment, imatrix, imatrix_name)
    elif bits_per_weight is not None:
        budget = int(bits_per_weight * task.n_weights / 8)
    else:
        raise FormatError("name a size: a number of bytes, or of bits per weight")
    threads = n_threads or default_threads()
    if (unchanged := task.unchanged(budget, alignment)) is not None:
        return unchanged
    least_bits = 8 * budget / task.n_weights - _FURTHEST_BELOW
    unknown = {t.name: dict.fromkeys(candidates(t, least_bits), 0.0) for t in task.free}
    try:
        choose_for_size(task, unknown, budget, alignment=alignment)
    except FormatError:
        if not allow_requantize:
            check_sources(t for t in file.tensors.values() if is_quantized(t.name, t.shape))
        raise
    half = 1.0 if fast else 1 - _SHARE_OF_PROBES
    errors = measure_errors(
        task.free,
        least_bits=least_bits,
        imatrix=imatrix,
        n_threads=threads,
        progress=_part(progress, 0.0, half),
    )
    measured = None
    if not fast:
        probe = "Q2_K" if 8 * budget / task.n_weights < _COARSE_BELOW else "Q3_K"
        measured = sensitivities(
            file,
            [[t.name for t in group] for group in task.groups()],
            text,
            probe=probe,
            imatrix=imatrix,
            backend=backend,
            n_threads=threads,
            progress=_part(progress, half, 1.0),
        )
    return choose_for_size(task, errors, budget, measured, alignment)


def quantize_to_size(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    n_bytes: int | None = None,
    bits_per_weight: float | None = None,
    options: RecipeOptions | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    text: str | Sequence[int] | None = None,
    fast: bool = False,
    allow_requantize: bool = False,
    overwrite: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
    on_tensor: Callable[[TensorResult], None] | None = None,
) -> Summary:
    """Quantize a GGUF file to at most `n_bytes`, or to `bits_per_weight`, with the formats that harm the model least.

    Other arguments and errors as for `formats_for_size` and `pyllm.quantize`.
    """
    from pyllm.gguf import open_gguf

    matrix = None if imatrix is None else ImportanceMatrix.load(imatrix)
    name = Path(imatrix).name if imatrix is not None else ""
    with open_gguf(source) as file:
        choices = formats_for_size(
            file,
            n_bytes=n_bytes,
            bits_per_weight=bits_per_weight,
            options=options,
            imatrix=matrix,
            imatrix_name=name,
            text=text,
            fast=fast,
            allow_requantize=allow_requantize,
            n_threads=n_threads,
            progress=progress,
        )
        return carry_out(
            GGUFOrigin(file),
            target,
            plan(file, choices, None, imatrix=matrix, allow_requantize=allow_requantize),
            imatrix=matrix,
            imatrix_name=name,
            overwrite=overwrite,
            n_threads=n_threads,
            progress=progress,
            on_tensor=on_tensor,
        )


def _part(progress: Progress | None, start: float, end: float) -> Progress | None:
    """Progress of a part as progress of the whole."""
    if progress is None:
        return None
    return lambda what, share: progress(what, start + share * (end - start))
