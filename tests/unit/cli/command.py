"""What the tests of the command line call: a command, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]
"""run("show", "model.gguf", stdin=b"") runs a command in this process."""
