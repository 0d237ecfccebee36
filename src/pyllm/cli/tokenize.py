"""`pyllm tokenize`: text to tokens, and back."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from pyllm.cli import _command, _naming, _options
from pyllm.cli._types import ModelType, text_option

if TYPE_CHECKING:
    from pyllm.tokenizers import Tokenizer


@_command.command("tokenize", short_help="Show a text's tokens.")
@click.argument("text", nargs=-1, type=ModelType(), metavar="[MODEL] [TEXT]...")
@_options.model_option
@click.option("-p", "--prompt", metavar="TEXT", help="The text, in place of TEXT.")
@click.option("-f", "--file", metavar="FILE", help="Read the text from a file; - is standard input.")
@click.option("--ids", is_flag=True, help="Print the ids alone, as a JSON array in one line.")
@click.option("--count", is_flag=True, help="Print the number of tokens alone.")
@click.option("--decode", is_flag=True, help="The text is ids; print their text.")
@click.option("--no-special", is_flag=True, help="Add no BOS or EOS token.")
@click.option("--parse-special", is_flag=True, help="Text such as <|im_start|> means that token.")
def command(
    text: tuple[str, ...],
    model: str | None,
    prompt: str | None,
    file: str | None,
    ids: bool,
    count: bool,
    decode: bool,
    no_special: bool,
    parse_special: bool,
) -> None:
    """Print the tokens of TEXT (or of standard input), one per line: its id, and its text in quotes.

    A first word that names a model is MODEL, unless -m is given.
    """
    import pyllm
    from pyllm import hub
    from pyllm.cli._output import write

    model, text = _naming.split_words(model, text)
    if bool(text) + (prompt is not None) + (file is not None) > 1:
        raise click.UsageError("give the text as TEXT, with -p or with -f: one of them")
    if file is not None or (not text and prompt is None):
        if file is None and sys.stdin.isatty():
            raise click.UsageError("the text is missing; give TEXT, -p or -f")
        content = _options.read_text(file or "-")
    else:
        content = text_option(prompt if prompt is not None else " ".join(text))
    tokenizer = pyllm.load_tokenizer(model or hub.default_name())
    if decode:
        write(tokenizer.decode(_parse_ids(content, tokenizer), skip_special=False) + "\n")
        return
    tokens = tokenizer.encode(content, add_special=not no_special, parse_special=parse_special)
    if count:
        write(f"{len(tokens)}\n")
    elif ids:
        write(json.dumps(tokens) + "\n")
    else:
        write("".join(f"{t:>7}  {_shown(tokenizer, t)}\n" for t in tokens))


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token's text in quotes; as bytes where it is only a part of a character."""
    data = tokenizer.token_bytes(token)
    try:
        return json.dumps(data.decode() or tokenizer.token_text(token), ensure_ascii=False)
    except UnicodeDecodeError:
        return repr(data)


def _parse_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    try:
        ids = [int(word) for word in text.replace(",", " ").strip().strip("[]").split()]
    except ValueError:
        raise click.UsageError("--decode takes ids: numbers separated by spaces or commas") from None
    if bad := [i for i in ids if not 0 <= i < tokenizer.n_vocab]:
        raise click.UsageError(f"{bad[0]} is not an id: they go from 0 to {tokenizer.n_vocab - 1}")
    return ids
