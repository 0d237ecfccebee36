"""Features of all commands: --debug, llama.cpp's option names, an environment variable for each setting."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from pyllm.cli import _streams
from pyllm.cli._llama_cpp import ALIASES, DIFFERENT
from pyllm.cli._types import LinesType
from pyllm.errors import PyllmError

DEBUG = "pyllm.debug"
_OF_ONE_CALL = {
    "--allow-requantize", "--base", "--cache-type-v", "--calibrate", "--dry-run", "--file", "--from", "--hf-repo",
    "--in-place", "--json", "--kl-divergence", "--kl-divergence-base", "--list", "--lora-scaled", "--merge",
    "--modelfile", "--name", "--out", "--overwrite", "--preset", "--prompt",
    "--prompt-cache", "--prompt-cache-ro", "--set", "--show-statistics", "--unset",
}  # fmt: skip
"""Options without an environment variable: those of a single call, which name inputs or outputs, or allow replacing a
file."""
_FILE_OUTPUT = "OUT"


class Lines(LinesType, click.types.StringParamType):
    """A text; an environment variable holds several, one per line."""


class Command(click.Command):
    """A command of pyllm."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The group's setting applies only to commands called through it, and click keeps the first one.
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])
        self.params.append(debug_option())
        for param in self.params:
            if isinstance(param, click.Option):
                param.envvar = variable(param)
                if param.multiple and type(param.type) is click.types.StringParamType:
                    param.type = Lines()

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _streams.writing():  # --help
            return super().make_context(*args, **kwargs)

    def make_parser(self, ctx: click.Context) -> Any:
        """The parser, with aliases of options."""
        parser = super().make_parser(ctx)
        for param in self.get_params(ctx):
            names = [name for own in param.opts for name in ALIASES.get(own, ()) if name not in param.opts]
            if names and isinstance(param, click.Option):
                alias = copy.copy(param)
                alias.opts, alias.secondary_opts = names, []
                alias.add_to_parser(parser, ctx)
        return parser

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options, and hidden ones for llama.cpp's options that pyllm lacks, which say what to do instead.

        Those have one dash and several letters: click would read `-fa` as `-f a`.
        """
        params = super().get_params(ctx)
        taken = {name for param in params for own in param.opts for name in (own, *ALIASES.get(own, ()))}
        foreign = [name for name in DIFFERENT if name not in taken and name[1] != "-" and len(name) > 2]
        return [*params, *(_Foreign(name) for name in foreign)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if reason := DIFFERENT.get(error.option_name):
                raise click.UsageError(f"no such option '{error.option_name}'; {reason}", ctx) from None
            raise
        except click.BadParameter as error:
            param = error.param
            if param is None or ctx.get_parameter_source(param.name or "") is not ParameterSource.ENVIRONMENT:
                raise
            reason = "it must be 1 or 0" if isinstance(param, click.Option) and param.is_flag else error.message
            raise click.UsageError(f"environment variable {param.envvar}: {reason}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # Standard output raises ReaderLeft instead; click would exit silently.
            raise click.ClickException(f"a process or a connection ended early: {error}") from error
        except (PyllmError, click.ClickException) as error:
            if set_there := _from_environment(ctx):
                error.add_note(f"set in the environment: {', '.join(set_there)}")
            raise


def command(name: str, **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Decorator: the function as a command of pyllm."""
    return click.command(name, cls=Command, **settings)


def variable(option: click.Option) -> str | None:
    """The environment variable that sets an option: PYLLM_ and its long name; None where there is none."""
    long = next((name for name in option.opts if name.startswith("--")), "")
    is_of_one_call = not _OF_ONE_CALL.isdisjoint(option.opts) or option.metavar == _FILE_OUTPUT
    if not long or is_of_one_call or ("--lora" in option.opts and option.is_flag):
        return None
    return "PYLLM_" + long.removeprefix("--").replace("-", "_").upper()


def debug_option() -> click.Option:
    """--debug, of a command or of the program."""
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_debug,
        help="Show where errors arise.",
    )


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj[DEBUG] = True


def _from_environment(ctx: click.Context) -> list[str]:
    """Environment variables that set an option of this call."""
    return [
        str(param.envvar)
        for param in ctx.command.params
        if param.name and ctx.get_parameter_source(param.name) is ParameterSource.ENVIRONMENT
    ]


class _Foreign(click.Option):
    """An option that pyllm lacks; says what to do instead."""

    def __init__(self, name: str) -> None:
        super().__init__(
            [name, f"foreign_{name.strip('-').replace('-', '_')}"],
            is_flag=True,
            hidden=True,
            expose_value=False,
            is_eager=True,
            callback=self._refuse,
        )

    def _refuse(self, ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            name = self.opts[0]
            raise click.UsageError(f"no such option '{name}'; {DIFFERENT[name]}", ctx)
