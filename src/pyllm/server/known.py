"""The models that a server may load: those that it was given, or all local ones; and what clients call them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from pyllm import hub
from pyllm.config.serving import ServeOptions
from pyllm.errors import HubError
from pyllm.hub import catalog
from pyllm.hub import named as naming
from pyllm.hub.names import quant
from pyllm.server.logs import say
from pyllm.server.problems import Problem, ProblemError


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
    named: hub.Named | None = field(default=None, compare=False)
    """Its settings, where it is a named model."""


class Shelf:
    """Finds models by the names that clients send."""

    def __init__(self, options: ServeOptions) -> None:
        """Raises HubError where a model that is to be served cannot be found or fetched."""
        self._given = [self._one(name) for name in options.models]
        self._fetched: list[Known] = []
        """Models that were fetched while the server runs, where models were given."""
        self._seen: list[Known] = []
        self._made: set[str] = set()
        """Named models that were made while the server runs."""
        self._aliases: dict[str, str] = {}
        for alias, name in options.aliases:
            found = self._own(name)
            if found is None:
                there = ", ".join(self.names()) or "no models"
                raise HubError(f"the alias {alias} is of {name}, which is not served; there are {there}")
            self._aliases[alias.lower()] = found.name
        self.pinned = [self._pin(name) for name in options.pinned]
        """Models that are loaded at the start and stay."""

    def _pin(self, name: str) -> Known:
        known = self._own(name)
        if known is None and self._given:
            known = self._one(name)
            self._given.append(known)
        if known is None:
            raise HubError(f"{name} cannot be pinned, for it is not served; there are {', '.join(self.names())}")
        return known

    def _own(self, name: str) -> Known | None:
        """A model by a name that the server's owner typed, which may be its file."""
        path = Path(name).absolute()
        return self._find(name) or next((known for known in self._files() if known.path.absolute() == path), None)

    def all(self) -> list[Known]:
        """All models, the default first. Where models were given, those that are named and made of them, too."""
        files = self._files()
        names = {known.name for known in files}
        return [*files, *(_of_named(n) for n in naming.all_named() if self._serves(n) and n.name not in names)]

    @property
    def given(self) -> list[Known]:
        """The models that the server was given; none where it serves all."""
        return list(self._given)

    def made(self, named: hub.Named) -> Known:
        """Serve a named model that a client made."""
        self._made.add(_folded(named.name))
        return _of_named(named)

    def fetched(self, name: str) -> None:
        """Serve a model that a client fetched. Raises HubError where it is not here."""
        known = self._one(name)
        if self._given and known not in self._files():
            self._fetched.append(known)

    def removed(self, known: Known) -> None:
        """A client deleted a model."""
        self._made.discard(_folded(known.name))
        self._given = [given for given in self._given if given != known]
        self._fetched = [fetched for fetched in self._fetched if fetched != known]

    def weights(self, known: Known) -> Known:
        """What is loaded for a model: its base, which others may share, unless it has adapters."""
        if known.named is None or known.named.adapters:
            return known
        base = next((file for file in self._files(fresh=False) if file.path == known.path), None)
        return base or replace(known, name=known.path.stem, named=None)

    def _files(self, fresh: bool = True) -> list[Known]:
        """Models that have no settings of their own; those of the last look at the disk do, unless `fresh`."""
        if self._given:
            return [*self._given, *self._fetched]
        if fresh or not self._seen:
            self._seen = [_local(m) for m in hub.models() if m.path is not None and m.named is None]
        return list(self._seen)

    def _serves(self, named: hub.Named) -> bool:
        if not self._given or _folded(named.name) in self._made:
            return True
        return any(known.path == named.path for known in self._given)

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
        if not name:
            return next(iter(self.all()), None)
        entry = catalog.load().find(name.strip())  # a family's name stands for its first model
        wanted = {_folded(name), entry.name if entry is not None else ""}
        if (named := hub.find_named(name)) is not None and self._serves(named):
            return _of_named(named)
        # A model that was seen before is looked for first: each request asks.
        for fresh in (False, True):
            for known in self._files(fresh):
                names = (known.name, known.path.name, known.path.stem)
                if not wanted.isdisjoint(map(_folded, names)) and (fresh or known.path.exists()):
                    return known
        return None

    @staticmethod
    def _one(name: str) -> Known:
        if (named := hub.find_named(name)) is not None:
            named.check()
            return _of_named(named)
        path = hub.resolve(name)
        here = next((m for m in hub.models() if m.path == path and m.named is None), None)
        if here is not None:
            return _local(here)
        found = path.stat()
        return Known(path.stem, path, found.st_size, quant(path.name), int(found.st_mtime))


def remove_unused() -> None:
    """Delete files that clients sent and no named model has."""
    if gone := naming.remove_unused():
        say("removed files that were sent, and no model has", files=[path.name for path in gone])


def _local(model: hub.LocalModel) -> Known:
    assert model.path is not None
    return Known(model.name, model.path, model.size or 0, model.format, int(model.path.stat().st_mtime))


def _of_named(named: hub.Named) -> Known:
    size = sum(file.size for file in (*named.files, *named.adapters))
    return Known(named.name, named.path, size, quant(named.path.name), named.created, named)


def _folded(name: str) -> str:
    """A name as it is compared: Ollama's tag "latest" says nothing."""
    return name.strip().lower().removesuffix(":latest")
