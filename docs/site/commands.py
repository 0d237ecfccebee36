"""Writes docs/reference/commands.md, the reference of the command line, out of the commands themselves.

    python docs/site/commands.py

A test compares the page with what this would write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import click

from pyllm import cli
from pyllm.cli._llama_cpp import ALIASES, DIFFERENT

PAGE = Path(__file__).resolve().parents[1] / "reference" / "commands.md"

_HEAD = """\
# Commands

What `pyllm COMMAND --help` says, for all commands, and the environment variable of each setting. The
[guide](../command-line.md) explains how they go together.

This page is written by `python docs/site/commands.py`; change the commands, not the page.
"""

_LLAMA_CPP = """\
## llama.cpp's names

These mean the same as pyllm's option wherever that is:

{others}

These are not options of pyllm, and an error says what to do instead:

{missing}
"""


def page() -> str:
    """The whole page."""
    top = click.Context(cli.group, info_name="pyllm", **cli.group.context_settings)
    commands = [(name, cli.group.get_command(top, name)) for name in cli.group.list_commands(top)]
    listed = "\n".join(
        f"- [`{name}`](#pyllm-{name}): {_escaped(command.get_short_help_str(200))}"
        for name, command in commands
        if command
    )
    parts = [_HEAD, _section("pyllm", cli.group, top), f"Commands:\n\n{listed}\n"]
    for name, command in commands:
        if command is not None:
            context = click.Context(command, info_name=name, parent=top, **command.context_settings)
            parts.append(_section(f"pyllm {name}", command, context))
    parts.append(_llama_cpp())
    return "\n".join(parts)


def _section(title: str, command: click.Command, context: click.Context) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## {title}", f"```text\n{context.command_path} {usage}\n```", *_paragraphs(command.help or "")]
    if options := [line for p in command.get_params(context) if (line := _option(p, context))]:
        parts.append("\n".join(options))
    return "\n\n".join(parts) + "\n"


def _paragraphs(text: str) -> list[str]:
    """A command's description; what click is told to leave as it is becomes a code block."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.startswith("\b"):
            parts.append("```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```")
        elif paragraph:
            parts.append(_escaped(" ".join(paragraph.split())))
    return parts


def _option(param: click.Parameter, context: click.Context) -> str:
    """A line about an option; empty for arguments, which the description names, and for what is hidden."""
    record = param.get_help_record(context) if isinstance(param, click.Option) else None
    if record is None:
        return ""
    names, text = record
    variable = f" (`{param.envvar}`)" if param.envvar else ""
    return f"- `{names}`{variable}: {_escaped(' '.join(text.split()))}".rstrip(": ")


def _llama_cpp() -> str:
    """Names of options that llama.cpp's users type."""
    others = "\n".join(f"- `{own}`: {_code(names)}" for own, names in sorted(ALIASES.items()))
    names_of: dict[str, list[str]] = {}
    for name, text in DIFFERENT.items():
        names_of.setdefault(text, []).append(name)
    missing = "\n".join(f"- {_code(names)}: {_escaped(text)}" for text, names in names_of.items())
    return _LLAMA_CPP.format(others=others, missing=missing)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _escaped(text: str) -> str:
    """Text whose angle brackets are no HTML; what is in backticks stays."""
    pieces = text.split("`")
    pieces[::2] = [piece.replace("<", "&lt;").replace("*", "\\*") for piece in pieces[::2]]
    return "`".join(pieces)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
