"""`pyllm rerank`: documents by how well they answer a query, as JSON lines."""

from __future__ import annotations

from typing import Any

import click

from pyllm.cli import _command, _options


@_command.command("rerank", short_help="Sort documents by how well they answer a query.")
@_options.model_option
@click.option("-q", "--query", metavar="TEXT", required=True, help="The query.")
@click.argument("documents", nargs=-1, metavar="[DOCUMENT]...")
@click.option("-f", "--file", metavar="FILE", help="Documents, one a line, or JSON lines; - is standard input.")
@click.option("-n", "--top-n", type=click.IntRange(1), metavar="N", help="The best N alone.")
@click.option("--raw", is_flag=True, help="Scores as the model gives them, not between 0 and 1.")
@_options.engine_options
@_options.placement_options
def command(
    query: str, documents: tuple[str, ...], file: str | None, top_n: int | None, raw: bool, **options: Any
) -> None:
    """Print a JSON object a document, the best first: {"index": 3, "score": 0.98, "text": "..."}.

    The model is a cross-encoder, a file with a classifier. Lines of FILE may be JSON: texts in quotes, or objects with
    "text".
    """
    from pyllm.cli import _model, _output, _progress, _texts

    given = _texts.texts_of(documents, file)
    with _model.load(options) as llm, _progress.Display(lines=True) as display:
        ranked = llm.rerank(
            query, given, top_n=top_n, normalize=not raw, progress=_progress.counted("documents", display)
        )
        display.close()
        for one in ranked:
            _output.write_json({"index": one.index, "score": one.score, "text": given[one.index]})
