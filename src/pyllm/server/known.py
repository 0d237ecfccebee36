"""The models that a server may load: those that it was given, or all local ones; and what clients call them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyllm import hub
from pyllm.hub.names import quant
from pyllm.server.problems import Problem, ProblemError
from pyllm.server.settings import ServeOptions


@dataclass(frozen=True, slots=True)
class Known:
    """A model that can be loaded."""

    name: str
    path: Path
    """Its file; the first of a split model."""
    size: int
    """Bytes of its files."""
    format: str
    """"Q4_K_M", or "" where that is not known."""
    created: int
    """When its file was made, Unix seconds."""


class Shelf:
    """Finds models by the names that clients send."""

    def __init__(self, options: ServeOptions) -> None:
        """Raises HubError where a model that is to be served cannot be found or fetched."""
        self._given = [self._one(name) for name in options.models]
        self._aliases = {alias.lower(): name for alias, name in options.aliases}
        for alias, name in options.aliases:
            if self._find(name) is None:
                raise hub_error(alias, name, self.names())

    def all(self) -> list[Known]:
        """All models, the default first."""
        if self._given:
            return list(self._given)
        return [_local(model) for model in hub.models() if model.path is not None]

    def aliases(self) -> list[tuple[str, Known]]:
        """Further names with their models."""
        found = ((alias, self._find(name)) for alias, name in self._aliases.items())
        return [(alias, known) for alias, known in found if known is not None]

    def names(self) -> list[str]:
        """All names, aliases included."""
        return [*(known.name for known in self.all()), *self._aliases]

    def find(self, name: str) -> Known:
        """The model of a name, "" for the default. Raises ProblemError (404) with the names that there are."""
        known = self._find(self._aliases.get(name.strip().lower(), name))
        if known is None:
            names = self.names()
            there = ", ".join(names[:20]) if names else "none; `pyllm pull NAME` fetches one"
            raise ProblemError(
                Problem(404, "model_not_found", f"there is no model {name[:200]!r} here; there are: {there}", "model")
            )
        return known

    def _find(self, name: str) -> Known | None:
        models = self.all()
        if not name:
            return models[0] if models else None
        wanted = _folded(name)
        for known in models:
            if wanted in (_folded(known.name), _folded(known.path.name), _folded(known.path.stem)):
                return known
        return None

    @staticmethod
    def _one(name: str) -> Known:
        path = hub.resolve(name)
        here = next((m for m in hub.models() if m.path == path), None)
        if here is not None:
            return _local(here)
        found = path.stat()
        return Known(path.stem, path, found.st_size, quant(path.name), int(found.st_mtime))


def hub_error(alias: str, name: str, names: Sequence[str]) -> Exception:
    """The error of an alias of nothing."""
    from pyllm.errors import HubError

    return HubError(f"the alias {alias} is of {name}, which is not served; there are {', '.join(names) or 'no models'}")


def _local(model: hub.LocalModel) -> Known:
    assert model.path is not None
    return Known(model.name, model.path, model.size or 0, model.format, int(model.path.stat().st_mtime))


def _folded(name: str) -> str:
    """A name as it is compared: Ollama's tag "latest" says nothing."""
    return name.strip().lower().removesuffix(":latest")
