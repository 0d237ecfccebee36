"""Texts that a command reads: arguments, or lines of a file, each as it is or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from pyllm.cli import _options


def texts_of(words: Sequence[str], file: str | None, field: str = "text") -> list[str]:
    """The texts: `words`, else the lines of a file, or of standard input, without empty ones.

    A line that is a JSON text or object counts as that: an object's text is in `field`. Raises UsageError.
    """
    if words:
        if file is not None:
            raise click.UsageError("give the texts as arguments or with -f, not both")
        return list(words)
    if file is None and sys.stdin.isatty():
        raise click.UsageError("there are no texts; give them as arguments, with -f, or on standard input, one a line")
    lines = _options.read_text(file or "-").splitlines()
    found = [_text(line, number, field) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise click.UsageError("there are no texts; each line is one")
    return found


def _text(line: str, number: int, field: str) -> str:
    if line.lstrip()[0] not in '"{':
        return line
    try:
        value: Any = json.loads(line)
    except ValueError:
        return line
    text = value.get(field) if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise click.UsageError(f"line {number} is JSON without a text in {field!r}")
    return text
