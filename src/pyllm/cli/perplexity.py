"""`pyllm perplexity`: how well a model predicts a text, by llama.cpp's method."""

from __future__ import annotations

from typing import Any

import click

from pyllm.cli import _options


@click.command("perplexity", short_help="Measure how well a model predicts a text.")
@_options.model_option
@click.option("-f", "--file", required=True, metavar="FILE", help="The text; - is standard input.")
@click.option("--chunks", type=click.IntRange(-1), default=-1, help="Score only so many windows [default: all].")
@_options.engine_options
def command(file: str, chunks: int, **options: Any) -> None:
    """Cut a text into windows of --ctx tokens (default 512), and score the second half of each.

    Prints the running estimate after each window, and the final one as the last line.
    """
    from pyllm.cli import _model
    from pyllm.cli._output import write
    from pyllm.perplexity import perplexity

    text = _options.read_text(file)
    options["ctx"] = options["ctx"] or 512
    n_ctx = options["ctx"]
    with _model.load(options, max_seqs=1) as llm:
        estimate = None
        try:
            for estimate in perplexity(llm, text, n_ctx, None if chunks < 1 else chunks):
                write(f"[{estimate.n_windows}]{estimate.ppl:.4f},")
        finally:
            if estimate is not None:
                write("\n")
        write(f"{estimate}\n")
