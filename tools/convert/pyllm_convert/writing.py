"""A folder to a file, in the checkpoint's precision or straight in any recipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pyllm.config import Progress
from pyllm.gguf.writer import GGUFWriter
from pyllm.quant.imatrix import ImportanceMatrix
from pyllm.quant.pipeline import Summary, TensorResult
from pyllm.quant.quantize import Plan, carry_out, plan, quantized_metadata
from pyllm.quant.recipes import Choice, RecipeOptions, asked_for, choose, recipe_named
from pyllm_convert.conversion import Conversion


def convert(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    recipe: str | None = None,
    *,
    options: RecipeOptions | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    name: str | None = None,
    tokenizer: bool = True,
    allow_requantize: bool = False,
    overwrite: bool = False,
    split_bytes: int | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
    on_tensor: Callable[[TensorResult], None] | None = None,
) -> Summary:
    """Write the model in a Hugging Face folder to a GGUF file, by a recipe ("Q4_K_M") or (None) in its own precision.

    `name` is what the model is called, else what the folder is; without `tokenizer` the file can only be used by token
    ids. The rest is as `pyllm.quantize` has it. Memory: some 100 MB and what a few rows take, whatever the model.

    Raises ModelError and TokenizerError for folders that cannot be converted, and what `pyllm.quantize` raises.
    """
    matrix = None if imatrix is None else ImportanceMatrix.load(imatrix)
    with Conversion(Path(folder), name=name, tokenizer=tokenizer) as model:
        planned = plan_of(model, recipe, options, imatrix=matrix, allow_requantize=allow_requantize)
        return carry_out(
            model,
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


def plan_of(
    model: Conversion,
    recipe: str | None,
    options: RecipeOptions | None = None,
    *,
    imatrix: ImportanceMatrix | None = None,
    allow_requantize: bool = False,
) -> Plan:
    """What converting by a recipe (None: in the checkpoint's precision) would do. Raises as `convert` does."""
    options = replace(options or RecipeOptions(), has_imatrix=imatrix is not None)
    choices = choices_of(model, recipe, options)
    file_type = int(model.metadata["general.file_type"].value) if recipe is None else recipe_named(recipe).file_type
    return plan(model, choices, file_type, imatrix=imatrix, allow_requantize=allow_requantize)


def planned_bytes(model: Conversion, plan: Plan, split_bytes: int | None = None) -> int:
    """Size of the file, or files, that the plan would make."""
    metadata = quantized_metadata(model.metadata, plan.file_type)
    return GGUFWriter(model.checkpoint.folder / "x.gguf", metadata, plan.specs, split_bytes=split_bytes).n_bytes


def choices_of(model: Conversion, recipe: str | None, options: RecipeOptions) -> list[Choice]:
    """The format of each tensor: what `options` name, else the recipe's (None: the checkpoint's).

    Blocks of 4 bits stay what they are unless `options` name another format: they were trained as such. Raises
    FormatError for a recipe, a format or a pattern that is none.
    """
    tensors = [t.as_kept for t in model.tensors.values()]
    asked = asked_for(tensors, options)
    if recipe is None:
        return [asked.get(t.name, Choice(t.name, t.format)) for t in tensors]
    values = {key: value.value for key, value in model.metadata.items()}
    chosen = choose(recipe_named(recipe), values, tensors, options)
    trained = {t.name for t in tensors if t.format == "MXFP4" and t.name not in asked and not options.pure}
    return [Choice(t.name, t.format) if t.name in trained else c for t, c in zip(tensors, chosen, strict=True)]
