"""`pyllm chat`: a conversation."""

from __future__ import annotations

import sys
from typing import Any

import click

from pyllm.cli import _command, _options


@_command.command("chat", short_help="Hold a conversation.")
@_options.model_argument
@_options.answer_options
@_options.sampling_options
@_options.lora_options
@_options.engine_options
@_options.cache_options
@_options.placement_options
def command(**options: Any) -> None:
    """Talk with a model. /help shows what else can be typed.

    Where standard input is not a terminal, each line of it is a message.
    """
    system, template = _options.system(options), _options.chat_template(options)
    request, reasoning = _options.request(options), options.pop("reasoning")
    markdown = options.pop("markdown") is not False

    from pyllm.cli import _model
    from pyllm.cli._chat import Conversation
    from pyllm.cli._lines import piped_lines, typed_lines

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with _model.load(options, max_seqs=1, chat_template=template) as llm:
        if llm.chat_template is None:
            raise click.ClickException(f"{llm.path.name} has no chat template; `pyllm run --raw` continues a text")
        conversation = Conversation(llm, request, system, reasoning, markdown)
        if interactive:
            conversation.greet()
        conversation.hold(typed_lines() if interactive else piped_lines())
