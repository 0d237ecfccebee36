"""The command line. Each command is a file here that has `command`, imported when it is called or listed.

What went wrong is one line on standard error, and the exit code tells the kind: 1 failure, 2 usage, 130 Ctrl-C, 143
ended by another process.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import signal
import sys
from importlib import import_module
from typing import Any

import click

from pyllm.errors import PyllmError

_DEBUG = "pyllm.debug"


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj[_DEBUG] = True


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_debug,
        help="Show where errors arise.",
    )


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from pyllm import __version__

        click.echo(f"pyllm {__version__}")
        ctx.exit()


class _Commands(click.Group):
    """Commands found by file name; names that begin with an underscore are not commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if not cmd_name.isidentifier() or cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        if not any(p.name == "debug" for p in command.params):
            command.params.append(_debug_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise click.UsageError(error.message + hint, ctx) from None


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
            help="Show the version and leave.",
        ),
        _debug_option(),
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
def group() -> None:
    """Run quantized language models on your own machine.

    MODEL is a GGUF file, a name that `pyllm list` shows (fetched when first used), or hf.co/user/repo[:quant].
    """


def _leave_in_order() -> None:
    """Have a process that is asked to end clean up, as after Ctrl-C; what the caller ignores (nohup) stays ignored."""

    def leave(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, leave)


def main(argv: list[str] | None = None) -> None:
    """Entry point: run a command and leave with its exit code."""
    _leave_in_order()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # What the terminal's encoding lacks must not end an answer; files get UTF-8 everywhere.
            stream.reconfigure(errors="replace", **({} if stream.isatty() else {"encoding": "utf-8"}))
    state: dict[str, bool] = {}
    try:
        code = _run(argv, state)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone: nothing to say, and the flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def _run(argv: list[str] | None, state: dict[str, bool]) -> int:
    try:
        result: Any = group.main(argv, prog_name="pyllm", standalone_mode=False, obj=state)
        return result if isinstance(result, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        raise
    except (click.ClickException, PyllmError, OSError, MemoryError) as error:
        if state.get(_DEBUG):
            raise
        from pyllm.cli._output import describe

        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
