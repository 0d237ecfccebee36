"""Files that belong to another one and are found by name: the parts of a split model, the shards of a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path


def beside(path: Path, name: str) -> Path | None:
    """The file called `name` in the folder of `path`, else one whose name differs in case only; None if none is there.

    Copies by way of other systems change the case of names, most often of endings ("model-00001-of-00002.GGUF").
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
