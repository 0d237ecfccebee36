"""Conformance checks of backends: ops, formats and small models, compared with the reference backend.

A check compares each sequence with the reference backend's result for it alone and uncut, however it is cut and
whatever shares its steps. For a backend with `exact_in_company`, the batch must not change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyllm import backends
from pyllm.backends.base import DeviceInfo, Executable
from pyllm.errors import BackendError
from pyllm.program import Op
from pyllm.quant import formats
from pyllm.testing import carrying, ops, pausing, splitting
from pyllm.testing.models import Model, Shape, mixed_tensors, one_op, transformer
from pyllm.testing.running import (
    OPTIONS,
    Step,
    assert_close,
    compiled,
    n_tokens,
    nmse,
    ragged_batches,
    random_tokens,
    run,
    run_all,
    run_both,
    with_slots,
)

F32 = NDArray[np.float32]
Check = Callable[[], None]

EXACT = 1e-7
"""Limit of NMSE of an op, or of a small model, with float32 weights and KV cache."""
LIMITS = {"F32": 1e-9, "F16": 1e-6, "BF16": 1e-5}
"""Limit of NMSE of one product, by the format of its weights."""
QUANTIZED = 2e-4
"""Limit of NMSE of one product with integer weights; quantized activations (8 bits) cost 1e-4."""

MODELS = {
    "plain": Shape(),
    "qwen": Shape(bias=True, tied=True, n_heads=6, n_kv_heads=2, n_embd=512),
    "gemma": Shape(qk_norm=True, window=9, softcap=20.0, logit_cap=10.0, act="gelu"),
    "llama": Shape(interleaved=True, n_rot=32),
    "oss": Shape(sinks=True, window=6, bias=True, n_experts=4, act="swiglu_oai"),
    "experts": Shape(n_experts=5, n_used=3),
    "headless": Shape(head=False),
    "recurrent": Shape(n_layers=3, recurrent=True),
}
"""Small models of the architecture of real ones."""

_KV_LIMITS = {"f16": 1e-5, "q8_0": 1e-3}
_LENGTHS = {"a": 37, "b": 21, "c": 9}
_PIECES = (33, 1, 3)
"""Lengths of the pieces of sequence a."""
_PAGES = ([13, 5, 1], [15, 3, 9], [7])
"""Pages of three sequences."""


@dataclass(frozen=True)
class Subject:
    """A backend under test. Error limits are multiplied by `tolerance`."""

    backend: str
    tolerance: float = 1.0

    def refuses_states_of(self, model: Model) -> bool:
        """Whether the model has recurrent states and the backend keeps none; then, check that it says so."""
        if not model.program.slots or backends.get(self.backend).keeps_recurrent_states:
            return False
        _refused(lambda: compiled(self.backend, model, model.tensors()), "a recurrent state")
        return True

    def close(self, got: F32, wanted: F32, limit: float, what: str = "") -> None:
        """Raise AssertionError unless NMSE is within the limit and everything is finite."""
        assert got.shape == wanted.shape, f"{what} has shape {got.shape}, not {wanted.shape}"
        assert np.isfinite(wanted).all(), f"{what}: the reference is not finite"
        assert np.isfinite(got).all(), f"{what} is not finite"
        error = nmse(got, wanted)
        assert error <= limit * self.tolerance, f"{what}: NMSE {error:.2e} > {limit * self.tolerance:.0e}"


def checks(backend: str, *, tolerance: float = 1.0, cross: bool = False) -> dict[str, Check]:
    """Checks of a backend, by name: each returns, or raises AssertionError.

    `cross`: all formats, which takes minutes. `tolerance` multiplies error limits, for a backend that computes in less
    than float32.
    """
    subject = Subject(backend, tolerance)
    return {name: partial(check, subject) for name, check in (_cross() if cross else _usual()).items()}


def _usual() -> dict[str, Callable[[Subject], None]]:
    found: dict[str, Callable[[Subject], None]] = {f"op-{name}": partial(_op, name) for name in ops.cases()}
    found |= {
        f"format-{name}-{fmt}": partial(_format, name, fmt)
        for name, case in ops.format_cases().items()
        for fmt in case.usual
    }
    found |= {f"model-{name}": partial(_model, name) for name in MODELS}
    found |= {f"kv-{dtype}": partial(_kv, dtype) for dtype in _KV_LIMITS}
    found |= {f"carried-pages-{dtype}": partial(_carried_pages, dtype) for dtype in ("f32", *_KV_LIMITS)}
    found |= {f"split-layers-{n}": partial(_split_layers, n) for n in (1, 3, "all")}
    found |= {f"split-anywhere-{seed}": partial(_split_anywhere, seed) for seed in range(2)}
    return found | {
        "model-mixed": _model_mixed,
        "split-headless": _split_headless,
        "split-carried-pages": _split_carried_pages,
        "carried-states": _carried_states,
        "no_rows": _no_rows,
        "shared_pages": _shared_pages,
        "unknown_op": _unknown_op,
        "missing_tensor": _missing_tensor,
        "idle_interrupt": _idle_interrupt,
        "paused_steps": _paused_steps,
        "memory": _memory,
        "importance": _importance,
        "replacement": _replacement,
    }


def _cross() -> dict[str, Callable[[Subject], None]]:
    found: dict[str, Callable[[Subject], None]] = {
        f"format-{name}-{fmt}": partial(_format, name, fmt)
        for name, case in ops.format_cases().items()
        for fmt in formats.names()
        if fmt not in case.usual
    }
    return found | {f"model-{fmt}": partial(_model_format, fmt) for fmt in formats.names()}


# --- ops


def _op(name: str, subject: Subject) -> None:
    """Check a case of an op: uncut, in pieces, and in a mixed batch; that a recurrent one is refused, where the backend
    keeps no states."""
    model = one_op(ops.cases()[name])
    if subject.refuses_states_of(model):
        return
    if model.program.whole:
        _op_of_whole_sequences(name, model, subject)
        return
    wanted = _alone(name)
    exe = compiled(subject.backend, model, model.tensors())
    try:
        whole = run(exe, [Step(_tokens("a"), 0, [9, 2, 11])])
        pieces = [run(exe, [step]) for step in _cut([0, 4, 6])]
        company = [run(exe, steps) for steps in _company([13, 5, 1], [15, 3], [7])]
    finally:
        exe.close()
    subject.close(whole, wanted["a"], EXACT, "the whole sequence")
    at = [0, *accumulate(_PIECES)]
    for i, (first, last) in enumerate(pairwise(at)):
        subject.close(pieces[i], wanted["a"][first:last], EXACT, f"piece {i}")
    # Rows of each batch are in the order of its sequences.
    batches = [
        [wanted["b"][16:17], wanted["a"][:33]],
        [wanted["a"][33:34], wanted["b"][17:18], wanted["c"][:1]],
        [wanted["c"][[1, 4, 8]], wanted["a"][34:37], wanted["b"][18:21]],
    ]
    for i, (got, rows) in enumerate(zip(company, batches, strict=True)):
        subject.close(got, np.concatenate(rows), EXACT, f"batch {i} in company")
    if backends.get(subject.backend).exact_in_company:
        for i, first in enumerate((1, 0, 3)):
            np.testing.assert_array_equal(
                company[i][first : first + _PIECES[i]], pieces[i], f"piece {i} depends on its company"
            )


def _op_of_whole_sequences(name: str, model: Model, subject: Subject) -> None:
    """Check a case of an op that needs whole sequences: alone, and in company."""
    wanted, order = _alone(name), "bac"
    exe = compiled(subject.backend, model, model.tensors())
    try:
        alone = run(exe, [Step(_tokens("a"), 0, [9, 2, 11])])
        together = run(exe, [Step(_tokens(s), 0, pages) for s, pages in zip(order, _PAGES, strict=True)])
    finally:
        exe.close()
    subject.close(alone, wanted["a"], EXACT, "the sequence alone")
    subject.close(together, np.concatenate([wanted[s] for s in order]), EXACT, "sequences together")
    if backends.get(subject.backend).exact_in_company:
        n = len(wanted["b"])
        np.testing.assert_array_equal(together[n : n + len(alone)], alone, "a sequence depends on its company")


def _tokens(sequence: str) -> list[int]:
    return random_tokens(_LENGTHS[sequence], 96, ord(sequence))


def _cut(pages: Sequence[int]) -> list[Step]:
    """The pieces of sequence a."""
    a = _tokens("a")
    return [
        Step(a[first:last], first, pages, generated=last - first == 1)
        for first, last in pairwise([0, *accumulate(_PIECES)])
    ]


def _company(pages_a: Sequence[int], pages_b: Sequence[int], pages_c: Sequence[int]) -> list[list[Step]]:
    """The pieces beside other prompts, sequences in decode, and sequences with few output rows."""
    a, b, c = _cut(pages_a), _tokens("b"), _tokens("c")
    return [
        [Step(b[:17], 0, pages_b, "last"), a[0]],
        [a[1], Step(b[17:18], 17, pages_b, generated=True), Step(c[:1], 0, pages_c)],
        [Step(c[1:9], 1, pages_c, [0, 3, 7]), a[2], Step(b[18:21], 18, pages_b)],
    ]


@lru_cache(None)
def _alone(name: str) -> dict[str, F32]:
    """The reference backend's result for each sequence, alone and uncut."""
    model = one_op(ops.cases()[name])
    batches = [[Step(_tokens(sequence), 0, [3, 8, 5])] for sequence in _LENGTHS]
    return dict(zip(_LENGTHS, run_all(compiled("reference", model, model.tensors()), batches), strict=True))


# --- formats


def _format(name: str, fmt: str, subject: Subject) -> None:
    """Check a case with weights of this format: many rows, then few, which may take different kernels."""
    case = ops.format_cases()[name]
    limit = case.n_products * LIMITS.get(fmt, QUANTIZED) or 1e-12
    exe = compiled(subject.backend, case.model(), case.tensors(fmt))
    for got, wanted in zip(run_all(exe, _two_steps(96)), _decoded(name, fmt), strict=True):
        subject.close(got, wanted, limit, f"a product of {len(got)} rows")


@lru_cache(None)
def _decoded(name: str, fmt: str) -> list[F32]:
    case = ops.format_cases()[name]
    return run_all(compiled("reference", case.model(), case.tensors(fmt)), _two_steps(96))


def _two_steps(n_vocab: int) -> list[list[Step]]:
    tokens = random_tokens(23, n_vocab)
    return [[Step(tokens[:20], 0, [9, 2])], [Step(tokens[20:], 20, [9, 2])]]


# --- models


def _model(name: str, subject: Subject) -> None:
    model = transformer(MODELS[name])
    if subject.refuses_states_of(model):
        return
    wants: tuple[Literal["hidden", "logits"], ...] = ("hidden", "logits")
    for want in wants[: len(model.program.results)]:
        exe = compiled(subject.backend, model, model.tensors())
        got = run_all(exe, ragged_batches(n_tokens(model)), want)
        assert_close(zip(got, _of_model(name, want), strict=True), EXACT * subject.tolerance)


@lru_cache(None)
def _of_model(name: str, want: Literal["logits", "hidden"]) -> list[F32]:
    model = transformer(MODELS[name])
    return run_all(compiled("reference", model, model.tensors()), ragged_batches(n_tokens(model)), want)


def _model_mixed(subject: Subject) -> None:
    """Check a layer with matrices in formats of all kinds."""
    model = transformer()
    pairs = run_both(subject.backend, model, batches=_two_steps(160), tensors=mixed_tensors(model))
    assert_close(pairs, 20 * QUANTIZED * subject.tolerance)


def _model_format(fmt: str, subject: Subject) -> None:
    limit = 10 * LIMITS.get(fmt, QUANTIZED) * subject.tolerance
    assert_close(run_both(subject.backend, transformer(), fmt, _two_steps(160)), limit)


def _kv(dtype: str, subject: Subject) -> None:
    """Check a KV cache of this type: close to float32, or refused."""
    model, options = transformer(), replace(OPTIONS, kv_dtype=dtype)  # type: ignore[arg-type]
    if dtype in backends.get(subject.backend).kv_dtypes:
        assert_close(run_both(subject.backend, model, options=options), _KV_LIMITS[dtype] * subject.tolerance)
        return
    _refused(lambda: compiled(subject.backend, model, model.tensors(), options), f"KV memory of {dtype}")


def _carried_pages(dtype: str, subject: Subject) -> None:
    """Check that pages of this type serve in another executable."""
    model, options = transformer(MODELS["gemma"]), replace(OPTIONS, kv_dtype=dtype)  # type: ignore[arg-type]
    if dtype in backends.get(subject.backend).kv_dtypes:
        carrying.check(lambda: compiled(subject.backend, model, model.tensors(), options), n_tokens(model))


def _carried_states(subject: Subject) -> None:
    """Check that recurrent states serve in another executable, whole and split."""
    model = transformer(replace(splitting.SMALL, recurrent=True))
    if subject.refuses_states_of(model):
        return
    tensors, devices = model.tensors(), [_host(), splitting.device(subject.backend)]
    carrying.check(lambda: compiled(subject.backend, model, tensors), n_tokens(model))
    carrying.check(lambda: splitting.compiled(model, tensors, devices, n_gpu_layers=2), n_tokens(model))


def _no_rows(subject: Subject) -> None:
    """Check that a step without output rows stores its keys and values."""
    model = transformer()
    tokens = random_tokens(20, n_tokens(model))
    batches = [[Step(tokens[:19], 0, [4, 2, 7], "none")], [Step(tokens[19:], 19, [4, 2, 7])]]
    pairs = run_both(subject.backend, model, batches=batches)
    assert pairs[0][0].shape == pairs[0][1].shape == (0, n_tokens(model))
    assert_close(pairs[1:], EXACT * subject.tolerance)


def _shared_pages(subject: Subject) -> None:
    """Check two sequences that share the pages of a prefix."""
    model = transformer()
    tokens = random_tokens(50, n_tokens(model))
    prefix = Step(tokens[:32], 0, [6, 3], "last")
    tails = [Step(tokens[32:40], 32, [6, 3, 10]), Step(tokens[30:50], 32, [6, 3, 1, 12])]
    assert_close(run_both(subject.backend, model, batches=[[prefix], tails]), EXACT * subject.tolerance)


# --- split models


def _host() -> DeviceInfo:
    """The CPU, for the rest of a split model."""
    return next(splitting.device(name) for name in ("cpu", "reference") if backends.get(name).devices())


def _split_layers(n: int | str, subject: Subject) -> None:
    """Check a model with this many layers on the backend, the others on the CPU."""
    model = transformer(splitting.SMALL)
    tensors, devices = model.tensors(), [_host(), splitting.device(subject.backend)]
    exe = splitting.compiled(model, tensors, devices, n_gpu_layers=n)
    splitting.check(exe, model, tensors, EXACT * subject.tolerance)


def _split_headless(subject: Subject) -> None:
    """Check that the part with the model's end returns hidden states."""
    model = transformer(replace(splitting.SMALL, head=False))
    tensors, devices = model.tensors(), [_host(), splitting.device(subject.backend)]
    exe = splitting.compiled(model, tensors, devices, n_gpu_layers=2)
    splitting.check(exe, model, tensors, EXACT * subject.tolerance, want="hidden")


def _split_carried_pages(subject: Subject) -> None:
    """Check that pages of a split model serve in another executable that is split alike."""
    model = transformer(splitting.SMALL)
    tensors, devices = model.tensors(), [_host(), splitting.device(subject.backend)]
    carrying.check(lambda: splitting.compiled(model, tensors, devices, n_gpu_layers=2), n_tokens(model))


def _split_anywhere(seed: int, subject: Subject) -> None:
    """Check random placement of every op: any value may cross, any fusion may be split."""
    model = transformer(replace(splitting.SHAPES["gemma"], n_layers=2))
    tensors, devices = model.tensors(), [_host(), splitting.device(subject.backend)]
    drawn = np.random.default_rng(seed).integers(0, 2, len(model.program.ops))
    exe = splitting.placed(model, tensors, devices, [devices[i].name for i in drawn])
    splitting.check(exe, model, tensors, EXACT * subject.tolerance)


# --- what an executable is like


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unheard(Op):
    """An op without a rule in any backend."""


def _unknown_op(subject: Subject) -> None:
    """Check that a program with an unknown op is refused."""
    model = one_op(lambda b, x: x)
    (*ops_before, last) = model.program.ops
    program = replace(model.program, ops=(*ops_before, _Unheard(out=last.out, layer=last.layer)))
    _refused(lambda: compiled(subject.backend, replace(model, program=program), model.tensors()), "an unknown op")


def _missing_tensor(subject: Subject) -> None:
    model = transformer(splitting.SMALL)
    tensors = {name: t for name, t in model.tensors().items() if name != "output.weight"}
    _refused(lambda: compiled(subject.backend, model, tensors), "a missing tensor")


def _refused(compile_it: Callable[[], Executable], what: str) -> None:
    try:
        compile_it().close()
    except BackendError:
        return
    raise AssertionError(f"{what} is not refused with BackendError")


def _idle_interrupt(subject: Subject) -> None:
    """Check that an interrupt between steps has no effect."""
    model = transformer(splitting.SMALL)
    exe, steps = compiled(subject.backend, model, model.tensors()), [Step([1, 2, 3], 0, [0])]
    try:
        wanted = run(exe, steps)
        exe.interrupt()
        np.testing.assert_array_equal(run(exe, steps), wanted)
    finally:
        exe.close()


def _paused_steps(subject: Subject) -> None:
    """Check that pausing a step changes nothing, where steps can be paused."""
    for shape in (splitting.SMALL, replace(splitting.SMALL, recurrent=True)):
        model = transformer(shape)
        if subject.refuses_states_of(model):
            continue
        exe = compiled(subject.backend, model, model.tensors())
        try:
            pausing.check(exe, n_tokens(model))
        finally:
            exe.close()


def _memory(subject: Subject) -> None:
    """Check that the KV cache and recurrent states have their predicted size, and that a closed executable holds
    nothing and may be closed again."""
    for shape in (splitting.SMALL, replace(splitting.SMALL, recurrent=True)):
        model = transformer(shape)
        if subject.refuses_states_of(model):
            continue
        tensors, options = model.tensors(), with_slots(model, OPTIONS)
        needed = backends.get(subject.backend).memory_needed(model.program, tensors, options)
        exe = compiled(subject.backend, model, tensors, options)
        held = exe.memory()
        exe.close()
        exe.close()
        assert held["kv"] == needed["kv"] > 0, f"KV takes {held['kv']} bytes, not {needed['kv']}"
        assert not any(n for purpose, n in exe.memory().items() if purpose in ("weights", "kv", "work")), exe.memory()


def _importance(subject: Subject) -> None:
    """Check that importance equals the reference's, or is refused."""
    model, options = transformer(splitting.SMALL), replace(OPTIONS, collect_importance=True)
    if not backends.get(subject.backend).collects_importance:
        _refused(lambda: compiled(subject.backend, model, model.tensors(), options), "collecting importance")
        return
    found = []
    for name in (subject.backend, "reference"):
        exe = compiled(name, model, model.tensors(), options)
        for batch in ragged_batches(n_tokens(model)):
            run(exe, batch)
        found.append(exe.importance())
        exe.close()
    got, wanted = found
    assert got.keys() == wanted.keys()
    for name, (sums, counts) in wanted.items():
        np.testing.assert_array_equal(got[name][1], counts, name)
        np.testing.assert_allclose(got[name][0], sums, rtol=1e-3 * subject.tolerance, err_msg=name)


def _replacement(subject: Subject) -> None:
    """Check that replaced weights give a new model's results, or that replacing is refused."""
    model, steps = transformer(splitting.SMALL), [Step([5, 6, 7], 0, [2])]
    tensors, other = model.tensors(), model.tensors(seed=1)
    changed = tensors | {name: other[name] for name in ("blk.0.attn_q.weight", "blk.3.ffn_down.weight")}
    exe = compiled(subject.backend, model, tensors)
    try:
        if not backends.get(subject.backend).replaces_weights:
            try:
                exe.replace(changed)
            except BackendError:
                return
            raise AssertionError("replacing weights is not refused with BackendError")
        exe.replace({name: t for name, t in changed.items() if t is not tensors[name]})
        got = run(exe, steps)
    finally:
        exe.close()
    subject.close(got, run_all(compiled("reference", model, changed), [steps])[0], EXACT, "what new weights give")
