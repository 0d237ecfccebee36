"""`pyllm run`: one prompt, one answer, streamed to standard output."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pyllm.cli import _command, _naming, _options
from pyllm.cli._types import ModelType, text_option

if TYPE_CHECKING:
    from pyllm.llm import LLM
    from pyllm.llm.streams import EventStream


@_command.command("run", short_help="Answer a prompt.")
@click.argument("words", nargs=-1, type=ModelType(), metavar="[MODEL] [PROMPT]...")
@_options.model_option
@click.option("-p", "--prompt", "prompt_option", metavar="TEXT", help="The prompt, in place of PROMPT.")
@click.option("-f", "--file", metavar="FILE", help="Text to put after the prompt; - is standard input.")
@_options.answer_options
@_options.form_options
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--tools", metavar="FILE", help="Functions that the model may call, as a JSON list.")
@_options.output_option
@click.option(
    "--prompt-cache", metavar="FILE", help="Read what FILE keeps of earlier prompts, and keep this one there."
)
@click.option("--prompt-cache-ro", is_flag=True, help="Leave that file as it is.")
@click.option("--stats", is_flag=True, help="Print speeds to standard error when done.")
@_options.sampling_options
@_options.lora_options
@_options.engine_options
@_options.cache_options
@_options.placement_options
def command(
    words: tuple[str, ...],
    prompt_option: str | None,
    file: str | None,
    raw: bool,
    as_json: bool,
    prompt_cache: str | None,
    prompt_cache_ro: bool,
    stats: bool,
    **options: Any,
) -> None:
    """Answer PROMPT, and print the answer as it comes.

    A first word that names a model is MODEL, unless -m is given: `pyllm run smollm2:135m "Why is the sky blue?"`.
    Without PROMPT, standard input is the prompt; with one, text that is piped in follows it, so that
    `pyllm run "Summarize:" < notes.txt` does what it says.
    """
    options["model"], prompt = _naming.split_words(options["model"], words)
    if prompt and prompt_option is not None:
        raise click.UsageError("give the prompt as PROMPT or with -p, not both")
    if raw:
        _check_raw(options)
    asked = prompt_option if prompt_option is not None else " ".join(prompt) or None
    if asked is None and file is None and sys.stdin.isatty():
        chat = "pyllm chat" if options["model"] is None else f"pyllm chat {options['model']}"
        raise click.UsageError(f"there is no prompt; `{chat}` holds a conversation")
    following = None if file is None else _options.read_text(file)
    if asked is None and file is None:
        asked = _options.read_text("-")
    system, template = _options.system(options), _options.chat_template(options)
    request = _options.request(options) | _options.form(options)
    reasoning, tools, markdown = options.pop("reasoning"), options.pop("tools"), options.pop("markdown")
    if markdown is None:
        markdown = not raw and not {"response_format", "grammar"} & request.keys()
    if tools is not None:
        request["tools"] = _options.read_json(tools)

    from pyllm.cli import _model

    with _model.load(options, max_seqs=1, chat_template=template) as llm, _cached(llm, prompt_cache, prompt_cache_ro):
        if asked is not None and file is None and (prompt or prompt_option) and _has_input():
            following = _options.read_text("-")
        text = "\n\n".join(t for t in (text_option(asked or ""), following) if t)
        if not text.strip() and not raw:
            raise click.UsageError("the prompt is empty; give PROMPT, -p or -f")
        with _start(llm, text, system, raw, reasoning, request) as stream:
            if as_json:
                _print_json(llm, stream)
            else:
                _print_stream(stream, reasoning, markdown)
            _note_full_context(llm, stream, request.get("max_tokens"))
            _note_warnings(stream)
            if stats:
                _print_stats(llm, stream)


@contextmanager
def _cached(llm: LLM, file: str | None, as_it_is: bool) -> Iterator[None]:
    """With a file's prefix cache, which gets what the command reads and answers."""
    if file is None:
        yield
        return
    if os.path.exists(file):
        llm.load_cache(file)
    yield
    if not as_it_is:
        llm.save_cache(file)


def _start(
    llm: LLM, text: str, system: str | None, raw: bool, reasoning: str | None, request: dict[str, Any]
) -> EventStream:
    from pyllm.cli._answer import variables

    if raw:
        return llm.complete(text, stream="events", parse_special=True, **request)
    if llm.chat_template is None:
        raise click.ClickException(f"{llm.path.name} has no chat template; --raw continues a text without one")
    messages = [{"role": "system", "content": system}] if system is not None else []
    request["variables"] = variables(llm.chat_template, reasoning, request.get("variables"))
    return llm.chat([*messages, {"role": "user", "content": text}], stream="events", **request)


def _check_raw(options: dict[str, Any]) -> None:
    """Refuse options that need a chat."""
    for name in ("system", "system_file", "chat_template_file", "chat_template_kwargs", "reasoning", "tools"):
        if _options.is_given(name):
            raise click.UsageError(f"--{name.replace('_', '-')} is part of a chat; it does not go with --raw")
        options[name] = None  # of the environment


def _has_input() -> bool:
    """Whether standard input has data now: a pipe without a writer must not block."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    if stat.S_ISREG(mode):
        return True
    if not stat.S_ISFIFO(mode) or sys.platform == "win32":
        return False
    import select

    return bool(select.select([sys.stdin], [], [], 0)[0])


def _print_stream(stream: EventStream, reasoning: str | None, markdown: bool) -> None:
    """Print the answer, and a line end unless it has one."""
    from pyllm.cli._answer import Printer

    printer = Printer(reasoning, markdown)
    try:
        for event in stream:
            printer.show(event)
    except KeyboardInterrupt:
        printer.interrupted()
        raise
    printer.end()


def _print_json(llm: LLM, stream: EventStream) -> None:
    from pyllm.cli._output import write_json

    result = stream.result
    usage = result.usage
    fields = {
        "model": str(llm.path),
        "devices": list(llm.devices),
        "n_gpu_layers": llm.n_gpu_layers,
        "text": result.text,
        "reasoning": result.reasoning,
        "tool_calls": [asdict(call) for call in result.tool_calls],
        "finish_reason": result.finish_reason,
        "stop_string": result.stop_string,
        "tokens": list(result.tokens),
        "n_prompt": usage.n_prompt,
        "n_cached": usage.n_cached,
        "n_generated": usage.n_generated,
        "n_drafted": usage.n_drafted,
        "n_accepted": usage.n_accepted,
        "prompt_seconds": round(usage.prompt_seconds, 6),
        "seconds": round(usage.seconds, 6),
        "prompt_tokens_per_second": round(usage.prompt_rate, 3),
        "tokens_per_second": round(usage.rate, 3),
    }
    write_json(fields)


def _note_full_context(llm: LLM, stream: EventStream, max_tokens: int | None) -> None:
    """Note that an answer ended with the context, unless it has all requested tokens."""
    from pyllm.cli._output import cut_off, note

    if stream.result.usage.n_generated != max_tokens and (why := cut_off(llm, stream.result)):
        note(f"note: {why}")


def _note_warnings(stream: EventStream) -> None:
    from pyllm.cli._output import note

    for warning in stream.result.warnings:
        note(f"note: {warning}")


def _print_stats(llm: LLM, stream: EventStream) -> None:
    from pyllm.cli._output import note, speeds, where

    note(f"{speeds(stream.result.usage)}; on {where(llm)}")
