"""Formats for a file of a given size: errors of all formats are measured, and the best combination is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pyllm.config import Progress
from pyllm.errors import FormatError
from pyllm.gguf.types import by_name
from pyllm.jit.compiler import LIBRARY
from pyllm.quant import formats
from pyllm.quant.allocation import Candidate, allocate
from pyllm.quant.encoder import Encoder, encoding_kernel
from pyllm.quant.pipeline import Importance
from pyllm.quant.recipes import Choice, RecipeOptions, asked_for
from pyllm.quant.recipes.roles import OUTPUT, Role, is_quantized, role_of
from pyllm.quant.source import SourceTensor
from pyllm.records import dataclass

CANDIDATES = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_0", "Q4_K",
    "Q4_1", "Q5_K", "Q6_K", "Q8_0", "F16",
)  # fmt: skip
"""Candidate formats of a matrix, beside its present one ..."""
NARROW_CANDIDATES = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16")
"""... and those where its rows are not whole blocks of 256."""

TYPICAL: Mapping[Role, float] = {
    Role.OUTPUT: 10.0,
    Role.EMBEDDING: 5.0,
    Role.ATTN_Q: 0.05,
    Role.ATTN_K: 0.04,
    Role.ATTN_V: 0.2,
    Role.ATTN_OUTPUT: 0.08,
    Role.FFN_GATE: 0.08,
    Role.FFN_UP: 0.14,
    Role.FFN_DOWN: 0.15,
    Role.OTHER: 0.2,
}
"""Typical sensitivities; `calibrate.sensitivity` measures those of a model."""

_PAIRS = (("attn_q.", "attn_k."), ("ffn_gate.", "ffn_up."), ("ffn_gate_exps.", "ffn_up_exps."))
_SAMPLE = 1 << 17
"""Weights of a matrix's sample, in pieces from all over it."""
_PIECES = 16

Errors = Mapping[str, Mapping[str, float]]
"""Relative squared errors by matrix and format."""


@dataclass(frozen=True, slots=True)
class Task:
    """The tensors of a model, and which of them have a free choice of format."""

    tensors: tuple[SourceTensor, ...]
    free: tuple[SourceTensor, ...]
    settled: Mapping[str, Choice]
    """Choices of the other tensors, by name: kept by recipes, or named by the user."""

    @classmethod
    def of(
        cls, tensors: Sequence[SourceTensor], options: RecipeOptions | None = None, allow_requantize: bool = False
    ) -> Task:
        """The task of a file; tensors that are quantized already are kept, unless `allow_requantize`.

        Raises FormatError for an invalid format or pattern of the options.
        """
        options = options or RecipeOptions()
        settled = asked_for(tensors, options)
        for t in tensors:
            is_left = not is_quantized(t.name, t.shape) or (options.leave_output and t.name == OUTPUT)
            is_left |= by_name(t.format).block_size > 1 and not allow_requantize
            if t.name not in settled and (is_left or len(candidates(t)) == 1):
                settled[t.name] = Choice(t.name, t.format)
        return cls(tuple(tensors), tuple(t for t in tensors if t.name not in settled), settled)

    def groups(self) -> list[tuple[SourceTensor, ...]]:
        """Free tensors that share a format: matrices of one input that backends then compute as one."""
        free = {t.name: t for t in self.free}
        out: list[tuple[SourceTensor, ...]] = []
        for t in self.free:
            name, is_first = _partner(t.name)
            other = free.get(name)
            if other is None or (other.format, other.n_columns) != (t.format, t.n_columns):
                out.append((t,))
            elif is_first:
                out.append((t, other))
        return out

    def unchanged(self, n_bytes: int, alignment: int = 32) -> list[Choice] | None:
        """The choice that keeps free tensors' formats; None where they, padded to `alignment`, take more bytes."""
        choices = [self.settled.get(t.name) or Choice(t.name, t.format) for t in self.tensors]
        total = sum(_stored(t, c.format, alignment) for t, c in zip(self.tensors, choices, strict=True))
        return choices if total <= n_bytes else None

    @property
    def n_weights(self) -> int:
        return sum(t.n_elements for t in self.tensors)


def _partner(name: str) -> tuple[str, bool]:
    """The matrix paired with this one ("": none), and whether this one is the first of the pair."""
    for first, second in _PAIRS:
        if first in name:
            return name.replace(first, second), True
        if second in name:
            return name.replace(second, first), False
    return "", True


def candidates(tensor: SourceTensor, least_bits: float = 0.0) -> list[str]:
    """Formats of a matrix: its own first, then smaller ones of at least `least_bits` per weight."""
    own = by_name(tensor.format)
    names = CANDIDATES if tensor.n_columns % 256 == 0 else NARROW_CANDIDATES
    types = [by_name(name) for name in names if tensor.n_columns % by_name(name).block_size == 0]
    smaller = [t for t in types if t.block_bytes / t.block_size < own.block_bytes / own.block_size]
    return [own.name, *(t.name for t in smaller if 8 * t.block_bytes / t.block_size >= least_bits)]


def measure_errors(
    tensors: Sequence[SourceTensor],
    *,
    least_bits: float = 0.0,
    imatrix: Importance | None = None,
    n_threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Squared relative error of each tensor in each of its `candidates`, weighted by importance if available.

    Measured on a sample of rows. Raises FormatError where weights are not finite, RequestError where the importance
    matrix is of another model.
    """
    names = {t.name: candidates(t, least_bits) for t in tensors}
    LIBRARY.load({encoding_kernel(formats.get(f), t.format) for t in tensors for f in names[t.name][1:]}, progress)
    out: dict[str, dict[str, float]] = {}
    with Encoder(n_threads) as encoder:
        for i, t in enumerate(tensors):
            if progress:
                progress(f"measuring errors of {t.name}", i / len(tensors))
            sums = {name: np.zeros(2) for name in names[t.name]}
            importance = None if imatrix is None else imatrix.importance(t.name, t.n_columns)
            for start, stop in _pieces(t):
                rows = t.read(start, stop)
                weights = None
                if importance is not None:
                    weights = importance[start * len(importance) // t.n_rows]
                for name in names[t.name][1:]:
                    _, error = encoder.encode(formats.get(name), rows, t.format, weights)
                    sums[name] += error.squared, error.power
            out[t.name] = {name: float(s[0] / s[1]) if s[1] else 0.0 for name, s in sums.items()}
    return out


def _pieces(tensor: SourceTensor) -> Iterator[tuple[int, int]]:
    """Row ranges of the sample, in order; none crosses from one expert's matrix to the next."""
    n_rows = tensor.n_rows
    sampled = max(_PIECES, -(-_SAMPLE // tensor.n_columns))
    if sampled >= n_rows and len(tensor.shape) == 2:
        yield 0, n_rows
        return
    per_matrix = tensor.shape[-2]
    each = max(1, min(sampled // _PIECES, per_matrix, n_rows // _PIECES))
    for start in np.linspace(0, n_rows - each, min(_PIECES, n_rows)).astype(int).tolist():
        start = min(start, start // per_matrix * per_matrix + per_matrix - each)
        yield start, start + each


def choose_for_size(
    task: Task,
    errors: Errors,
    n_bytes: int,
    sensitivities: Mapping[str, float] | None = None,
    alignment: int = 32,
) -> list[Choice]:
    """The least harmful formats with which all tensors, padded to `alignment`, take at most `n_bytes`.

    `errors` are those of the free tensors; `sensitivities` weigh them (`calibrate.sensitivity`); missing ones are
    typical. Raises FormatError where even the smallest formats take more.
    """
    is_tied = OUTPUT not in {t.name for t in task.tensors}
    weights = {t.name: _typical(t.name, is_tied) for t in task.free} | dict(sensitivities or {})
    members = task.groups()
    groups = []
    for group in members:
        choices = []
        for f in errors[group[0].name]:
            cost = sum(weights[t.name] * errors[t.name][f] for t in group)
            choices.append(Candidate(f, sum(_stored(t, f, alignment) for t in group), cost))
        groups.append(choices)
    settled = sum(_stored(t, task.settled[t.name].format, alignment) for t in task.tensors if t.name in task.settled)
    least = settled + sum(min(c.n_bytes for c in group) for group in groups)
    if least > n_bytes:
        raise FormatError(
            f"the tensors cannot be made as small as {n_bytes} bytes: with the smallest formats they take {least} "
            f"({8 * least / task.n_weights:.2f} bits per weight)"
        )
    chosen = allocate(groups, n_bytes - settled)
    found = {
        t.name: Choice(t.name, choices[k].format)
        for group, choices, k in zip(members, groups, chosen, strict=True)
        for t in group
    }
    return [found.get(t.name) or task.settled[t.name] for t in task.tensors]


def _typical(name: str, is_tied: bool) -> float:
    role = role_of(name)
    return TYPICAL[Role.OUTPUT if is_tied and role is Role.EMBEDDING else role]


def _stored(tensor: SourceTensor, format: str, alignment: int) -> int:
    n_bytes = by_name(format).n_bytes(tensor.n_elements)
    return -(-n_bytes // alignment) * alignment
