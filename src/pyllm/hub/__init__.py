"""Models by name: a path, a name of the catalog, `hf.co/user/repo[:quant]`, or a named model.

`resolve` returns the file, fetching it once if needed; `pull` fetches and verifies; `models` lists; `remove` deletes;
`create` makes a named model from a Modelfile, which `find_named` gives. Nothing is fetched where `env.offline` forbids
it. This package does not read model files.
"""

from __future__ import annotations

from pyllm.hub.named import Named
from pyllm.hub.named import find as find_named
from pyllm.hub.store import (
    LocalModel,
    copy,
    create,
    default_name,
    is_catalogued,
    is_remote,
    models,
    pull,
    remove,
    resolve,
)

__all__ = [
    "LocalModel",
    "Named",
    "copy",
    "create",
    "default_name",
    "find_named",
    "is_catalogued",
    "is_remote",
    "models",
    "pull",
    "remove",
    "resolve",
]
