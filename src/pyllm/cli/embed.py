"""`pyllm embed`: embeddings of texts, as JSON lines."""

from __future__ import annotations

from typing import Any

import click

from pyllm.cli import _command, _options


@_command.command("embed", short_help="Turn texts into vectors.")
@_options.model_option
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("-f", "--file", metavar="FILE", help="Texts, one a line, or JSON lines; - is standard input.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "last", "none"]),
    help="Of tokens' states; none: a vector a token [default: as the model's file says].",
)
@click.option("--dimensions", type=click.IntRange(1), metavar="N", help="The first N numbers alone.")
@click.option("--prompt-name", metavar="NAME", help="The file's text of this name, such as query, before each text.")
@click.option("--no-normalize", is_flag=True, help="Vectors are not scaled to length 1.")
@_options.engine_options
@_options.placement_options
def command(
    texts: tuple[str, ...],
    file: str | None,
    pooling: Any,
    dimensions: int | None,
    prompt_name: str | None,
    no_normalize: bool,
    **options: Any,
) -> None:
    """Print a JSON object a text: {"index": 0, "embedding": [...]}, in the texts' order.

    Lines of FILE may be JSON: texts in quotes, or objects with "text".
    """
    from pyllm.cli import _model, _output, _progress, _texts

    given = _texts.texts_of(texts, file)
    with _model.load(options) as llm, _progress.Display(lines=True) as display:
        rows = llm.embed(
            given,
            pooling=pooling,
            normalize=not no_normalize,
            dimensions=dimensions,
            prompt_name=prompt_name,
            progress=_progress.counted("texts", display),
        )
        display.close()
        for index, row in enumerate(rows):
            _output.write_json({"index": index, "embedding": row.tolist()})
