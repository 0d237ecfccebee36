"""Small models split over devices, and comparison of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyllm import backends
from pyllm.backends import placement, split
from pyllm.backends.base import DeviceInfo, Executable
from pyllm.config import ExecutionOptions, PlacementOptions
from pyllm.gguf.tensor import TensorInfo
from pyllm.testing import running
from pyllm.testing.models import Model, Shape
from pyllm.testing.running import OPTIONS, Step, nmse, with_slots

SMALL = Shape(n_layers=4, n_embd=64, n_heads=2, n_kv_heads=1, head_dim=32, n_rot=32, n_ff=96, n_vocab=80)
SHAPES = {
    "qwen": replace(SMALL, bias=True, tied=True, n_heads=4, n_kv_heads=2),
    "gemma": replace(SMALL, qk_norm=True, window=9, softcap=20.0, logit_cap=10.0, act="gelu"),
    "llama": replace(SMALL, interleaved=True, n_rot=16),
    "oss": replace(SMALL, sinks=True, window=6, bias=True, n_experts=4, act="swiglu_oai"),
    "experts": replace(SMALL, n_experts=5, n_used=3),
}
EXACT = 1e-7
"""Limit of NMSE with float weights, as for whole models."""
QUANTIZED = 4e-4
"""Limit with other weights, against the cpu: both may quantize activations to 8 bits, differently, and random weights
amplify errors more than trained ones. (Here the cpu alone is 1e-4 from the reference.)"""


def device(backend: str) -> DeviceInfo:
    """The first device of a backend."""
    return backends.get(backend).devices()[0]


def compiled(
    model: Model,
    tensors: Mapping[str, TensorInfo],
    devices: Sequence[DeviceInfo],
    options: ExecutionOptions = OPTIONS,
    **choice: Any,
) -> Executable:
    """Compile a model with the given layers on the devices after the first, with slots where it has recurrent
    states."""
    names = tuple(d.name for d in devices[1:])
    wanted = PlacementOptions(devices=names, **choice)
    return split.compile_placed(model.program, tensors, wanted, devices, with_slots(model, options))[0]


def placed(
    model: Model, tensors: Mapping[str, TensorInfo], devices: Sequence[DeviceInfo], device_of_op: Sequence[str]
) -> Executable:
    """Compile a model with each op on its named device."""
    return split.compile(placement.cut(model.program, device_of_op), tensors, OPTIONS, devices)


def check(
    exe: Executable,
    model: Model,
    tensors: Mapping[str, TensorInfo],
    limit: float,
    alone: str = "reference",
    batches: Sequence[Sequence[Step]] | None = None,
    want: Any = "logits",
) -> None:
    """Check that it gives one backend's results, for each batch in turn; closes it."""
    batches = running.ragged_batches(80) if batches is None else batches
    whole = running.compiled(alone, model, tensors)
    try:
        for batch in batches:
            got, wanted = running.run(exe, batch, want), running.run(whole, batch, want)
            assert got.shape == wanted.shape
            assert not wanted.size or nmse(got, wanted) <= limit
    finally:
        exe.close()
        whole.close()
