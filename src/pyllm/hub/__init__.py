"""Names → files: a model's name is a path, a name of the catalog, or `hf.co/user/repo[:quant]`.

`resolve` gives the file, fetching it once where needed; `pull` fetches and verifies; `models` lists; `remove` deletes.
Nothing is fetched where `env.offline` says so. Nothing here knows what is inside a model file.
"""

from __future__ import annotations

from pyllm.hub.store import LocalModel, default_name, is_catalogued, is_remote, models, pull, remove, resolve

__all__ = ["LocalModel", "default_name", "is_catalogued", "is_remote", "models", "pull", "remove", "resolve"]
