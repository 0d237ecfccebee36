"""Sensitivity of a model's predictions to errors of each matrix, measured by quantizing one at a time.

To first order, quantizing a matrix moves the predictions by a KL divergence proportional to the squared relative error
of its weights, and divergences of several matrices add up. So one probe of each matrix predicts the cost of any format:
its squared relative error times the measured sensitivity.

Matrices of one kind change little from layer to layer in most of a model. So the first two layers and the last are
probed, and between two probed layers the middle one. If its value is about what interpolation predicts, the others are
interpolated; if not, each half is treated in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyllm.config import ExecutionOptions, Progress
from pyllm.errors import RequestError
from pyllm.gguf.tensor import TensorInfo, file_name
from pyllm.jit.processors import default_threads
from pyllm.quant import formats
from pyllm.quant.recipes.roles import layer_of

if TYPE_CHECKING:
    from pyllm.backends.base import Executable
    from pyllm.gguf import GGUFFile
    from pyllm.quant.base import QuantFormat
    from pyllm.quant.encoder import Encoder
    from pyllm.quant.imatrix import ImportanceMatrix

_PAGE_SIZE = 32
_SCORED_EVERY = 2
"""Only every n-th token is scored: neighbours carry similar information."""
_MOST_LOGITS = 1 << 24
"""Most logits computed for a probe: with a large vocabulary, fewer tokens are scored."""
_ABOUT = 1.5
"""Factor within which sensitivities count as equal; they span orders of magnitude."""

F32 = NDArray[np.float32]
T = TypeVar("T")


def sensitivities(
    file: GGUFFile,
    groups: Sequence[Sequence[str]],
    text: str | Sequence[int] | None = None,
    *,
    probe: str = "Q3_K",
    imatrix: ImportanceMatrix | None = None,
    n_windows: int = 4,
    n_ctx: int = 128,
    backend: str = "cpu",
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """By name of a matrix: KL divergence (nats per token) divided by the squared relative error that caused it.

    The model reads `n_windows` windows of `n_ctx` tokens, spread evenly over `text` (or token ids; None: pyllm's own
    mix): once with weights in eight bits, and once for each of some `groups` of matrices quantized to `probe` (Q4_0
    where rows are not whole blocks of it); other sensitivities are interpolated. Errors are weighted by `imatrix`.
    Groups that the model's program does not use are left out.

    Raises RequestError where the text is too short, BackendError where the backend cannot replace weights.
    """
    from pyllm import archs
    from pyllm.quant.encoder import Encoder

    threads = n_threads or default_threads()
    windows = _windows(file, text, n_windows, n_ctx)
    used = {file_name(name) for name in archs.load(file.metadata, file.tensors, n_ctx).program.weights()}
    groups = [group for group in groups if used.issuperset(group)]
    names = [name for group in groups for name in group]
    found: dict[str, float] = {}
    with Encoder(threads) as encoder:
        base = {n: _encoded(encoder, file.tensors[n], formats.get("Q8_0"), None)[0] for n in names}
        model = _Model(file, base, windows, backend, threads, progress)

        def measure(group: Sequence[str]) -> float:
            if progress:
                progress(f"measuring {group[0]}", len(found) / len(names))
            probed = [_probed(encoder, file.tensors[name], probe, imatrix) for name in group]
            error = sum(e for _, e in probed)
            return model.divergence([base[n] for n in group], [t for t, _ in probed]) / error if error else 0.0

        try:
            for series in _series(groups):
                for group, value in zip(series, along(series, measure), strict=True):
                    found |= dict.fromkeys(group, value)
        finally:
            model.close()
    return found


def _series(groups: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    """Groups of one kind, by layer; a group without a layer is alone."""
    kinds: dict[str, list[tuple[int, Sequence[str]]]] = {}
    for group in groups:
        layer = layer_of(group[0])
        kind = group[0] if layer is None else group[0].replace(f".{layer}.", ".{}.", 1)
        kinds.setdefault(f"{kind} of {len(group)}", []).append((layer or 0, group))
    return [[group for _, group in sorted(members, key=lambda m: m[0])] for members in kinds.values()]


def along(series: Sequence[T], measure: Callable[[T], float], about: float = _ABOUT) -> list[float]:
    """measure(x) for each x of a series, or an interpolated value where that is good to a factor of `about`."""
    n = len(series)
    logs: dict[int, float] = {}

    def known(i: int) -> float:
        if i not in logs:
            logs[i] = math.log(max(measure(series[i]), 1e-12))
        return logs[i]

    def between(first: int, last: int) -> None:
        """Fill in the values between two known ones."""
        if last - first < 2:
            return
        middle = (first + last) // 2
        share = (middle - first) / (last - first)
        expected = known(first) * (1 - share) + known(last) * share
        if abs(known(middle) - expected) > math.log(about):
            between(first, middle)
            between(middle, last)
        else:
            xs = [first, middle, last]
            inner = range(first + 1, last)
            logs.update(zip(inner, np.interp(inner, xs, [known(x) for x in xs]).tolist(), strict=True))

    anchors = sorted({i for i in (0, 1, n - 1) if 0 <= i < n})
    for i in anchors:
        known(i)
    for first, last in pairwise(anchors):
        between(first, last)
    return [math.exp(logs[i]) for i in range(n)]


def _probed(
    encoder: Encoder, tensor: TensorInfo, probe: str, imatrix: ImportanceMatrix | None
) -> tuple[TensorInfo, float]:
    """A tensor rounded to the probe's format, stored in Q8_0; and the squared relative error."""
    columns = tensor.shape[-1]
    format = formats.get(probe if columns % formats.get(probe).block_size == 0 else "Q4_0")
    importance = None if imatrix is None else imatrix.importance(tensor.name, columns)
    quantized, error = _encoded(encoder, tensor, format, importance)
    return _encoded(encoder, quantized, formats.get("Q8_0"), None)[0], error


def _encoded(
    encoder: Encoder, tensor: TensorInfo, format: QuantFormat, importance: F32 | None
) -> tuple[TensorInfo, float]:
    """A tensor in another format, and the squared relative error; `importance` is [n_matrices, columns]."""
    columns = tensor.shape[-1]
    rows = tensor.data.reshape(
        -1, columns // formats.get(tensor.format).block_size * formats.get(tensor.format).block_bytes
    )
    out = np.empty((len(rows), columns // format.block_size * format.block_bytes), np.uint8)
    matrices = [None] if importance is None else list(importance)
    step = len(rows) // len(matrices)
    squared = power = 0.0
    for i, weights in enumerate(matrices):
        part = slice(i * step, (i + 1) * step)
        _, error = encoder.encode(format, rows[part], tensor.format, weights, out[part])
        squared, power = squared + error.squared, power + error.power
    return TensorInfo(tensor.name, tensor.shape, format.name, out.reshape(-1)), squared / power if power else 0.0


def _windows(file: GGUFFile, text: str | Sequence[int] | None, n_windows: int, n_ctx: int) -> NDArray[np.int32]:
    """int32 [n_windows, n_ctx], evenly from the text; BOS first where the model wants one."""
    from pyllm import tokenizers
    from pyllm.quant.calibrate import text as calibration

    tokenizer = None
    if text is None or isinstance(text, str):
        tokenizer = tokenizers.from_gguf(file.metadata)
        text = tokenizer.encode(calibration.text() if text is None else text)
    if len(text) < n_windows * n_ctx:
        raise RequestError(f"the text has {len(text)} tokens; {n_windows} windows of {n_ctx} need more")
    starts = np.linspace(0, len(text) - n_ctx, n_windows).astype(int)
    windows = np.array([text[s : s + n_ctx] for s in starts], np.int32)
    if tokenizer is not None and tokenizer.add_bos and tokenizer.bos_id is not None:
        windows[:, 0] = tokenizer.bos_id
    return windows


class _Model:
    """The model with some weights in base formats, and its predictions on the windows."""

    def __init__(
        self,
        file: GGUFFile,
        base: Mapping[str, TensorInfo],
        windows: NDArray[np.int32],
        backend: str,
        n_threads: int,
        progress: Progress | None,
    ) -> None:
        from pyllm import archs, backends
        from pyllm.backends.base import Batch
        from pyllm.evaluation.scoring import Scorer, coded_width

        n_windows, n_ctx = windows.shape
        pages = -(-n_ctx // _PAGE_SIZE)
        n_vocab = archs.load(file.metadata, file.tensors, n_ctx).n_vocab
        wanted = range(1, n_ctx, max(_SCORED_EVERY, -(-windows.size * n_vocab // _MOST_LOGITS)))
        options = ExecutionOptions(
            n_pages=n_windows * pages,
            page_size=_PAGE_SIZE,
            max_tokens=windows.size,
            max_seqs=n_windows,
            max_rows=n_windows * len(wanted),
            n_threads=n_threads,
            progress=progress,
        )
        tensors = {**file.tensors, **base}
        architecture = archs.load(file.metadata, tensors, n_ctx)
        self._executable: Executable = backends.get(backend).compile(
            architecture.program, architecture.tensors, options
        )
        self._names: dict[str, list[str]] = {}
        """Of the program's weights, by the file's tensor in which they lie."""
        for name in architecture.program.weights():
            self._names.setdefault(file_name(name), []).append(name)
        self._batch = Batch(options)
        for i, window in enumerate(windows):
            self._batch.add(window, 0, range(i * pages, (i + 1) * pages), wanted)
        self._scorer = Scorer(n_threads)
        logits = self._executable.run(self._batch)
        self._predicted = np.empty((len(logits), coded_width(logits.shape[1])), np.uint16)
        self._nothing = np.zeros(len(logits), np.int32)  # targets, of which nothing is asked
        scores = self._scorer.score(logits, self._nothing, self._predicted)
        # Predictions are kept in 16 bits, so their own divergence from these is not 0.
        self._rounding = float(self._scorer.compare(logits, scores, self._predicted)[0].mean())

    def divergence(self, old: Sequence[TensorInfo], new: Sequence[TensorInfo]) -> float:
        """Mean KL divergence of the predictions with `new` in place of `old` from the original ones."""
        self._replace(new)
        try:
            logits = self._executable.run(self._batch)
            scores = self._scorer.score(logits, self._nothing)
            divergences, _ = self._scorer.compare(logits, scores, self._predicted)
            return max(0.0, float(divergences.mean()) - self._rounding)
        finally:
            self._replace(old)

    def _replace(self, tensors: Sequence[TensorInfo]) -> None:
        self._executable.replace({name: t.part(name) for t in tensors for name in self._names[t.name]})

    def close(self) -> None:
        self._executable.close()
        self._scorer.close()
