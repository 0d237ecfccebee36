"""KL divergence of a model's predictions from a base model's, usually the one that it was quantized from.

The base distributions are in a file of the format of llama.cpp's perplexity tool:

    "_logits_" | uint32 n_ctx | int32 n_vocab | int32 n_windows | int32 tokens [n_windows, n_ctx]
    uint16 [n_windows, scored tokens, `coded_width(n_vocab)`]: see `pyllm.evaluation.scoring.Scorer`
"""

from __future__ import annotations

import math
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import RequestError
from pyllm.evaluation.perplexity import PerplexityEstimate, check_window, estimate, n_scored, score_windows
from pyllm.records import dataclass
from pyllm.temporary import TemporaryFile, remove_leftovers
from pyllm.units import size

if TYPE_CHECKING:
    from pyllm.llm import LLM

F64 = NDArray[np.float64]

_MAGIC = b"_logits_"
_HEADER = struct.Struct("<8sIii")
_MOST_CTX, _MOST_VOCAB = 1 << 24, 1 << 24


class BaseFile:
    """An open file of distributions. Raises RequestError where it is not one, or is incomplete."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            with open(self.path, "rb") as file:
                head = file.read(_HEADER.size)
        except OSError as error:
            raise RequestError(f"{self.path} cannot be opened: {error.strerror}") from error
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise RequestError(f"{self.path} holds no distributions: it does not begin with {_MAGIC.decode()}")
        _, self.n_ctx, self.n_vocab, self.n_windows = _HEADER.unpack(head)
        if not (4 <= self.n_ctx <= _MOST_CTX and 1 <= self.n_vocab <= _MOST_VOCAB and self.n_windows >= 1):
            raise RequestError(
                f"{self.path} is damaged: {self.n_windows} windows of {self.n_ctx} tokens, {self.n_vocab} words"
            )
        n_bytes = _file_bytes(self.n_windows, self.n_ctx, self.n_vocab)
        if size < n_bytes:
            raise RequestError(f"{self.path} is not whole: it has {size} bytes of {n_bytes}; write it again")
        n = self.n_windows * self.n_ctx
        tokens = np.fromfile(self.path, "<i4", n, offset=_HEADER.size).astype(np.int32)
        if tokens.min() < 0 or tokens.max() >= self.n_vocab:
            raise RequestError(f"{self.path} is damaged: it has tokens that are not in its vocabulary")
        self.windows: NDArray[np.int32] = tokens.reshape(self.n_windows, self.n_ctx)

    def rows(self, window: int, start: int, n: int) -> NDArray[np.uint16]:
        """Coded rows [n, coded_width] of a window's scored tokens from `start` on."""
        width = _width(self.n_vocab)
        row = window * n_scored(self.n_ctx) + start
        offset = _HEADER.size + 4 * self.windows.size + 2 * width * row
        return np.fromfile(self.path, "<u2", n * width, offset=offset).reshape(n, width)


def write_base(
    llm: LLM, windows: NDArray[np.int32], path: str | os.PathLike[str], overwrite: bool = False
) -> Iterator[PerplexityEstimate]:
    """Perplexity of windows [n, n_ctx], estimate by estimate, while writing the distributions; see `perplexity`."""
    path, (n, n_ctx) = Path(path), windows.shape
    n_bytes = _file_bytes(n, n_ctx, llm.n_vocab)
    if path.exists() and not overwrite:
        raise RequestError(f"{path} exists already; name another file, or allow overwriting (--overwrite)")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"there is no folder {path.absolute().parent}")
    remove_leftovers(path.parent)
    if (free := shutil.disk_usage(path.absolute().parent).free) < n_bytes:
        raise RequestError(f"{path} needs {size(n_bytes)}, {size(free)} are free; fewer windows take less")
    return _write(llm, windows, path)


def _write(llm: LLM, windows: NDArray[np.int32], path: Path) -> Iterator[PerplexityEstimate]:
    from pyllm.evaluation.scoring import Scorer

    n, n_ctx = windows.shape
    nll = np.empty((n, n_scored(n_ctx)), np.float64)
    width, start = _width(llm.n_vocab), _HEADER.size + 4 * windows.size
    codes = np.empty((0, width), np.uint16)

    def take(k: int, i: int, rows: NDArray[np.float32], targets: NDArray[np.int32]) -> None:
        nonlocal codes
        if len(codes) < len(rows):
            codes = np.empty((len(rows), width), np.uint16)
        part = codes[: len(rows)]
        nll[k, i : i + len(rows)] = scorer.score(rows, targets, part).nll
        # Windows side by side come block by block in turn.
        file.seek(start + 2 * width * (k * nll.shape[1] + i))
        file.write(part.astype("<u2", copy=False).data)

    temporary = TemporaryFile(path.parent)
    try:
        with open(temporary.fileno(), "wb", closefd=False) as file, Scorer(llm.n_threads) as scorer:
            file.write(_HEADER.pack(_MAGIC, n_ctx, llm.n_vocab, n))
            file.write(windows.astype("<i4").data)
            for k in score_windows(llm, windows, take):
                now = estimate(nll[: k + 1], n)
                if k + 1 == n:
                    file.flush()
                    temporary.sync()
                    temporary.place(path)
                yield now
    finally:
        temporary.remove()


@dataclass(frozen=True, slots=True)
class Uncertain:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Divergence:
    """State of a comparison after some windows; the last one is the result. Arrays are by scored token [n]."""

    n_windows: int
    """Windows compared so far."""
    n_total: int
    """Windows that will be compared."""
    nll: F64
    """Negative log likelihood of the text's token, by this model ..."""
    nll_base: F64
    """... and by the base model."""
    kld: F64
    """KL divergence of this model's distribution from the base model's."""
    same_top: NDArray[np.bool_]
    """Whether the most likely tokens are the same."""

    @property
    def delta_p(self) -> F64:
        """Probability of the text's token by this model minus that by the base model [n]."""
        return np.exp(-self.nll) - np.exp(-self.nll_base)

    @property
    def ppl(self) -> Uncertain:
        return _exponential(_mean(self.nll))

    @property
    def ppl_base(self) -> Uncertain:
        return _exponential(_mean(self.nll_base))

    @property
    def correlation(self) -> float:
        """Correlation of the two models' negative log likelihoods."""
        errors = _mean(self.nll).error * _mean(self.nll_base).error
        return self._covariance / errors if errors > 0 else 1.0

    @property
    def log_ratio(self) -> Uncertain:
        """Logarithm of the ratio of the perplexities; the difficulty of tokens for both cancels out in its error."""
        return _mean(self.nll - self.nll_base)

    @property
    def ratio(self) -> Uncertain:
        return _exponential(self.log_ratio)

    @property
    def difference(self) -> Uncertain:
        """Difference of the perplexities."""
        a, b = self.ppl, self.ppl_base
        variance = a.error**2 + b.error**2 - 2 * a.value * b.value * self._covariance
        return Uncertain(a.value - b.value, math.sqrt(max(0.0, variance)))

    @property
    def mean_kld(self) -> Uncertain:
        return _mean(self.kld)

    @property
    def mean_delta_p(self) -> Uncertain:
        return _mean(self.delta_p)

    @property
    def rms_delta_p(self) -> Uncertain:
        square = _mean(self.delta_p**2)
        root = math.sqrt(square.value)
        return Uncertain(root, square.error / (2 * root) if root > 0 else 0.0)

    @property
    def top_share(self) -> Uncertain:
        """Share of tokens for which the most likely tokens are the same."""
        p, n = float(self.same_top.mean()), len(self.same_top)
        return Uncertain(p, math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else 0.0)

    @property
    def _covariance(self) -> float:
        """Covariance of the two mean negative log likelihoods."""
        n = len(self.nll)
        if n < 2:
            return 0.0
        return float(np.mean((self.nll - self.nll.mean()) * (self.nll_base - self.nll_base.mean()))) / (n - 1)

    def figures(self) -> dict[str, float]:
        """The result by name; errors are named NAME_error, points of the distributions NAME_p99.9."""
        out: dict[str, float] = {"windows": self.n_windows, "tokens": len(self.nll)}
        for name in ("ppl", "ppl_base", "ratio", "log_ratio", "difference", "mean_kld", "mean_delta_p", "rms_delta_p"):
            of: Uncertain = getattr(self, name)
            out |= {name: of.value, f"{name}_error": of.error}
        out |= {"same_top": self.top_share.value, "same_top_error": self.top_share.error}
        out["correlation"] = self.correlation
        for name, values, points in (("kld", self.kld, _KLD_POINTS), ("delta_p", self.delta_p, _DELTA_POINTS)):
            shares = [share for _, share in points]
            for share, value in zip(shares, np.quantile(values, shares), strict=True):
                out[f"{name}_p{100 * share:g}"] = float(value)
        return out

    def __str__(self) -> str:
        """The result as llama.cpp's tool prints it."""
        kld, delta = np.sort(self.kld), np.sort(self.delta_p) * 100
        lines = [
            "====== Perplexity statistics ======",
            f"Mean PPL(Q)                   : {_pair(self.ppl)}",
            f"Mean PPL(base)                : {_pair(self.ppl_base)}",
            f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * self.correlation:6.2f}%",
            f"Mean ln(PPL(Q)/PPL(base))     : {_pair(self.log_ratio)}",
            f"Mean PPL(Q)/PPL(base)         : {_pair(self.ratio)}",
            f"Mean PPL(Q)-PPL(base)         : {_pair(self.difference)}",
            "",
            "====== KL divergence statistics ======",
            f"Mean    KLD: {_pair(self.mean_kld)}",
        ]
        for name, share in _KLD_POINTS:
            lines.append(f"{name} KLD: {np.quantile(kld, share):10.6f}")
        mean, rms, top = self.mean_delta_p, self.rms_delta_p, self.top_share
        lines += ["", "====== Token probability statistics ======"]
        lines.append(f"Mean    Δp: {100 * mean.value:6.3f} ± {100 * mean.error:5.3f} %")
        for name, share in _DELTA_POINTS:
            lines.append(f"{name} Δp: {np.quantile(delta, share):6.3f}%")
        lines.append(f"RMS Δp    : {100 * rms.value:6.3f} ± {100 * rms.error:5.3f} %")
        lines.append(f"Same top p: {100 * top.value:6.3f} ± {100 * top.error:5.3f} %")
        return "\n".join(lines)


_TAIL = [("Median ", 0.5), ("10.0%  ", 0.1), (" 5.0%  ", 0.05), (" 1.0%  ", 0.01), (" 0.1%  ", 0.001), ("Minimum", 0.0)]
_HEAD = [("Maximum", 1.0), ("99.9%  ", 0.999), ("99.0%  ", 0.99), ("95.0%  ", 0.95), ("90.0%  ", 0.9)]
_KLD_POINTS = _HEAD + _TAIL
_DELTA_POINTS = [*_HEAD, ("75.0%  ", 0.75), _TAIL[0], ("25.0%  ", 0.25), *_TAIL[1:]]


def kl_divergence(llm: LLM, base: str | os.PathLike[str], n_windows: int | None = None) -> Iterator[Divergence]:
    """Compare a model with base distributions in a file, written by `perplexity(base=...)` or by llama.cpp.

    Yields the comparison after each window; `n_windows` None: all of the file. Fastest when the model was loaded with
    `perplexity.load_options`. Raises RequestError where the file is not of this format, is incomplete, has another
    vocabulary, or windows that do not fit the loaded model.
    """
    file = BaseFile(base)
    if file.n_vocab != llm.n_vocab:
        raise RequestError(
            f"{file.path} is of a vocabulary of {file.n_vocab} tokens, the model's has {llm.n_vocab}: "
            "they cannot be compared"
        )
    check_window(llm, file.n_ctx)
    if n_windows is not None and n_windows < 1:
        raise RequestError(f"there must be at least one window, not {n_windows}")
    return _divergences(llm, file, min(n_windows or file.n_windows, file.n_windows))


def _divergences(llm: LLM, file: BaseFile, n: int) -> Iterator[Divergence]:
    from pyllm.evaluation.scoring import Scorer
    from pyllm.evaluation.scoring.rows import coded_nll

    shape = n, n_scored(file.n_ctx)
    nll, nll_base, kld, same = np.empty(shape), np.empty(shape), np.empty(shape), np.empty(shape, np.bool_)

    def take(k: int, i: int, rows: NDArray[np.float32], targets: NDArray[np.int32]) -> None:
        codes = file.rows(k, i, len(rows))
        scores = scorer.score(rows, targets)
        at = k, slice(i, i + len(rows))
        kld[at], best = scorer.compare(rows, scores, codes)
        nll[at], nll_base[at], same[at] = scores.nll, coded_nll(codes, targets), best == scores.best

    with Scorer(llm.n_threads) as scorer:
        for k in score_windows(llm, file.windows[:n], take):
            done = slice(k + 1)
            yield Divergence(k + 1, n, nll[done].ravel(), nll_base[done].ravel(), kld[done].ravel(), same[done].ravel())


def _file_bytes(n_windows: int, n_ctx: int, n_vocab: int) -> int:
    return _HEADER.size + n_windows * (4 * n_ctx + 2 * n_scored(n_ctx) * _width(n_vocab))


def _width(n_vocab: int) -> int:
    from pyllm.evaluation.scoring import coded_width

    return coded_width(n_vocab)


def _mean(values: F64) -> Uncertain:
    n = len(values)
    return Uncertain(float(values.mean()), math.sqrt(float(values.var()) / (n - 1)) if n > 1 else 0.0)


def _exponential(of: Uncertain) -> Uncertain:
    value = math.exp(of.value)
    return Uncertain(value, value * of.error)


def _pair(of: Uncertain) -> str:
    return f"{of.value:10.6f} ± {of.error:10.6f}"
