"""Constant tables inside kernels, as addresses: only kernels that ask for a table carry it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyllm.jit.simd.core import I8, I64
from pyllm.quant.codebooks import codebook


def table(make: Callable[[], bytes]) -> Any:
    """A function () -> int64 for kernels to call: the address of `make()`'s bytes, aligned to 64, read-only.

    `make` is called when a kernel that uses the table is compiled.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        data = make()
        name = f"pyllm_table_{hashlib.sha256(data).hexdigest()[:16]}"
        known = b.module.globals.get(name)
        if known is None:
            value = ir.Constant(ir.ArrayType(I8, len(data)), bytearray(data))
            known = ir.GlobalVariable(b.module, value.type, name)
            known.initializer = value
            known.global_constant = True
            known.linkage = "linkonce_odr"  # numba compiles each function by itself; linked, there is one of them
            known.align = 64
        return b.ptrtoint(known, I64)

    @intrinsic
    def address(typingctx):
        return types.int64(), codegen

    return address


def codebook_table(format: str) -> Any:
    """The table of a format's codebook: a signed byte a value, group after group."""
    return table(lambda: codebook(format).tobytes())
