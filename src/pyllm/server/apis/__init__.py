"""The APIs: a module each, with its `API`; found by their files."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from pyllm.server.api import Api


@cache
def all_apis() -> tuple[Api, ...]:
    """All APIs; OpenAI's first, whose form errors have where no API is asked."""
    names = sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    modules = [import_module(f"{__name__}.{name}") for name in names]
    found = [module.API for module in modules if hasattr(module, "API")]
    return tuple(sorted(found, key=lambda api: api.name != "openai"))
