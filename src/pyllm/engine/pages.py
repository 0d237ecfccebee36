"""Published pages out of an executable, and into it. Only for the computing thread, between two steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyllm.backends.base import Executable
from pyllm.cache import ROOT, ROOT_DIGEST, PagePool, SavedPage


def copy(pool: PagePool, executable: Executable, page: int) -> SavedPage:
    """A published page with its content."""
    known = pool.published(page)
    assert known is not None, "only published pages are copied"
    before = pool.published(known.parent)
    parent = before.digest if before else ROOT_DIGEST
    return SavedPage(known.number, parent, known.tokens, executable.read_page(page))


def bring(pool: PagePool, executable: Executable, pages: Sequence[SavedPage], spare: int = 0) -> int:
    """Publish pages, each after the one before it in `pages`, for whoever wants them; returns how many there are now.

    They take the place of what was used longest ago. `spare`: pages to leave to running sequences. Pages whose
    beginning is not published, or for which there is no place, are left out.
    """
    before = pool.find(pages[0].parent) if pages[0].parent != ROOT_DIGEST else ROOT
    if before is None:
        return 0
    held = pool.path(before)
    pool.acquire(held)
    try:
        for page in pages:
            known = pool.find(page.digest)
            if known is not None:
                pool.acquire((known,))
            elif pool.n_available > spare:
                known = _publish(pool, executable, page, held[-1] if held else ROOT)
            else:
                break
            held.append(known)
    finally:
        pool.release(held)
    return len(held) - len(pool.path(before))


def _publish(pool: PagePool, executable: Executable, page: SavedPage, parent: int) -> int:
    (place,) = pool.allocate(1)
    try:
        executable.write_page(place, page.data)
    except BaseException:
        pool.release((place,))
        raise
    found = pool.publish(place, parent, np.frombuffer(page.tokens, np.int32))
    pool.fresh.pop(found, None)  # it is saved already
    return found
