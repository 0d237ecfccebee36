"""Output of text: unchanged to pipes, without control sequences to terminals."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from pyllm.cli import _streams

if TYPE_CHECKING:
    from pyllm.llm import LLM
    from pyllm.llm.results import Completion, Usage

# Control characters of a model's or a file's text could move the cursor, rename the window or type commands: on a
# terminal they are shown as symbols. Tab and line feed stay; C1 (ESC [ in one byte) and DEL are replaced too.
_NEUTRAL = {c: 0x2400 + c for c in range(0x20) if chr(c) not in "\t\n"} | {0x7F: 0x2421}
_NEUTRAL |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def neutralize(text: str) -> str:
    """The text with control characters replaced by visible ones."""
    return text.translate(_NEUTRAL)


def write(text: str) -> None:
    """Write to standard output at once; neutralized on a terminal, unchanged elsewhere. Raises as `_streams.write`."""
    _streams.write(neutralize(text) if sys.stdout.isatty() else text)


def note(text: str) -> None:
    """A line for the reader, on standard error."""
    _streams.note(neutralize(text) if sys.stderr.isatty() else text)


def write_json(value: Any, indent: int | None = None) -> None:
    """Write a value as JSON, and a line end; characters that the stream's encoding lacks are escaped."""
    is_utf8 = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
    text = json.dumps(value, ensure_ascii=not is_utf8, indent=indent)
    # Lone surrogates, of a path that is not UTF-8, are no characters of UTF-8; JSON has escapes for them.
    write(text.encode("utf-8", "backslashreplace").decode() + "\n")


def table(rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Rows in aligned columns, two spaces apart; the columns in `right` are aligned to the right."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    right = set(right)
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def describe(error: BaseException) -> str:
    """An error in one line, in pyllm's style: click's own messages are sentences."""
    if isinstance(error, click.ClickException):
        text = error.format_message()
        if text[1:2].islower():
            text = text[0].lower() + text[1:].rstrip(".")
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    else:
        text = str(error) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
    if notes := getattr(error, "__notes__", ()):
        text += f" ({'; '.join(notes)})"
    return neutralize(" ".join(text.split()))


def refuse(error: click.UsageError) -> None:
    """Write on standard error how a command is used, and what is wrong with this call."""
    if error.ctx is not None:
        note(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n")
    note(f"error: {describe(error)}")


def where(llm: LLM) -> str:
    """The computing devices, and the number of layers on GPUs if not all are."""
    names, n, n_all = "+".join(llm.devices), llm.n_gpu_layers, llm.architecture.n_layers + 1
    return f"{names}, {n} of {n_all} layers on GPUs" if 0 < n < n_all else names


def cut_off(llm: LLM, result: Completion) -> str:
    """Why an answer was cut off; empty where it was not."""
    if result.finish_reason != "length":
        return ""
    if result.usage.n_prompt + result.usage.n_generated > llm.n_ctx:
        return f"cut off: the context of {llm.n_ctx} tokens is full; --ctx makes it larger"
    return "cut off: the limit of tokens was reached"


def speeds(usage: Usage) -> str:
    """Tokens and speeds of a generation, in one line."""
    cached = f" ({usage.n_cached} cached)" if usage.n_cached else ""
    rate = f", {usage.rate:.1f}/s" if usage.rate else ""
    if usage.n_drafted:
        rate += f", {usage.n_accepted} of {usage.n_drafted} guesses right"
    return (
        f"prompt: {usage.n_prompt} tokens{cached}, {usage.prompt_rate:.1f}/s; "
        f"answer: {usage.n_generated} tokens{rate}; first token after {usage.prompt_seconds:.2f} s"
    )
