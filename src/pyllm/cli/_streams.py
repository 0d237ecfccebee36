"""The standard streams of the process: always usable, with clear errors of writing."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import IO

import click

from pyllm import env

_NAMES = {0: "stdin", 1: "stdout", 2: "stderr"}


class ReaderLeft(Exception):
    """The reader of standard output has gone: the program ends silently."""


def prepare() -> None:
    """Make standard input, output and error usable.

    Services and windowed programs may start without some of them. The next opened file or socket would get the free
    descriptor, and output would go there. So missing streams become the null device.
    """
    env.open_missing_descriptors()
    for number, name in _NAMES.items():
        with contextlib.suppress(OSError, AttributeError):  # AttributeError: Windows before Python 3.12
            if not os.get_blocking(number):
                # Set by another program on the same terminal or pipe; writing would fail whenever that is slow.
                os.set_blocking(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, _opened(number))
    chosen = env.names_io_encoding()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Characters outside the terminal's encoding must not end an answer; files get UTF-8 unless told otherwise.
            is_free = not (chosen or stream.isatty())
            stream.reconfigure(errors="replace", **({"encoding": "utf-8"} if is_free else {}))


def _opened(number: int) -> IO[str]:
    mode = "r" if number == 0 else "w"
    try:
        return open(number, mode, encoding="utf-8", errors="replace", closefd=False)
    except OSError:
        return open(os.devnull, mode, encoding="utf-8")


def write(text: str) -> None:
    """Write to standard output at once. Raises ReaderLeft, or click.ClickException for a full disk and the like."""
    with writing():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Errors of writing to standard output, inside, become ReaderLeft or click.ClickException."""
    try:
        yield
    except OSError as error:
        # Windows reports EINVAL for a pipe without a reader.
        if error.errno == errno.EPIPE or (sys.platform == "win32" and error.errno == errno.EINVAL):
            raise ReaderLeft from None
        reason = error.strerror or str(error)
        raise click.ClickException(f"standard output cannot be written: {reason}") from error


def note(text: str) -> None:
    """A line on standard error; write errors are ignored."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def settle() -> bool:
    """Flush the streams, so that Python does not complain at exit; returns whether that succeeded.

    Unwritable output is dropped.
    """
    went_well = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            went_well = went_well and stream is sys.stderr
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
    return went_well
