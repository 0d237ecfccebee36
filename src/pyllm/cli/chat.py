"""`pyllm chat`: a conversation."""

from __future__ import annotations

import sys
from typing import Any

import click

from pyllm.cli import _options


@click.command("chat", short_help="Hold a conversation.")
@_options.model_option
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("-n", "--max-tokens", type=click.IntRange(-1), help="Most tokens of an answer; -1: until its end.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End an answer before this text; may be repeated.")
@_options.sampling_options
@_options.lora_options
@_options.engine_options
@_options.placement_options
def command(
    system: str | None, max_tokens: int | None, stop: tuple[str, ...], model: str | None, **options: Any
) -> None:
    """Talk with a model. /help shows what else can be typed.

    Where standard input is not a terminal, each line of it is a message.
    """
    request: dict[str, Any] = {"sampling": _options.sampling(options), "stop": stop}
    if max_tokens is not None and max_tokens >= 0:
        request["max_tokens"] = max_tokens

    from pyllm.cli import _model
    from pyllm.cli._chat import Conversation
    from pyllm.cli._lines import piped_lines, typed_lines

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with _model.load({**options, "model": model}, max_seqs=1) as llm:
        if llm.chat_template is None:
            raise click.ClickException(f"{llm.path.name} has no chat template; `pyllm run --raw` continues a text")
        conversation = Conversation(llm, request, None if system is None else _options.text_option(system))
        if interactive:
            conversation.greet()
        conversation.hold(typed_lines() if interactive else piped_lines())
