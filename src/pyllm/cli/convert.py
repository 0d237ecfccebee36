"""`pyllm convert`: a Hugging Face folder to a GGUF file, in any format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyllm.cli import _command, _options, quantize

_SHARED = (
    "imatrix",
    "tensor_types",
    "output_tensor_type",
    "token_embedding_type",
    "pure",
    "leave_output_tensor",
    "allow_requantize",
    "overwrite",
    "split_max_size",
    "threads",
    "dry_run",
)
"""Options shared with `pyllm quantize`."""


@_command.command("convert", short_help="Make a GGUF file of a Hugging Face folder.")
@click.argument("arguments", nargs=-1, metavar="FOLDER DST [RECIPE]")
@click.option("--name", help="Name of the model [default: the folder's].")
@click.option("--no-tokenizer", is_flag=True, help="Leave out the vocabulary; the file then takes token ids only.")
@click.option("--lora", is_flag=True, help="FOLDER is a LoRA adapter of PEFT, for the model --base.")
@click.option("--base", metavar="MODEL", help="With --lora: the model's folder (config.json), or its GGUF file.")
@_options.output_option
def command(
    arguments: tuple[str, ...], name: str | None, no_tokenizer: bool, lora: bool, base: str | None, **options: Any
) -> None:
    """Convert the model in FOLDER (config.json, safetensors, tokenizer.json) to the GGUF file DST.

    Without a RECIPE the weights keep their precision. With one, such as Q4_K_M (`pyllm quantize --list` shows
    all), they are quantized straight from the folder, with no file in between.

    With --lora an adapter becomes a small file of its own, which --lora of the other commands applies to the model
    in whatever format.
    """
    if lora or base is not None:
        _convert_adapter(arguments, lora, base, options)
        return
    from pyllm.cli._output import note
    from pyllm.cli._quantizing import show_plan, show_work
    from pyllm.quant.imatrix import ImportanceMatrix
    from pyllm.quant.quantize import carry_out
    from pyllm.quant.recipes import RecipeOptions
    from pyllm_convert.conversion import Conversion
    from pyllm_convert.writing import plan_of, planned_bytes

    folder, target, recipe = _arguments(arguments, options["dry_run"])
    imatrix = options["imatrix"]
    if imatrix is not None and recipe is None:
        raise click.UsageError(
            "an importance matrix goes with a recipe: pyllm convert FOLDER model.gguf Q4_K_M --imatrix …"
        )
    matrix = None if imatrix is None else ImportanceMatrix.load(imatrix)
    recipe_options = RecipeOptions(
        tensor_types=options["tensor_types"],
        output_format=options["output_tensor_type"],
        embedding_format=options["token_embedding_type"],
        pure=options["pure"],
        leave_output=options["leave_output_tensor"],
    )
    with Conversion(Path(folder), name=name, tokenizer=not no_tokenizer) as model:
        allow = options["allow_requantize"]
        planned = plan_of(model, recipe, recipe_options, imatrix=matrix, allow_requantize=allow)
        for text in model.notes:
            note(f"note: {text}")
        if target is None:
            n_bytes = planned_bytes(model, planned, options["split_max_size"])
            show_plan(planned, n_bytes, model.n_bytes, options["as_json"])
            return
        with show_work(planned, model.n_bytes, options["as_json"]) as work:
            work.summary = carry_out(
                model,
                target,
                planned,
                imatrix=matrix,
                imatrix_name=Path(imatrix).name if imatrix is not None else "",
                overwrite=options["overwrite"],
                split_bytes=options["split_max_size"],
                n_threads=options["threads"],
                progress=work.progress,
                on_tensor=work.on_tensor,
            )


def _convert_adapter(arguments: tuple[str, ...], lora: bool, base: str | None, options: dict[str, Any]) -> None:
    if not lora or base is None:
        raise click.UsageError("--lora and --base go together: pyllm convert --lora ADAPTER out.gguf --base MODEL")
    if len(arguments) != 2:
        raise click.UsageError("an adapter's folder and a target are needed, and no recipe: adapters are not quantized")
    from pyllm.cli._output import write
    from pyllm.units import size
    from pyllm_convert.lora import convert_adapter

    done = convert_adapter(Path(arguments[0]), Path(arguments[1]), Path(base), overwrite=options["overwrite"])
    write(
        f"{arguments[1]}: LoRA adapter for {done.arch}, {len(done.tensors) // 2} matrices, alpha {done.alpha:g}, "
        f"{size(done.n_bytes)}\n"
    )


def _arguments(arguments: tuple[str, ...], dry_run: bool) -> tuple[str, str | None, str | None]:
    """Folder, target (None: nothing is written) and recipe (None: the checkpoint's precision)."""
    if dry_run and 1 <= len(arguments) <= 3:
        recipe = arguments[-1] if len(arguments) > 1 and not arguments[-1].lower().endswith(".gguf") else None
        return arguments[0], None, recipe
    if 2 <= len(arguments) <= 3:
        folder, target, *rest = arguments
        return folder, target, rest[0] if rest else None
    raise click.UsageError("a folder and a target are needed: pyllm convert FOLDER model.gguf, or … model.gguf Q4_K_M")


command.params += [param for param in quantize.command.params if param.name in _SHARED]
