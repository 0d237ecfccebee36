"""Estimated memory of a step, beside weights and KV cache; mlx allocates while it computes."""

from __future__ import annotations

from collections.abc import Mapping

from pyllm.backends.mlx import metal
from pyllm.backends.mlx.attention import is_plain
from pyllm.backends.mlx.matrices import bytes_decoded
from pyllm.backends.mlx.packing import Plan
from pyllm.backends.mlx.recurrent import CHUNK, CHUNK_BY_ROW
from pyllm.backends.plan.graph import last_uses
from pyllm.config import ExecutionOptions
from pyllm.program import Op, Program, Recurrent, inputs
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.delta import DeltaRule
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.linear_attention import LinearAttention
from pyllm.program.ops.ssm import SSMScan1, SSMScan2

_LEAST_HEAD, _MOST_HEAD = 64, 128
"""Head sizes, from and to, for which Metal computes attention of prompts without storing scores."""
_AT_ONCE = 12
"""Arrays of all pairs of a chunk's tokens that mlx holds at a time, about."""


def work_bytes(program: Program, plans: Mapping[str, Plan], options: ExecutionOptions, half: bool) -> int:
    """Largest bytes at a time in the largest step, op by op: live values, and an op's temporaries. `plans`: of the
    matrices, by name."""
    of_output_rows = program.of_output_rows()
    live: dict[int, int] = {}
    most = 0
    for op, spent in zip(program.ops, last_uses(program.ops), strict=True):
        n = options.max_rows if op.out.id in of_output_rows else options.max_tokens
        live[op.out.id] = 4 * n * op.out.width
        most = max(most, sum(live.values()) + _within(op, n, plans, options, half))
        for read in spent - {op.out.id}:
            live.pop(read, None)
    return most


def _within(op: Op, n: int, plans: Mapping[str, Plan], options: ExecutionOptions, half: bool) -> int:
    """Bytes of the temporaries of an op of `n` rows."""
    if isinstance(op, Attention):
        return _of_attention(op, n, options, half)
    if isinstance(op, Recurrent):
        return _of_recurrence(op, n, options)
    if isinstance(op, MixtureOfExperts):
        decoded = max(bytes_decoded(plans[name], half, n) for name in (*op.readers, op.down))
        return 4 * n * op.n_used * (3 * op.n_ff + op.x.width) + decoded
    return bytes_decoded(plans[op.weight], half, n) if isinstance(op, Linear) else 0


def _of_attention(op: Attention, n: int, options: ExecutionOptions, half: bool) -> int:
    """Bytes of keys and values in the operands' type; without a fused kernel also of scores, masks, and keys and values
    repeated for each query head."""
    n_keys, columns = options.n_pages * options.page_size, op.head_dim + op.v_head_dim
    if op.window:
        n_keys = min(n_keys, op.window + n + options.page_size)
    converted = 0 if half or options.kv_dtype == "f32" else 4 * n_keys * op.n_kv_heads * columns
    if metal.available() and _LEAST_HEAD <= op.head_dim <= _MOST_HEAD and not is_plain(op):
        return converted
    size = 2 if half and not is_plain(op) else 4
    scores = (1 + is_plain(op)) * n * n_keys * op.n_heads  # before and after the cap or the slopes
    return converted + size * (scores + n * n_keys + n_keys * op.n_heads * columns)


def _of_recurrence(op: Recurrent, n: int, options: ExecutionOptions) -> int:
    """Bytes of the op's operands, made anew, and of a chunk of each sequence."""
    seqs, columns = min(options.max_seqs, n), sum(value.width for value in inputs(op))
    few, many = (min(size, -(-n // seqs)) for size in (CHUNK_BY_ROW, CHUNK))
    if isinstance(op, SSMScan1):
        numbers = few * 2 * op.state_dim * op.x.width
    elif isinstance(op, SSMScan2):
        numbers = many * many * op.n_heads
        columns += 2 * op.n_heads * op.state_dim  # of groups, repeated
    elif isinstance(op, DeltaRule):
        numbers = few * few * op.decay.width if op.decays_by_row else many * many * op.n_heads
    elif isinstance(op, LinearAttention):
        numbers = few * few * op.decay.width if op.decay is not None else many * many * op.n_heads
    else:
        numbers = 0
    return 4 * (n * columns + _AT_ONCE * seqs * numbers)
