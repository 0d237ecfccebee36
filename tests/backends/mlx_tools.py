"""Executables of mlx, as on a GPU or not, compiled or not."""

from __future__ import annotations

import shutil

import oracle
import pytest

from pyllm.backends.mlx import metal
from pyllm.backends.mlx.executable import MLXExecutable
from pyllm.backends.mlx.lowering import Lowering
from pyllm.config import ExecutionOptions
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program

needs_compiler = pytest.mark.skipif(
    not metal.available() and not shutil.which("g++"),
    reason="mlx's CPU build compiles steps with g++, which is not here",
)


def executable(
    model: oracle.Model, tensors: dict[str, TensorInfo], options: ExecutionOptions = oracle.OPTIONS, *,
    half: bool = False, compiled: bool = False, program: Program | None = None,
) -> MLXExecutable:  # fmt: skip
    return MLXExecutable(Lowering(program or model.program, tensors, options, half), compiled)


def traced(*_: object) -> None:
    """In place of `mx.eval`: a step was traced, and is not computed."""
    raise RuntimeError("traced")
