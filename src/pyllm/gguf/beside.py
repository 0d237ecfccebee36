"""Files found by name beside another one: the parts of a split model, the shards of a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path


def beside(path: Path, name: str) -> Path | None:
    """The file `name` in the folder of `path`, or one whose name differs only in case; None if there is none.

    Copies through other systems change the case of names, mostly of suffixes ("model-00001-of-00002.GGUF").
    """
    exact = path.with_name(name)
    if exact.is_file():
        return exact
    try:
        entries = sorted(os.listdir(path.parent))
    except OSError:
        return None
    wanted = name.casefold()
    found = (path.with_name(entry) for entry in entries if entry.casefold() == wanted)
    return next((file for file in found if file.is_file()), None)
