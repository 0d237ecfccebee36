"""What plans ask of cards that are not here: shared memory of a block, and the size of grids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from oracle import OPTIONS, Shape, transformer

from pyllm import archs
from pyllm.backends.cuda.launch import Facts, StepShape
from pyllm.backends.cuda.lowering import Lowering
from pyllm.bench.presets import open_preset
from pyllm.config import ExecutionOptions
from pyllm.program import Program
from pyllm.quant import formats
from pyllm.testing import conformance
from pyllm.testing.running import with_slots

CARDS = {"sm_75": Facts(40, 64 << 10), "sm_86": Facts(82, 99 << 10), "sm_80": Facts(108, 163 << 10)}
STATIC = {"attention_prompt.cu": 0, "experts.cu": 0, "matmul.cu": 4 << 10}
"""Bytes of static shared memory, at most, of kernels that have dynamic shared memory as well."""
CONTEXT = 131072
SERVING = ExecutionOptions(
    n_pages=CONTEXT // 32, page_size=32, max_tokens=2048, max_seqs=64, max_rows=64, kv_dtype="f16"
)
SHAPES = [
    StepShape(1, 1, 1, 1, CONTEXT, 1),
    StepShape(64, 64, 64, 64, CONTEXT, 1),
    StepShape(2048, 1, 1, 0, CONTEXT, 2048),
    StepShape(2048, 64, 64, 0, CONTEXT, 512),
    StepShape(16, 64, 64, 0, 256, 8),
]


@cache
def programs() -> list[tuple[Program, Any, ExecutionOptions]]:
    return list(_programs())


def _programs() -> Iterator[tuple[Program, Any, ExecutionOptions]]:
    for text in ("llama3-70b:Q4_K_M", "qwen3-30b-a3b:Q6_K"):
        preset = open_preset(text, with_weights=False)
        name = preset.metadata["general.architecture"]
        program = archs.load({**preset.metadata, f"{name}.block_count": 1}, preset.tensors).program
        for kv in ("f16", "f32", "q8_0"):
            yield program, preset.tensors, replace(SERVING, kv_dtype=kv)
    for shape in (Shape(n_layers=1, n_embd=512), Shape(n_layers=1, n_embd=512, n_experts=4)):
        model = transformer(shape)
        for fmt in formats.names():
            yield model.program, model.tensors(fmt), replace(OPTIONS, max_tokens=2048)
    for shape in conformance.MODELS.values():
        model = transformer(shape)
        for kv in ("f16", "q8_0"):
            yield model.program, model.tensors(), replace(with_slots(model, OPTIONS), max_tokens=2048, kv_dtype=kv)


@pytest.mark.parametrize("card", CARDS)
def test_plans_are_within_a_cards_limits(card: str) -> None:
    facts = CARDS[card]
    for program, tensors, options in programs():
        for planned in Lowering(program, tensors, options, facts).work.planned:
            launch = planned.launch
            if launch.shared:
                assert launch.shared + STATIC[launch.source] <= facts.max_shared, launch.label
            assert 32 <= launch.block <= 1024
            for x, y, z in (launch.grid(s) for s in SHAPES if launch.when(s)):
                assert 0 < x < 1 << 31, launch.label
                assert 0 < y < 1 << 16, launch.label
                assert 0 < z < 1 << 16, launch.label
