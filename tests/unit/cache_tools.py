"""Pages for tests of saved ones: of sequences whose tokens and contents tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyllm.cache import ROOT_DIGEST, Layout, SavedPage, write_head, write_page

SIZE = 4
LAYOUT = Layout({"model": "one", "KV cache": "f16"}, SIZE, 1000)


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


def content(page: SavedPage) -> tuple[int, bytes, bytes, bytes]:
    return page.number, page.parent, page.tokens, page.data.tobytes()


def write(path: Path, pages: Sequence[SavedPage], layout: Layout = LAYOUT) -> Path:
    with open(path, "wb") as file:
        write_head(file, layout)
        for page in pages:
            write_page(file, page)
    return path
