"""The command line. Each command is a file here that has `command`, imported when it is called or listed.

An error is one line on standard error; exit codes: 1 failure, 2 usage, 130 Ctrl-C, 141 the reader of the output has
gone, 143 ended by another process.
"""

from __future__ import annotations

import contextlib
import pkgutil
import signal
import sys
import warnings
from functools import cache
from importlib import import_module
from typing import Any

import click

from pyllm import env
from pyllm.cli import _command, _streams
from pyllm.errors import PyllmError, PyllmWarning

_usual_format = warnings.formatwarning


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from pyllm import __version__

        click.echo(f"pyllm {__version__}")
        ctx.exit()


@cache
def _names() -> tuple[str, ...]:
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


class _Commands(click.Group):
    """Commands found by file name; names that begin with an underscore are not commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_names()]  # `list` is a command here

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if not cmd_name.isidentifier() or cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _streams.writing():  # --help, --version
            return super().make_context(*args, **kwargs)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise click.UsageError(error.message.rstrip(".") + hint, ctx) from None


@click.group(
    "pyllm",
    cls=_Commands,
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_show_version,
            help="Show the version.",
        ),
        _command.debug_option(),
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
def group() -> None:
    """Run quantized language models on your own machine.

    MODEL is a GGUF file, a name that `pyllm list` shows (fetched when first used), or hf.co/user/repo[:quant].

    Settings may come from the environment, too: PYLLM_CTX=8192 is --ctx 8192, PYLLM_MODEL is -m, and so on.
    """


def _leave_in_order() -> None:
    """Make termination signals clean up as Ctrl-C does; signals ignored by the caller (nohup) stay ignored."""

    def leave(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, leave)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format pyllm's warnings in one line, like errors."""
    if issubclass(category, PyllmWarning):
        return f"warning: {message}\n"
    return _usual_format(message, category, filename, lineno, line)


def main(argv: list[str] | None = None) -> None:
    """Entry point: run a command and leave with its exit code."""
    warnings.formatwarning = _format_warning
    _leave_in_order()
    _streams.prepare()
    if env.completes_for_shell():
        from pyllm.cli import _completion

        _completion.prepare()
    code = 1
    try:
        code = _run(argv, state={})
    except _streams.ReaderLeft:
        code = 141
    finally:
        if not _streams.settle():
            code = code or 1
    sys.exit(code)


def _run(argv: list[str] | None, state: dict[str, bool]) -> int:
    try:
        result: Any = group.main(argv, prog_name="pyllm", standalone_mode=False, obj=state)
        return result if isinstance(result, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.UsageError as error:
        from pyllm.cli._output import refuse

        refuse(error)
        return error.exit_code
    except (click.ClickException, PyllmError, OSError, MemoryError) as error:
        if state.get(_command.DEBUG):
            raise
        from pyllm.cli._output import describe

        _streams.note(f"error: {describe(error)}")
        return 1
