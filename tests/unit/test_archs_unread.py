"""Tensors that a file may hold and the model does not use, as in llama.cpp, which its own random models show; and parts
of biases."""

from __future__ import annotations

import numpy as np
import pytest

from arch_models import ArchModel
from pyllm import archs
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program

UNREAD = [
    ("ernie4_5-moe", "blk.0.attn_output.bias", "blk.0.attn_output.weight"),
    ("ernie4_5-moe-moe", "blk.0.attn_output.bias", "blk.0.attn_output.weight"),
    ("falcon-h1", "blk.0.attn_output.bias", "blk.0.attn_output.weight"),
    ("mimo2-moe", "blk.0.attn_q.bias", "blk.0.attn_q.weight"),
    ("mimo2-moe", "blk.0.attn_v.bias", "blk.0.attn_v.weight"),
    ("plamo2", "blk.0.ssm_in.scale", ""),
    ("plamo2", "blk.0.ssm_out.scale", ""),
    ("minimax-01-moe", "blk.0.attn_qkv.scale", ""),
    ("minimax-01-moe", "blk.0.attn_output.scale", ""),
    ("qwen3next-moe", "blk.0.attn_qkv.scale", ""),
    ("qwen3next-moe", "blk.0.ssm_out.scale", ""),
]
"""Model, tensor, and the matrix with a number of it for each row; of a single number without one."""


def vector(name: str, values: np.ndarray) -> TensorInfo:
    return TensorInfo(name, values.shape, "F32", values.astype(np.float32).view(np.uint8))


def program_of(model: ArchModel, more: TensorInfo | None = None) -> tuple[Program, dict[str, TensorInfo]]:
    tensors = dict(model.tensors)
    if more is not None:
        tensors[more.name] = more
    architecture = archs.load(model.all_metadata, tensors, 64)
    return architecture.program, dict(architecture.tensors)


@pytest.mark.parametrize(("name", "tensor", "matrix"), UNREAD)
def test_what_is_not_used_changes_nothing(name: str, tensor: str, matrix: str) -> None:
    model = ArchModel.load(name)
    assert tensor not in model.tensors
    n = model.tensors[matrix].shape[0] if matrix else 1
    assert program_of(model, vector(tensor, np.full(n, 3.0)))[0] == program_of(model)[0]


def test_a_bias_of_queries_and_gates_goes_to_both() -> None:
    """The rows of attn_q are, for each head, a query and a gate; so are the numbers of its bias."""
    model = ArchModel.load("qwen35-dense")
    layer = next(name.split(".")[1] for name in model.tensors if "attn_q.weight" in name)
    name = f"blk.{layer}.attn_q.bias"
    bias = np.arange(model.tensors[f"blk.{layer}.attn_q.weight"].shape[0])
    program, tensors = program_of(model, vector(name, bias))
    parts = [tensors[weight].data.view(np.float32) for weight in program.weights() if weight.startswith(name)]
    n_heads = model.all_metadata["qwen35.attention.head_count"]
    queries, gates = (bias.reshape(n_heads, 2, -1)[:, i].ravel() for i in range(2))
    assert [part.tolist() for part in parts] == [queries.tolist(), gates.tolist()]
