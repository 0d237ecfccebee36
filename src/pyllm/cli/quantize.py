"""`pyllm quantize`: a model in fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllm.cli import _command, _options
from pyllm.cli._types import FormatType, OverrideType, SizeType

if TYPE_CHECKING:
    from pyllm.gguf import GGUFFile
    from pyllm.quant.imatrix import ImportanceMatrix
    from pyllm.quant.quantize import Plan
    from pyllm.quant.recipes import Choice, RecipeOptions

_USAGE = (
    "a source, a target and a recipe are needed: pyllm quantize f16.gguf q4.gguf Q4_K_M (--list shows recipes), "
    "or a size in place of the recipe: pyllm quantize f16.gguf q4.gguf --bpw 4.25"
)


def _list_recipes(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value:
        return
    from pyllm.cli._output import table, write
    from pyllm.quant.recipes import RECIPES

    rows = [("RECIPE", "BITS", "")]
    rows += [(r.name, f"{r.bits:.1f}", r.description) for r in sorted(RECIPES.values(), key=lambda r: -r.bits)]
    write(table(rows, right=(1,)) + "\nBITS are those per weight, of a model of 8 billion.\n")
    ctx.exit()


@_command.command("quantize", short_help="Make a model smaller: weights in fewer bits.")
@click.argument("arguments", nargs=-1, metavar="SRC DST [RECIPE]")
@click.option(
    "--list",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_list_recipes,
    help="List the recipes, with bits per weight.",
)
@click.option("--bpw", type=click.FloatRange(0, min_open=True), help="In place of a recipe: mean bits per weight.")
@click.option("--size", type=SizeType(), help="In place of a recipe: the best file of at most this size (900M).")
@click.option("--calibrate", metavar="TEXT", help="For --bpw, --size: the text to measure with [default: a small mix].")
@click.option("--fast", is_flag=True, help="For --bpw, --size: assume typical sensitivities; do not run the model.")
@click.option("--imatrix", type=click.Path(), metavar="FILE", help="Importance of weights; see `pyllm imatrix`.")
@click.option(
    "--tensor-type",
    "tensor_types",
    type=OverrideType(),
    multiple=True,
    help="Format of tensors whose names match the regular expression PATTERN; the first match counts.",
)
@click.option("--output-tensor-type", "--output-type", type=FormatType(), help="Format of output.weight.")
@click.option("--token-embedding-type", type=FormatType(), help="Format of the token embeddings.")
@click.option("--pure", is_flag=True, help="One format for all matrices.")
@click.option("--leave-output-tensor", is_flag=True, help="Leave output.weight as it is.")
@click.option("--allow-requantize", is_flag=True, help="Allow quantized sources; the losses add up.")
@click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@click.option("--split-max-size", type=SizeType(), help="Split the result into files of at most this size (2G).")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads [default: physical cores].")
@click.option("--dry-run", is_flag=True, help="Show the plan and the file's size; DST may be left out.")
@_options.offline_option
@_options.output_option
def command(arguments: tuple[str, ...], imatrix: str | None, **options: Any) -> None:
    """Quantize the GGUF file SRC to DST by RECIPE, such as Q4_K_M, or to a size (--bpw 4.25, --size 900M).

    SRC should be in F16, BF16 or F32. An importance matrix improves all but the largest recipes, and the smallest need
    one. For a size, the formats are chosen that change the model's predictions least: each matrix is tried while the
    model reads a text. An incomplete file never has the name DST.
    """
    from pyllm import hub, open_gguf
    from pyllm.cli._progress import Display
    from pyllm.gguf import GGUFWriter
    from pyllm.quant.imatrix import ImportanceMatrix
    from pyllm.quant.recipes import RecipeOptions

    source, target, recipe = _arguments(arguments, options["dry_run"], options["bpw"], options["size"])
    if recipe is not None and (options["calibrate"] or options["fast"]):
        raise click.UsageError("--calibrate and --fast go with --bpw or --size")
    recipe_options = RecipeOptions(
        tensor_types=options["tensor_types"],
        output_format=options["output_tensor_type"],
        embedding_format=options["token_embedding_type"],
        pure=options["pure"],
        leave_output=options["leave_output_tensor"],
        has_imatrix=imatrix is not None,
    )
    matrix = None if imatrix is None else ImportanceMatrix.load(imatrix)
    with Display() as display:
        path = hub.resolve(source, display.progress)
    with open_gguf(path) as file:
        if target is not None and not options["dry_run"] and options["split_max_size"] is None:
            # Before measuring, which may take minutes.
            GGUFWriter(target, {}, (), overwrite=options["overwrite"], sources=file.parts).check()
        planned = _plan(file, recipe, recipe_options, matrix, imatrix, options)
        if options["dry_run"]:
            _show_plan(file, planned, options["split_max_size"], options["as_json"])
        elif target is not None:
            name = Path(imatrix).name if imatrix is not None else ""
            _quantize(file, target, planned, matrix, name, options)


def _arguments(
    arguments: tuple[str, ...], dry_run: bool, bpw: float | None, n_bytes: int | None
) -> tuple[str, str | None, str | None]:
    """Source, target (None: not given) and recipe (None: a size is given)."""
    if bpw is not None and n_bytes is not None:
        raise click.UsageError("--bpw and --size both name a size")
    to_size = bpw is not None or n_bytes is not None
    rest: list[str | None] = [*arguments, None] if to_size else [*arguments]
    if len(rest) == 2 and dry_run:
        rest.insert(1, None)
    if len(rest) != 3 or rest[0] is None:
        raise click.UsageError("a size takes the place of the recipe: name one of them" if len(rest) == 4 else _USAGE)
    return rest[0], rest[1], rest[2]


def _plan(
    file: GGUFFile,
    recipe: str | None,
    recipe_options: RecipeOptions,
    matrix: ImportanceMatrix | None,
    imatrix: str | None,
    options: dict[str, Any],
) -> Plan:
    from pyllm.quant.quantize import plan
    from pyllm.quant.recipes import choose, recipe_named

    file_type = None
    if recipe is not None:
        chosen = recipe_named(recipe)
        file_type = chosen.file_type
        choices = choose(chosen, file.metadata, file.tensors.values(), recipe_options)
    else:
        choices = _choices_for_size(file, recipe_options, matrix, imatrix, options)
    return plan(file, choices, file_type, imatrix=matrix, allow_requantize=options["allow_requantize"])


def _choices_for_size(
    file: GGUFFile,
    recipe_options: RecipeOptions,
    matrix: ImportanceMatrix | None,
    imatrix: str | None,
    options: dict[str, Any],
) -> list[Choice]:
    from pyllm.cli._options import read_text
    from pyllm.cli._output import note
    from pyllm.cli._progress import Display
    from pyllm.quant.calibrate.target_size import formats_for_size

    if recipe_options.pure:
        raise click.UsageError("--pure gives all matrices one format; a size needs several")
    with Display(lines=True) as display:
        choices = formats_for_size(
            file,
            n_bytes=options["size"],
            bits_per_weight=options["bpw"],
            options=recipe_options,
            imatrix=matrix,
            imatrix_name=Path(imatrix).name if imatrix is not None else "",
            text=read_text(options["calibrate"]) if options["calibrate"] else None,
            fast=options["fast"],
            allow_requantize=options["allow_requantize"],
            n_threads=options["threads"],
            progress=display.progress,
        )
    if all(c.format == file.tensors[c.name].format for c in choices):
        note("note: the size has room for the tensors as they are; they are copied")
    return choices


def _show_plan(file: GGUFFile, plan: Plan, split_bytes: int | None, as_json: bool) -> None:
    from pyllm.cli._quantizing import show_plan
    from pyllm.quant.quantize import planned_bytes

    show_plan(plan, planned_bytes(file, plan, split_bytes), file.n_bytes, as_json)


def _quantize(
    file: GGUFFile,
    target: str,
    plan: Plan,
    matrix: ImportanceMatrix | None,
    matrix_name: str,
    options: dict[str, Any],
) -> None:
    from pyllm.cli._quantizing import show_work
    from pyllm.quant.quantize import GGUFOrigin, carry_out

    with show_work(plan, file.n_bytes, options["as_json"]) as work:
        work.summary = carry_out(
            GGUFOrigin(file),
            target,
            plan,
            imatrix=matrix,
            imatrix_name=matrix_name,
            overwrite=options["overwrite"],
            split_bytes=options["split_max_size"],
            n_threads=options["threads"],
            progress=work.progress,
            on_tensor=work.on_tensor,
        )
