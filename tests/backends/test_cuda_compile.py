"""Every kernel, with every set of defines that the backend's own plans ask for, compiles for the cards that there are.

No card is needed, only NVRTC. What is compiled is collected from plans: what a large model takes for a token and for a
prompt (for every card, and without spills), what other models of real shapes take, every op, every format; the latter
take turns among the cards.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nvrtc_tools
import pytest
from nvrtc_tools import Variant
from oracle import OPTIONS, Shape, one_op, transformer

from pyllm import archs
from pyllm.backends.cuda import compiler
from pyllm.backends.cuda.launch import Facts, StepShape
from pyllm.backends.cuda.lowering import Lowering
from pyllm.bench.presets import open_preset
from pyllm.config import ExecutionOptions
from pyllm.program import Program
from pyllm.quant import formats
from pyllm.testing import conformance
from pyllm.testing.ops import cases
from pyllm.testing.running import with_slots

Names = dict[Variant, set[str]]
"""The kernels that are wanted of each variant of a file."""

CARDS = {
    "sm_75": Facts(40, 64 << 10), "sm_80": Facts(108, 163 << 10),
    "sm_90": Facts(132, 227 << 10), "sm_120": Facts(170, 99 << 10),
}  # fmt: skip
HOT = "llama3-8b:Q4_K_M"
RECURRENT = (
    "conv-kernel_of_4", "delta-heads_of_128", "linear_attention-erasing", "linear_attention-heads_of_128",
    "shift-plain", "ssm-mamba1", "ssm-mamba2",
)  # fmt: skip
"""Cases of recurrent ops with states as large as models have them."""
MODELS = (HOT, "qwen3-30b-a3b:Q4_K_M", "llama3-1b:Q8_0", "smollm2-135m:Q4_0")
SERVING = ExecutionOptions(n_pages=512, page_size=32, max_tokens=512, max_seqs=64, max_rows=64, kv_dtype="f16")
TOKEN = StepShape(1, 1, 1, 1, 512, 1)
PROMPT = StepShape(512, 1, 1, 0, 512, 512)


class Recorder:
    """A launcher that does nothing but note which kernels it is asked for."""

    def __init__(self) -> None:
        self.names: Names = {}

    def kernels(self, source: str, defines: dict[str, int | str], names: Iterable[str]) -> list[None]:
        self.names.setdefault((source, tuple(sorted(defines.items()))), set()).update(names)
        return [None for _ in names]

    def allocate(self, n_bytes: int) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None


def wanted(
    program: Program,
    tensors: Any,
    options: ExecutionOptions,
    facts: Facts,
    steps: Iterable[StepShape] = (),
    packing: bool = True,
) -> Names:
    """What a program takes on a card: for steps of these shapes (none: of all), and for packing its weights."""
    recorder: Any = Recorder()
    plan = Lowering(program, tensors, options, facts)
    for planned in plan.work.planned:
        source, defines, name = planned.launch.key
        if not steps or any(planned.launch.when(s) for s in steps):
            recorder.kernels(source, dict(defines), [name])
    if packing:
        plan.weights.load(recorder, None)
    names: Names = recorder.names
    return names


def merge(parts: Iterator[Names]) -> Names:
    out: Names = {}
    for part in parts:
        for variant, names in part.items():
            out.setdefault(variant, set()).update(names)
    return out


@cache
def model(text: str) -> tuple[Program, Any]:
    """Two layers of a model of this shape, and its tensors without their values."""
    preset = open_preset(text, with_weights=False)
    metadata = {**preset.metadata, f"{preset.metadata['general.architecture']}.block_count": 2}
    return archs.load(metadata, preset.tensors).program, preset.tensors


def of_hot_steps(arch: str) -> Names:
    return wanted(*model(HOT), SERVING, CARDS[arch], (TOKEN, PROMPT), packing=False)


def of_states(arch: str) -> Names:
    """What recurrent ops take, without the products that make their inputs."""
    models = [one_op(cases()[name]) for name in RECURRENT]
    names = merge(
        wanted(m.program, m.tensors(), with_slots(m, OPTIONS), CARDS[arch], (TOKEN, PROMPT), packing=False)
        for m in models
    )
    return {variant: found for variant, found in names.items() if not variant[0].startswith("mat")}


@cache
def of_models() -> Names:
    options = [replace(SERVING, kv_dtype="f16"), replace(SERVING, kv_dtype="q8_0")]
    return merge(wanted(*model(text), o, CARDS["sm_80"]) for text in MODELS for o in options)


@cache
def of_everything_else() -> Names:
    """What every op of the test table takes, every kind of KV memory, and every format, dense and as experts, for a
    token and for a prompt."""
    facts = CARDS["sm_80"]

    def parts() -> Iterator[Names]:
        for record in cases().values():
            m = one_op(record)
            yield wanted(m.program, m.tensors(), with_slots(m, OPTIONS), facts)
        m = one_op(cases()["linear-plain"])  # of what no norm has made: it is quantized by itself
        yield from (wanted(m.program, m.tensors(fmt), OPTIONS, facts) for fmt in ("Q4_0", "F16"))
        for shape in conformance.MODELS.values():
            m = transformer(shape)
            for kv in ("f16", "f32", "q8_0"):
                yield wanted(m.program, m.tensors(), replace(with_slots(m, OPTIONS), kv_dtype=kv), facts)
        for m in (transformer(Shape(n_layers=1)), transformer(Shape(n_layers=1, n_experts=4))):
            for fmt in formats.names():
                yield wanted(m.program, m.tensors(fmt), OPTIONS, facts, (TOKEN, PROMPT))

    return {variant: names for variant, names in merge(parts()).items() if variant not in of_models()}


Compile = Callable[[Names, Callable[[int], str]], dict[tuple[str, ...], int]]


@pytest.fixture(scope="module")
def spills() -> Iterator[Compile]:
    """Compile variants, the i-th of them for the card that is asked for; bytes spilled by those that spill."""
    if (reason := nvrtc_tools.why_not()) is not None:
        pytest.skip(reason)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), mp_context=context) as pool:

        def compile(wanted: Names, card: Callable[[int], str]) -> dict[tuple[str, ...], int]:
            futures: list[tuple[Variant, str, Future[dict[str, int]]]] = []
            for i, variant in enumerate(sorted(wanted, key=repr)):
                futures.append((variant, card(i), pool.submit(nvrtc_tools.spills, variant, card(i))))
            out: dict[tuple[str, ...], int] = {}
            for variant, arch, future in futures:
                got = future.result()
                missing = wanted[variant] - got.keys()
                assert not missing, f"{variant[0]} has no {missing}"
                for name in wanted[variant]:
                    if got[name]:
                        out[variant[0], name, arch, str(dict(variant[1]))] = got[name]
            return out

        yield compile


@pytest.mark.parametrize("arch", CARDS)
def test_what_a_large_model_takes_does_not_spill(arch: str, spills: Compile) -> None:
    assert spills(of_hot_steps(arch), lambda i: arch) == {}


@pytest.mark.parametrize("arch", CARDS)
def test_recurrent_ops_do_not_spill(arch: str, spills: Compile) -> None:
    assert spills(of_states(arch), lambda i: arch) == {}


def test_what_real_models_take_compiles(spills: Compile) -> None:
    spilling = spills(of_models(), lambda i: list(CARDS)[i % len(CARDS)])
    assert max(spilling.values(), default=0) <= 128, spilling


def test_everything_else_compiles(spills: Compile) -> None:
    spills(of_everything_else(), lambda i: list(CARDS)[i % len(CARDS)])


def test_every_file_of_kernels_is_covered() -> None:
    """A file that no plan asks for is forgotten here, or not needed."""
    asked = {source for source, _ in (*of_models(), *of_everything_else())}
    assert asked == {path.name for path in compiler.KERNELS.glob("*.cu")}


@pytest.mark.parametrize("arch", CARDS)
def test_primitives_compile(arch: str, spills: Compile) -> None:
    source = str(Path(__file__).with_name("cuda_primitives.cu"))
    names = {"products", "matrices", "pipeline", "halves", "atomics"}
    assert spills({(source, ()): names}, lambda i: arch) == {}


def test_reading_what_ptxas_reports() -> None:
    log = (
        "ptxas info : Compiling entry function 'one' for 'sm_90'\nptxas . 8 bytes stack frame, 12 bytes spill stores, "
        "4 bytes spill loads\nptxas info : Compiling entry function 'two' for 'sm_90'\n 0 bytes spill stores"
    )
    assert nvrtc_tools.spilled(log) == {"one": 12, "two": 0}
