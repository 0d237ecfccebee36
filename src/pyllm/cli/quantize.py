"""`pyllm quantize`: a model in fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllm.cli._types import FormatType, OverrideType, SizeType

if TYPE_CHECKING:
    from pyllm.gguf import GGUFFile
    from pyllm.quant.imatrix import ImportanceMatrix
    from pyllm.quant.quantize import Plan
    from pyllm.quant.recipes import RecipeOptions

_USAGE = "a source, a target and a recipe are needed: pyllm quantize f16.gguf q4.gguf Q4_K_M (--list shows recipes)"


def _list_recipes(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value:
        return
    from pyllm.cli._output import table, write
    from pyllm.quant.recipes import RECIPES

    rows = [("RECIPE", "BITS", "")]
    rows += [(r.name, f"{r.bits:.1f}", r.description) for r in sorted(RECIPES.values(), key=lambda r: -r.bits)]
    write(table(rows, right=(1,)) + "\nBITS are those per weight, of a model of 8 billion.\n")
    ctx.exit()


@click.command("quantize", short_help="Make a model smaller: weights in fewer bits.")
@click.argument("arguments", nargs=-1, metavar="SRC DST RECIPE")
@click.option(
    "--list",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_list_recipes,
    help="List the recipes, with bits per weight, and leave.",
)
@click.option("--imatrix", type=click.Path(), metavar="FILE", help="Importance of weights; see `pyllm imatrix`.")
@click.option(
    "--tensor-type",
    "tensor_types",
    type=OverrideType(),
    multiple=True,
    help="Format of tensors in whose name the regular expression PATTERN is found; the first that fits counts.",
)
@click.option("--output-tensor-type", "--output-type", type=FormatType(), help="Format of output.weight.")
@click.option("--token-embedding-type", type=FormatType(), help="Format of the token embeddings.")
@click.option("--pure", is_flag=True, help="One format for all matrices.")
@click.option("--leave-output-tensor", is_flag=True, help="Leave output.weight as it is.")
@click.option("--allow-requantize", is_flag=True, help="Quantize what is quantized already; that loses twice.")
@click.option("--overwrite", is_flag=True, help="Replace DST if it is there.")
@click.option("--split-max-size", type=SizeType(), help="Split what is larger into files of at most this (2G).")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads [default: physical cores].")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and how large it gets; DST may be left out.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of tables.")
def command(arguments: tuple[str, ...], imatrix: str | None, **options: Any) -> None:
    """Quantize the GGUF file SRC to DST by RECIPE, such as Q4_K_M.

    SRC should be in F16, BF16 or F32. An importance matrix makes all but the largest recipes better, and the
    smallest need one. A file that is not complete never has the name DST.
    """
    from pyllm import hub, open_gguf
    from pyllm.cli._progress import Display
    from pyllm.quant.imatrix import ImportanceMatrix
    from pyllm.quant.recipes import RecipeOptions

    source, target, recipe = _arguments(arguments, options["dry_run"])
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
        planned = _plan(file, recipe, recipe_options, matrix, options["allow_requantize"])
        if options["dry_run"]:
            _show_plan(file, planned, options["split_max_size"], options["as_json"])
        elif target is not None:
            name = Path(imatrix).name if imatrix is not None else ""
            _quantize(file, target, planned, matrix, name, options)


def _arguments(arguments: tuple[str, ...], dry_run: bool) -> tuple[str, str | None, str]:
    """Source, target (None where it was left out) and recipe."""
    if len(arguments) == 3:
        source, target, recipe = arguments
        return source, target, recipe
    if len(arguments) == 2 and dry_run:
        return arguments[0], None, arguments[1]
    raise click.UsageError(_USAGE)


def _plan(
    file: GGUFFile, recipe: str, options: RecipeOptions, matrix: ImportanceMatrix | None, allow_requantize: bool
) -> Plan:
    from pyllm.quant.quantize import plan
    from pyllm.quant.recipes import choose, recipe_named

    chosen = recipe_named(recipe)
    choices = choose(chosen, file.metadata, file.tensors.values(), options)
    return plan(file, choices, chosen.file_type, imatrix=matrix, allow_requantize=allow_requantize)


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
    from pyllm.quant.quantize import carry_out

    with show_work(plan, file.n_bytes, options["as_json"]) as work:
        work.summary = carry_out(
            file,
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
