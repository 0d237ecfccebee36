"""Statistics of an importance matrix, by weight and by layer.

They are those of llama.cpp's imatrix tool (--show-statistics), over the mean squared inputs of all columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.imatrix import ImportanceMatrix
from pyllm.records import dataclass

_BLOCK = re.compile(r"blk\.(\d+)\.")
_ACTIVE = 1e-5
"""Mean squares up to this count as zero."""


@dataclass(frozen=True, slots=True)
class WeightStatistics:
    """Statistics over the columns of one weight (of all experts that saw tokens); m is the mean of a column's squared
    inputs."""

    name: str
    layer: int | None
    """Number of its block, if any."""
    n: int
    """Columns."""
    total: float
    """Sum of m."""
    least: float
    most: float
    mean: float
    deviation: float
    active: float
    """Share of columns with non-zero m."""
    entropy: float
    """Entropy of m as a distribution over columns, in bits."""
    outliers: float
    """Share of columns whose m is more than a standard deviation above the mean."""
    similarity: float | None
    """Cosine of its sums and those of the same weight one layer before, if there is one."""
    n_unseen: int
    """Experts that no token reached."""

    @property
    def entropy_share(self) -> float:
        """Entropy divided by its maximum for this number of columns."""
        return self.entropy / float(np.log2(self.n)) if self.n > 1 else 0.0


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Means over a layer's weights, weighted by their number of columns."""

    layer: int
    total: float
    outliers: float
    similarity: float


def weight_statistics(matrix: ImportanceMatrix) -> list[WeightStatistics]:
    """Statistics of each weight with data, by layer, then by name; weights outside of blocks last."""
    found = [_describe(matrix, name) for name in matrix.sums]
    return sorted((s for s in found if s), key=lambda s: (s.layer is None, s.layer or 0, s.name))


def layer_statistics(weights: Sequence[WeightStatistics]) -> list[LayerStatistics]:
    """Statistics of each block, in order."""
    out = []
    for layer in sorted({w.layer for w in weights if w.layer is not None}):
        own = [w for w in weights if w.layer == layer]
        columns = sum(w.n for w in own)
        means = (
            sum(w.n * value for w, value in zip(own, values, strict=True)) / columns
            for values in (
                [w.total for w in own],
                [w.outliers for w in own],
                [w.similarity or 0.0 for w in own],
            )
        )
        out.append(LayerStatistics(layer, *means))
    return out


def _describe(matrix: ImportanceMatrix, name: str) -> WeightStatistics | None:
    sums = matrix.sums[name]
    seen = sums.counts > 0
    if not seen.any() or not sums.squares.size:
        return None
    m = (sums.squares[seen] / sums.counts[seen][:, None]).ravel()
    total, deviation = float(m.sum()), float(m.std())
    p = m[m > 0] / total if total > 0 else m[:0]
    found = _BLOCK.search(name)
    return WeightStatistics(
        name=name,
        layer=int(found[1]) if found else None,
        n=m.size,
        total=total,
        least=float(m.min()),
        most=float(m.max()),
        mean=float(m.mean()),
        deviation=deviation,
        active=float(np.mean(m > _ACTIVE)),
        entropy=float(-(p * np.log2(p)).sum()),
        outliers=float(np.mean(m - m.mean() > deviation)) if deviation > 0 else 0.0,
        similarity=_similarity(matrix, name, found),
        n_unseen=int(np.sum(~seen)),
    )


def _similarity(matrix: ImportanceMatrix, name: str, found: re.Match[str] | None) -> float | None:
    if found is None:
        return None
    before = matrix.sums.get(f"{name[: found.start(1)]}{int(found[1]) - 1}{name[found.end(1) :]}")
    own = matrix.sums[name].squares
    if before is None or before.squares.shape != own.shape:
        return None
    return _cosine(own.ravel(), before.squares.ravel())


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else 0.0
