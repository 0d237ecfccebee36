"""Published pages and their checkpoints out of an executable, and into it. Only for the computing thread, between two
steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyllm.backends.base import Executable
from pyllm.cache import ROOT, ROOT_DIGEST, PagePool, SavedPage, SavedState, StatePool

_NO_KEYS = np.empty(0, np.uint8)


def copy(pool: PagePool, executable: Executable, page: int) -> SavedPage:
    """A published page with its content."""
    known = pool.published(page)
    assert known is not None, "only published pages are copied"
    before = pool.published(known.parent)
    parent = before.digest if before else ROOT_DIGEST
    data = executable.read_page(page) if executable.page_bytes else _NO_KEYS
    return SavedPage(known.number, parent, known.tokens, data)


def copy_state(pool: PagePool, states: StatePool, executable: Executable, page: int) -> SavedState:
    """The checkpoint of a published page that has one."""
    known, slot = pool.published(page), states.slot(page)
    assert known is not None, "a checkpoint is a published page's"
    assert slot is not None, "only pages with checkpoints are asked for theirs"
    return SavedState(known.number, known.digest, executable.read_slot(slot))


def bring_state(pool: PagePool, states: StatePool, executable: Executable, state: SavedState, spare: int = 0) -> bool:
    """Make a state the checkpoint of its page, in the place of the one of least use; whether the page has one now.

    `spare`: slots to leave to running sequences.
    """
    page = pool.find(state.page)
    if page is None:
        return False
    if states.has(page):
        return True
    if states.n_available <= spare:
        return False
    (slot,) = states.allocate(1)
    try:
        executable.write_slot(slot, state.data)
        states.keep(page, slot)
    finally:
        states.release(slot)
    states.fresh.pop(page, None)  # it is saved already
    return True


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
        if executable.page_bytes:
            executable.write_page(place, page.data)
    except BaseException:
        pool.release((place,))
        raise
    found = pool.publish(place, parent, np.frombuffer(page.tokens, np.int32))
    pool.fresh.pop(found, None)  # it is saved already
    return found
