"""`pyllm perplexity`: perplexity of a text, and KL divergence from another model, by llama.cpp's method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from pyllm.cli import _command, _options

if TYPE_CHECKING:
    from pyllm.evaluation.kl_divergence import Divergence, Uncertain
    from pyllm.evaluation.perplexity import PerplexityEstimate


@_command.command("perplexity", short_help="Measure how well a model predicts a text.")
@_options.model_argument
@click.option("-f", "--file", metavar="FILE", help="The text; - is standard input.")
@click.option("--chunks", type=click.IntRange(-1), default=-1, help="Score only this many windows [default: all].")
@click.option(
    "--kl-divergence-base",
    "base",
    metavar="BASE",
    help="Write the model's predictions to BASE; with --kl-divergence, read another model's.",
)
@click.option("--kl-divergence", "compare", is_flag=True, help="Compare the model's predictions with those in BASE.")
@click.option("--overwrite", is_flag=True, help="Replace BASE if it exists.")
@_options.output_option
@_options.lora_options
@partial(_options.engine_options, ctx="512; BASE's with --kl-divergence")
@_options.placement_options
def command(
    file: str | None, chunks: int, base: str | None, compare: bool, overwrite: bool, as_json: bool, **options: Any
) -> None:
    """Cut a text into windows of --ctx tokens, and score the second half of each.

    Prints the running estimate after each window, and the final one as the last line. With --kl-divergence, the text
    and its windows are those of BASE, a file that this command or llama.cpp's perplexity tool wrote.
    """
    from pyllm.cli import _model
    from pyllm.evaluation.perplexity import load_options

    n_windows = None if chunks < 1 else chunks
    if compare:
        if base is None:
            raise click.UsageError("--kl-divergence compares with --kl-divergence-base BASE")
        if file is not None:
            raise click.UsageError("--kl-divergence takes the text from BASE; leave out --file")
        from pyllm.evaluation.kl_divergence import BaseFile

        n_ctx = BaseFile(base).n_ctx
    elif file is None:
        raise click.UsageError("--file FILE says which text is scored")
    else:
        text, n_ctx = _options.read_text(file), options["n_ctx"] or 512
    settings: dict[str, Any] = load_options(n_ctx)
    options["n_ctx"] = settings.pop("n_ctx")
    with _model.load(options, **settings) as llm:
        if compare:
            assert base is not None
            from pyllm.evaluation.kl_divergence import kl_divergence

            _compare(kl_divergence(llm, base, n_windows), as_json)
        else:
            from pyllm.evaluation.perplexity import perplexity

            _score(perplexity(llm, text, n_ctx, n_windows, base=base, overwrite=overwrite), as_json)


def _print_json(results: Iterator[PerplexityEstimate] | Iterator[Divergence]) -> None:
    """Print the figures of the last estimate."""
    from pyllm.cli._output import write

    *_, last = results
    write(json.dumps(last.figures(), indent=2) + "\n")


def _score(estimates: Iterator[PerplexityEstimate], as_json: bool) -> None:
    from pyllm.cli._output import write

    if as_json:
        _print_json(estimates)
        return
    estimate = None
    try:
        for estimate in estimates:
            write(f"[{estimate.n_windows}]{estimate.ppl:.4f},")
    finally:
        if estimate is not None:
            write("\n")
    write(f"{estimate}\n")


def _compare(results: Iterator[Divergence], as_json: bool) -> None:
    from pyllm.cli._output import write

    if as_json:
        _print_json(results)
        return

    def cell(of: Uncertain, digits: int, factor: float = 1.0) -> str:
        return f"{factor * of.value:.{digits}f} ± {factor * of.error:.{digits}f}"

    result = None
    for result in results:
        if result.n_windows == 1:
            names = ("PPL", "ln(PPL(Q)/PPL(base))", "KL divergence"), ("RMS Δp %", "top %")
            write("chunk" + "".join(f"{n:>24}" for n in names[0]) + "".join(f"{n:>18}" for n in names[1]) + "\n")
        row = (cell(result.ppl, 4), cell(result.log_ratio, 5), cell(result.mean_kld, 6))
        shares = (cell(result.rms_delta_p, 3, 100), cell(result.top_share, 3, 100))
        write(f"{result.n_windows:5}{row[0]:>24}{row[1]:>24}{row[2]:>24}{shares[0]:>18}{shares[1]:>18}\n")
    write(f"\n{result}\n")
