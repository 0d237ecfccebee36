"""Pages for tests of saved ones: of sequences whose tokens and contents tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pyllm.cache import ROOT_DIGEST, Layout, Saved, SavedPage, SavedState, write_head, write_record

SIZE = 4
LAYOUT = Layout({"model": "one", "KV cache": "f16"}, SIZE, 1000)
RECURRENT = replace(LAYOUT, state_bytes=5000)


def sequence(seed: int, n: int, layout: Layout = LAYOUT, before: Sequence[SavedPage] = ()) -> list[SavedPage]:
    """`n` pages that follow each other, after those of `before`."""
    rng = np.random.default_rng(seed)
    parent = before[-1].digest if before else ROOT_DIGEST
    pages = []
    for number in range(len(before), len(before) + n):
        tokens = rng.integers(0, 1000, layout.page_size, np.int32).tobytes()
        pages.append(SavedPage(number, parent, tokens, rng.integers(0, 256, layout.page_bytes, np.uint8)))
        parent = pages[-1].digest
    return pages


def state_after(page: SavedPage, seed: int = 0) -> SavedState:
    data = np.random.default_rng(seed).integers(0, 256, RECURRENT.state_bytes, np.uint8)
    return SavedState(page.number, page.digest, data)


def content(item: Saved) -> tuple[int, bytes, bytes, bytes]:
    if isinstance(item, SavedState):
        return item.number, item.page, b"", item.data.tobytes()
    return item.number, item.parent, item.tokens, item.data.tobytes()


def write(path: Path, items: Sequence[Saved], layout: Layout = LAYOUT) -> Path:
    with open(path, "wb") as file:
        write_head(file, layout)
        for item in items:
            write_record(file, item)
    return path
