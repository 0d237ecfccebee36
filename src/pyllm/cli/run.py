"""`pyllm run`: one prompt, one answer, streamed to standard output."""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import click

from pyllm.cli import _options

if TYPE_CHECKING:
    from pyllm.llm import LLM
    from pyllm.llm.results import CompletionStream


@click.command("run", short_help="Answer a prompt.", context_settings={"ignore_unknown_options": False})
@click.argument("prompt", nargs=-1)
@_options.model_option
@click.option("-p", "--prompt", "prompt_option", metavar="TEXT", help="The prompt, in place of PROMPT.")
@click.option("-f", "--file", metavar="FILE", help="Text to put after the prompt; - is standard input.")
@click.option("-n", "--max-tokens", type=click.IntRange(-1), help="Most tokens to generate; -1: until the end.")
@click.option("--system", metavar="TEXT", help="What the model is told before the prompt.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it stands, without the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when done.")
@click.option("--stats", is_flag=True, help="Print speeds to standard error when done.")
@_options.sampling_options
@_options.lora_options
@_options.engine_options
@_options.placement_options
def command(
    prompt: tuple[str, ...],
    prompt_option: str | None,
    file: str | None,
    max_tokens: int | None,
    system: str | None,
    stop: tuple[str, ...],
    raw: bool,
    as_json: bool,
    stats: bool,
    **options: Any,
) -> None:
    """Answer PROMPT, and print the answer as it comes.

    Without PROMPT, standard input is the prompt; with one, text that is piped in follows it, so that
    `pyllm run "Summarize:" < notes.txt` does what it says.
    """
    if prompt and prompt_option is not None:
        raise click.UsageError("Give the prompt as PROMPT or with -p, not both.")
    if raw and system is not None:
        raise click.UsageError("--system is part of a chat; it does not go with --raw.")
    asked = prompt_option if prompt_option is not None else " ".join(prompt) or None
    if asked is None and file is None and sys.stdin.isatty():
        raise click.UsageError("There is no prompt. `pyllm chat` holds a conversation.")
    following = None if file is None else _options.read_text(file)
    if asked is None and file is None:
        asked = _options.read_text("-")
    request: dict[str, Any] = {"sampling": _options.sampling(options), "stop": stop}
    if max_tokens is not None:
        request["max_tokens"] = None if max_tokens < 0 else max_tokens

    from pyllm.cli import _model

    with _model.load(options, max_seqs=1) as llm:
        if asked is not None and file is None and (prompt or prompt_option) and _has_input():
            following = _options.read_text("-")
        text = "\n\n".join(t for t in (_options.text_option(asked or ""), following) if t)
        if not text.strip() and not raw:
            raise click.UsageError("The prompt is empty.")
        with _start(llm, text, None if system is None else _options.text_option(system), raw, request) as stream:
            if as_json:
                _print_json(llm, stream)
            else:
                _print_stream(stream)
            if stats:
                _print_stats(llm, stream)


def _start(llm: LLM, text: str, system: str | None, raw: bool, request: dict[str, Any]) -> CompletionStream:
    if raw:
        return llm.complete(text, stream=True, parse_special=True, **request)
    if llm.chat_template is None:
        raise click.ClickException(f"{llm.path.name} has no chat template; --raw continues a text without one")
    messages = [{"role": "system", "content": system}] if system is not None else []
    return llm.chat([*messages, {"role": "user", "content": text}], stream=True, **request)


def _has_input() -> bool:
    """Whether standard input holds something to read now: a pipe that nobody writes to must not block."""
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


def _print_stream(stream: CompletionStream) -> None:
    """The answer, and a line end unless it has one."""
    from pyllm.cli._output import write

    last = "\n"
    for piece in stream:
        write(piece)
        last = piece or last
    if not last.endswith("\n"):
        write("\n")


def _print_json(llm: LLM, stream: CompletionStream) -> None:
    from pyllm.cli._output import write

    result = stream.result
    usage = result.usage
    fields = {
        "model": str(llm.path),
        "devices": list(llm.devices),
        "n_gpu_layers": llm.n_gpu_layers,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "stop_string": result.stop_string,
        "tokens": list(result.tokens),
        "n_prompt": usage.n_prompt,
        "n_generated": usage.n_generated,
        "prompt_seconds": round(usage.prompt_seconds, 6),
        "seconds": round(usage.seconds, 6),
        "prompt_tokens_per_second": round(usage.prompt_rate, 3),
        "tokens_per_second": round(usage.rate, 3),
    }
    write(json.dumps(fields, ensure_ascii=False) + "\n")


def _print_stats(llm: LLM, stream: CompletionStream) -> None:
    from pyllm.cli._output import note, speeds, where

    note(f"{speeds(stream.result.usage)}; on {where(llm)}")
