"""Models by name: a path, a name of the catalog, or `hf.co/user/repo[:quant]`.

`resolve` returns the file, fetching it once if needed; `pull` fetches and verifies; `models` lists; `remove` deletes.
Nothing is fetched where `env.offline` forbids it. This package does not read model files.
"""

from __future__ import annotations

from pyllm.hub.store import LocalModel, default_name, is_catalogued, is_remote, models, pull, remove, resolve

__all__ = ["LocalModel", "default_name", "is_catalogued", "is_remote", "models", "pull", "remove", "resolve"]
