"""Single CPU kernels (no matrix products, no attention) against the reference's plain functions and gguf's decoder."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
from cpu_tools import Memory, call, padded, step_block
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from pyllm.backends.cpu.arguments.elementwise import Elementwise, Gated, Quantize
from pyllm.backends.cpu.arguments.embed import Embed
from pyllm.backends.cpu.arguments.experts import Combine, Gather, Route, Sort
from pyllm.backends.cpu.arguments.norm import Norm
from pyllm.backends.cpu.table import FIRST_WIDE
from pyllm.backends.reference.functions import soft_cap
from pyllm.backends.reference.ops.experts import route as reference_route
from pyllm.backends.reference.ops.gate import gated_activation
from pyllm.backends.reference.ops.norm import rms_norm
from pyllm.program.ops.gate import ACTIVATIONS, LIMITED

FORMATS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def blocks(format: str, rows: int, columns: int) -> NDArray[np.uint8]:
    """Random GGUF blocks; bytes at random hit every bit field, and some of them are no numbers."""
    size, n_bytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[format]]
    return np.random.default_rng(1).integers(0, 256, (rows, columns // size * n_bytes), dtype=np.uint8)


def read_records(records: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """The numbers that 8-bit activation records stand for; their sums are checked on the way."""
    groups = columns // 32
    q = records[:, :columns].view(np.int8).reshape(len(records), groups, 32)
    scale = np.ascontiguousarray(records[:, columns : columns + 4 * groups]).view(np.float32)
    total = np.ascontiguousarray(records[:, columns + 4 * groups : columns + 8 * groups]).view(np.float32)
    halves = np.ascontiguousarray(records[:, columns + 8 * groups : columns + 16 * groups]).view(np.int32)
    np.testing.assert_array_equal(halves.reshape(len(records), -1), q.reshape(len(q), -1, 16).sum(axis=-1))
    np.testing.assert_allclose(total, scale * q.sum(axis=-1), rtol=1e-6)
    return (q * scale[..., None]).reshape(len(records), columns).astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
def test_embed_decodes_as_gguf_does(format: str) -> None:
    table = normal(7, 512).view(np.uint8) if format == "F32" else blocks(format, 7, 512)
    tokens = np.array([3, 0, 6, 6, 1], np.int32)
    with np.errstate(all="ignore"):
        want = gguf.dequantize(table, GGMLQuantizationType[format])[tokens].astype(np.float32)
    y = padded(np.zeros((5, 512), np.float32))
    args = Embed(table=Memory(table), y=Memory(y), columns=512, scale=1.0)
    call("embed", "embed", {"format": format}, step_block(5, tokens=tokens), args)
    np.testing.assert_array_equal(y, want)
    if format == "Q4_K":
        call("embed", "embed", {"format": format}, step_block(5, tokens=tokens), replace(args, scale=3.5))
        np.testing.assert_array_equal(y, want * np.float32(3.5))


def norm(x, weight, eps, group, *, add=None, rows=None, records=False, keep_sum=False):  # type: ignore[no-untyped-def]
    n, width = (len(rows) if rows else len(x)), x.shape[1]
    step = step_block(len(x), rows)
    y, h = padded(np.zeros((n, width), np.float32)), padded(np.zeros((n, width), np.float32))
    record = np.zeros((n, 2 * width), np.uint8) if records else None
    args = Norm(
        x=Memory(padded(x)), b=None if add is None else Memory(padded(add)), h=Memory(h) if keep_sum else None,
        y=None if records else Memory(y), records=Memory(record) if records else None,
        weight=None if weight is None else Memory(padded(weight[None], 0.0)),
        weight_step=group if weight is not None and len(weight) == width != group else 0, eps=eps, group=group,
        n_groups=width // group, rows=Memory(step[2:] if rows else step), selects_rows=1 if rows else 0,
        scratch=Memory(np.zeros((2, 4096), np.uint8)), wide_from=Memory(step[FIRST_WIDE:]),
    )  # fmt: skip
    call("norm", "norm", {"centred": 0}, step, args)
    out = read_records(record, width) if records else y[:, :width]
    return (out, h[:, :width]) if keep_sum else out


@pytest.mark.parametrize(("width", "group"), [(64, 64), (576, 576), (40, 40), (7, 7), (96, 24), (128, 32)])
@pytest.mark.parametrize("weight", ["none", "group", "width"])
def test_rms_norm(width: int, group: int, weight: str) -> None:
    x = normal(9, width)
    w = None if weight == "none" else normal(group if weight == "group" else width, seed=1)
    np.testing.assert_allclose(norm(x, w, 1e-5, group), rms_norm(x, w, 1e-5, group), rtol=2e-5, atol=1e-6)


def test_rms_norm_of_a_sum_of_picked_rows_as_records() -> None:
    x, b, w, rows = normal(9, 96), normal(9, 96, seed=1), normal(96, seed=2), [1, 2, 8]
    want = rms_norm((x + b)[rows], w, 1e-6, 96)
    got, total = norm(x, w, 1e-6, 96, add=b, rows=rows, keep_sum=True)
    np.testing.assert_array_equal(total, (x + b)[rows])
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    recorded = norm(x, w, 1e-6, 96, add=b, rows=rows, records=True)
    steps = np.repeat(np.abs(want).reshape(3, 3, 32).max(axis=-1) / 127, 32, axis=1)
    assert (np.abs(recorded - want) <= 0.501 * steps).all()


@pytest.mark.parametrize("kind", ["add", "scale", "softcap", "copy"])
def test_elementwise(kind: str) -> None:
    x, b = normal(5, 5003), normal(5, 5003, seed=1)
    want = {"add": x + b, "scale": x * np.float32(2.5), "softcap": soft_cap(x, 2.5), "copy": x}[kind]
    step, xb, bb, y = step_block(5), padded(x), padded(b), padded(0 * x)
    args = Elementwise(x=Memory(xb), b=Memory(bb), y=Memory(y), factor=2.5, columns=5003, rows=Memory(step))
    call("elementwise", "elementwise", {"kind": kind}, step, args)
    np.testing.assert_allclose(y[:, :5003], want, rtol=1e-6 if kind != "softcap" else 1e-5, atol=1e-6)


def test_copy_picks_rows() -> None:
    x, rows = normal(6, 48), [0, 4, 5]
    step, xb, y = step_block(6, rows), padded(x), padded(np.zeros((3, 48), np.float32))
    args = Elementwise(x=Memory(xb), b=Memory(xb), y=Memory(y), columns=48, rows=Memory(step[2:]), selects_rows=1)
    call("elementwise", "elementwise", {"kind": "copy"}, step, args)
    np.testing.assert_array_equal(y[:, :48], x[rows])


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gated_activation(act: str) -> None:
    gate, up = 4 * normal(6, 96), 4 * normal(6, 96, seed=1)
    limit = 3.0 if act in LIMITED else 0.0
    want = gated_activation(gate, up, act, limit)
    step, g, u, y = step_block(6), padded(gate), padded(up), padded(0 * gate)
    records, scratch = np.zeros((6, 192), np.uint8), np.zeros((2, 4096), np.uint8)
    args = Gated(
        gate=Memory(g), up=Memory(u), y=Memory(y), columns=96, rows=Memory(step), scratch=Memory(scratch),
        wide_from=Memory(step[FIRST_WIDE:]), limit=limit,
    )  # fmt: skip
    call("elementwise", "gated", {"act": act}, step, args)
    np.testing.assert_allclose(y[:, :96], want, rtol=1e-5, atol=4e-6)
    call("elementwise", "gated", {"act": act}, step, replace(args, y=None, records=Memory(records)))
    steps = np.repeat(np.abs(want).reshape(6, 3, 32).max(axis=-1) / 127, 32, axis=1)
    assert (np.abs(read_records(records, 96) - want) <= 0.501 * steps + 1e-6).all()


def test_records_of_picked_rows_and_wide_ones() -> None:
    x, rows = normal(7, 96), [0, 2, 3, 6]
    step, xb, records = step_block(7, rows, first_wide=2), padded(x), np.zeros((4, 192), np.uint8)
    args = Quantize(
        x=Memory(xb), records=Memory(records), columns=96, rows=Memory(step[2:]), selects_rows=1,
        wide_from=Memory(step[FIRST_WIDE:]),
    )  # fmt: skip
    call("elementwise", "quantize", {}, step, args)
    steps = np.repeat(np.abs(x[rows[:2]]).reshape(2, 3, 32).max(axis=-1) / 127, 32, axis=1)
    assert (np.abs(read_records(records[:2], 96) - x[rows[:2]]) <= 0.501 * steps).all()
    wide = (records[2:].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(wide, x[rows[2:]], rtol=2**-8)


@pytest.mark.parametrize("gating", ["softmax", "sigmoid", "softmax_chosen"])
@pytest.mark.parametrize("biased", [False, True])
def test_experts_are_chosen_sorted_gathered_and_summed(gating: str, biased: bool) -> None:
    n, n_experts, n_used, width = 11, 10, 3, 48
    logits, bias = normal(n, n_experts), normal(n_experts, seed=3) if biased else None
    logits[4] = logits[4, 0]  # equal scores: the lower number wins
    x, residual = normal(n, width, seed=1), normal(n, width, seed=2)
    step, lb, xb, rb, y = step_block(n), padded(logits), padded(x), padded(residual), padded(0 * x)
    chosen, weights = np.zeros((n, n_used), np.int32), np.zeros((n, n_used), np.float32)
    ranges = np.zeros((n_experts + 1, 2), np.int64)
    slot_of, row_of = np.zeros(n * n_used, np.int32), np.zeros(n * n_used, np.int32)
    rows = padded(np.zeros((n * n_used, width), np.float32))
    route = Route(
        logits=Memory(lb), n_experts=n_experts, n_used=n_used, chosen=Memory(chosen), weights=Memory(weights),
        normalize=int(biased), factor=1.5, bias=None if bias is None else Memory(bias), rows=Memory(step),
        scratch=Memory(np.zeros((2, 4096), np.uint8)),
    )  # fmt: skip
    call("experts", "route", {"gating": gating}, step, route)
    want, want_weights = reference_route(
        logits, n_used, gating=gating, normalize=biased, weight_scale=1.5, choice_bias=bias
    )
    np.testing.assert_array_equal(chosen, want)
    np.testing.assert_allclose(weights, want_weights, rtol=1e-5, atol=1e-6)

    sort = Sort(
        chosen=Memory(chosen), n_used=n_used, n_experts=n_experts, ranges=Memory(ranges), slot_of=Memory(slot_of),
        row_of=Memory(row_of), rows=Memory(step),
    )  # fmt: skip
    call("experts", "sort", {}, step, sort)
    np.testing.assert_array_equal(slot_of, np.argsort(chosen.ravel(), kind="stable"))
    np.testing.assert_array_equal(ranges[:-1, 1], np.bincount(chosen.ravel(), minlength=n_experts))
    np.testing.assert_array_equal(ranges[:-1, 0], np.cumsum(ranges[:-1, 1]) - ranges[:-1, 1])
    assert ranges[-1].tolist() == [0, n * n_used]

    gather = Gather(x=Memory(xb), y=Memory(rows), n_used=n_used, slot_of=Memory(slot_of), rows=Memory(ranges[-1]))
    call("experts", "gather", {}, step, gather)
    np.testing.assert_array_equal(rows[:, :width], x[slot_of // n_used])
    rows[:, :width] *= chosen.ravel()[slot_of][:, None] + 1
    combine = Combine(
        x=Memory(rows), y=Memory(y), residual=Memory(rb), weights=Memory(weights), n_used=n_used,
        row_of=Memory(row_of), columns=width, rows=Memory(step),
    )  # fmt: skip
    call("experts", "combine", {}, step, combine)
    total = residual + (x[:, None] * (chosen[..., None] + 1) * weights[..., None]).sum(axis=1)
    np.testing.assert_allclose(y[:, :width], total, rtol=1e-4, atol=1e-5)
