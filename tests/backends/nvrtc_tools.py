"""Compiling kernels for cards that are not here, in processes side by side: NVRTC works on one program at a time."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

from pyllm.backends.cuda import compiler
from pyllm.errors import BackendError

Variant = tuple[str, tuple[tuple[str, int | str], ...]]
"""A file of kernels and its defines."""


@cache
def nvrtc() -> compiler.Nvrtc:
    """The compiler. Raises ImportError without cupy, BackendError without NVRTC."""
    from cupy.cuda import nvrtc as library

    return compiler.Nvrtc(library)


def why_not() -> str | None:
    """Why nothing can be compiled here, None when it can."""
    try:
        nvrtc()
    except (ImportError, BackendError) as error:
        return str(error)
    return None


def spills(variant: Variant, arch: str) -> dict[str, int]:
    """By kernel: bytes that it spills. Raises BackendError where it does not compile."""
    source, defines = variant
    return spilled(nvrtc().compile(compiler.source(source), dict(defines), arch).log)


def spilled(log: str) -> dict[str, int]:
    """By kernel: bytes of spill stores, as ptxas reports them."""
    starts = [m.start() for m in re.finditer("Compiling entry function", log)] + [len(log)]
    out = {}
    for start, end in pairwise(starts):
        part = log[start:end]
        (name,) = re.findall(r"entry function '(\w+)'", part)
        out[name] = sum(map(int, re.findall(r"(\d+) bytes spill stores", part)))
    return out
