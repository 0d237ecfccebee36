"""The prefix cache in files: what it depends on, `LLM.save_cache`, `LLM.load_cache`, and a folder for `cache_dir`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import pyllm
from pyllm import env
from pyllm.cache import CacheFolder, Layout, SavedFile, SavedPage, SavedState, write_head, write_record
from pyllm.config import LoadSettings
from pyllm.engine import pages
from pyllm.errors import CacheError, PyllmWarning
from pyllm.records import dataclass
from pyllm.temporary import TemporaryFile, remove_leftovers

if TYPE_CHECKING:
    from pyllm.engine import Engine
    from pyllm.gguf import GGUFFile
    from pyllm.llm.adapters import Adapter
    from pyllm.llm.loading import Compiled

_AT_ONCE = 1 << 24
"""Bytes that are copied between two steps."""


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """What a file of the prefix cache gave or took."""

    n_pages: int
    n_tokens: int
    """Tokens of prompts and answers that need not be computed again; beginnings in common count once."""


def layout_of(file: GGUFFile, adapters: Sequence[Adapter], compiled: Compiled) -> Layout:
    """What pages of a loaded model depend on. Raises CacheError where it gives none."""
    executable, program = compiled.executable, compiled.architecture.program
    if (program.kv and not executable.page_bytes) or (program.slots and not executable.slot_bytes):
        what = "recurrent states on devices that give none" if program.slots else "devices that give no pages"
        raise CacheError(f"the prefix cache of a model with {what} is kept in memory alone")
    identity = {
        "pyllm": pyllm.__version__,
        "model": file.fingerprint(),
        "adapters": ", ".join(adapter.fingerprint() for adapter in adapters) or "none",
        "program": blake2b(repr(program).encode(), digest_size=16).hexdigest(),
        "KV cache": executable.options.kv_dtype,
        "device": executable.page_format,
    }
    return Layout(identity, executable.options.page_size, executable.page_bytes, executable.slot_bytes)


def folder_of(settings: LoadSettings, file: GGUFFile, adapters: Sequence[Adapter], compiled: Compiled) -> CacheFolder:
    """The folder that settings name. Raises CacheError."""
    assert settings.cache_dir is not None
    layout = layout_of(file, adapters, compiled)
    return CacheFolder(env.user_path(settings.cache_dir), settings.cache_size, layout)


def save(engine: Engine, layout: Layout, path: Path, prompts: Iterable[Sequence[int]] | None) -> CacheCounts:
    """Write the pages that are in memory, or those of prompts, to a file. Raises CacheError."""
    digests = engine.call(partial(_digests, engine, prompts))
    at_once = _at_once(layout)
    n = 0
    try:
        remove_leftovers(path.parent)
        temporary = TemporaryFile(path.parent)
        try:
            with open(temporary.fileno(), "wb", closefd=False) as out:
                write_head(out, layout)
                for start in range(0, len(digests), at_once):
                    copied = engine.call(partial(_copies, engine, digests[start : start + at_once]))
                    n += len(copied)
                    for page in copied:
                        write_record(out, page)
                        state = engine.call(partial(_state, engine, page)) if layout.state_bytes else None
                        if state is not None:
                            write_record(out, state)
            temporary.sync()
            temporary.place(path)
        except BaseException:
            temporary.remove()
            raise
    except OSError as error:
        raise CacheError(f"{path} cannot be written: {error.strerror or error}") from error
    return CacheCounts(n, n * layout.page_size)


def load(engine: Engine, layout: Layout, path: Path) -> CacheCounts:
    """Read a file's pages into memory, as many as fit; damage is a warning. Raises CacheError."""
    n, lasts = 0, []
    try:
        with SavedFile(path, layout) as file:
            room = engine.call(lambda: engine.pool.n_available - len(engine.scheduler.running))
            for run in _runs(file, _at_once(layout)):
                if isinstance(run, SavedState):
                    engine.call(partial(_bring_state, engine, run))
                    continue
                if len(run) > room:
                    run = run[:room]
                if not run:
                    break
                found = engine.call(partial(pages.bring, engine.pool, engine.executable, run))
                n, room = n + found, room - found
                if found:
                    lasts.append(run[found - 1].digest)
            damage = file.damage
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}") from error
    engine.call(partial(_use, engine, lasts))
    if damage:
        used = f"{n} of its pages are used" if n else "it is not used"
        warnings.warn(f"the prefix cache {path} is damaged: {damage}; {used}", PyllmWarning, stacklevel=4)
    return CacheCounts(n, n * layout.page_size)


def _at_once(layout: Layout) -> int:
    """Pages that are copied between two steps."""
    return max(1, _AT_ONCE // (layout.page_bytes + 4 * layout.page_size))


def _runs(file: SavedFile, most: int) -> Iterator[list[SavedPage] | SavedState]:
    """Pages that follow each other, at most so many at once, and states after their pages."""
    run: list[SavedPage] = []
    for item in file:
        if run and (isinstance(item, SavedState) or len(run) == most or item.parent != run[-1].digest):
            yield run
            run = []
        if isinstance(item, SavedState):
            yield item
        else:
            run.append(item)
    if run:
        yield run


# In the computing thread.


def _digests(engine: Engine, prompts: Iterable[Sequence[int]] | None) -> list[bytes]:
    """The pages to save, each after the one before it."""
    pool = engine.pool
    if prompts is None:
        found = pool.recent()
    else:
        each = (np.asarray(tokens, np.int32) for tokens in prompts)
        found = list(dict.fromkeys(page for tokens in each for page in pool.match(tokens, pool.n_pages)))
    return [known.digest for page in found if (known := pool.published(page)) is not None]


def _copies(engine: Engine, digests: Sequence[bytes]) -> list[SavedPage]:
    """Copies of those pages that are still there."""
    found = (engine.pool.find(digest) for digest in digests)
    return [pages.copy(engine.pool, engine.executable, page) for page in found if page is not None]


def _state(engine: Engine, page: SavedPage) -> SavedState | None:
    """A copy of a page's checkpoint, if both are still there."""
    found, states = engine.pool.find(page.digest), engine.scheduler.states
    if found is None or states is None or not states.pool.has(found):
        return None
    return pages.copy_state(engine.pool, states.pool, engine.executable, found)


def _bring_state(engine: Engine, state: SavedState) -> None:
    """Keep a file's state where there is a free slot: the file begins with what was used last."""
    states = engine.scheduler.states
    if states is not None and states.pool.n_free > states.spare:
        pages.bring_state(engine.pool, states.pool, engine.executable, state)


def _use(engine: Engine, lasts: Sequence[bytes]) -> None:
    """Count the first sequences of a file as those used last, as they were where it was saved."""
    pool = engine.pool
    for digest in reversed(lasts):
        if (last := pool.find(digest)) is not None:
            held = pool.path(last)
            pool.acquire(held)
            pool.release(held)
