"""The models that there are: listed, shown, loaded, copied, deleted; and the server itself."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.responses import Response

from pyllm import hub
from pyllm.errors import HubError
from pyllm.hub import catalog
from pyllm.hub import named as naming
from pyllm.hub.modelfile import Modelfile, parameter_lines, text_of
from pyllm.hub.names import parts
from pyllm.server.api import Access, Exchange
from pyllm.server.apis._ollama import facts
from pyllm.server.apis._ollama.form import API, ModelBody, moment
from pyllm.server.bodies import Body
from pyllm.server.known import Known
from pyllm.server.live import Reply
from pyllm.server.models import Models, Served
from pyllm.server.problems import ProblemError, refuse

VERSION = "0.12.11"
"""The version of Ollama whose API this is: clients look for what they need by it."""
_FOR_GOOD = 100 * 365 * 86400.0


class ShowBody(ModelBody):
    """A model to show."""

    verbose: bool = False


class CopyBody(Body):
    """A model, and its further name."""

    source: str
    destination: str


@API.get("/api/version", access=Access.ANYONE)
async def version(_: Exchange) -> Response:
    """The version of the API, and pyllm's own."""
    from pyllm import __version__

    return Reply({"version": VERSION, "pyllm": __version__})


@API.get("/api/tags")
async def tags(exchange: Exchange) -> Response:
    """All models."""
    shelf = exchange.house.models.shelf

    def found() -> list[dict[str, Any]]:
        aliases = [replace(known, name=alias) for alias, known in shelf.aliases()]
        return [_listed(known) for known in (*shelf.all(), *aliases)]

    return Reply({"models": await asyncio.to_thread(found)})


def _listed(known: Known) -> dict[str, Any]:
    return {
        "name": known.name,
        "model": known.name,
        "modified_at": moment(known.created),
        "size": known.size,
        "digest": facts.digest(known),
        "details": facts.details(known),
    }


@API.get("/api/ps")
async def ps(exchange: Exchange) -> Response:
    """Loaded models, by the names that they were asked for."""
    models = exchange.house.models

    def found() -> list[dict[str, Any]]:
        rows = []
        for served in models.loaded:
            expires = moment(time.time() + min(served.seconds_left, _FOR_GOOD))
            needs = served.plan.needs
            on_gpu = sum(n for device, n in needs.items() if device != "cpu")
            for known in _asked_for(models, served):
                rows.append(
                    {
                        **{k: v for k, v in _listed(known).items() if k != "modified_at"},
                        "size": sum(needs.values()),
                        "expires_at": expires,
                        "size_vram": on_gpu,
                        "context_length": served.plan.n_ctx,
                    }
                )
        return rows

    return Reply({"models": await asyncio.to_thread(found)})


def _asked_for(models: Models, served: Served) -> list[Known]:
    """A loaded model by the names that it was asked for, as far as they are still there."""
    found = []
    for name in sorted(served.names):
        with suppress(ProblemError):
            found.append(models.shelf.find(name))
    return found or [served.known]


@API.post("/api/show")
async def show(exchange: Exchange) -> Response:
    """What is known of a model."""
    body = exchange.read(ShowBody)
    known = exchange.house.models.shelf.find(body.called)
    return Reply(await asyncio.to_thread(_shown, known, body.verbose))


def _shown(known: Known, whole: bool) -> dict[str, Any]:
    capabilities, template = facts.capabilities(known)
    made = known.named.modelfile() if known.named is not None else Modelfile(base_name(known))
    # Paths of this machine are not told.
    made = replace(made, base=Path(made.base).name, adapters=tuple(Path(adapter).name for adapter in made.adapters))
    info = facts.metadata(known, whole)
    licence = "\n".join(made.licences) or str(info.get("general.license") or "")
    return {
        "modelfile": text_of(made),
        "parameters": "\n".join(parameter_lines(made.parameters)),
        "template": template,
        "system": made.system,
        "license": licence,
        "messages": [{"role": role, "content": content} for role, content in made.messages],
        "details": facts.details(known),
        "model_info": info,
        "capabilities": capabilities,
        "modified_at": moment(known.created),
    }


@API.post("/api/copy", access=Access.OWNERS)
async def copy(exchange: Exchange) -> Response:
    """Another name for a model; nothing else is copied."""
    body = exchange.read(CopyBody)
    shelf = exchange.house.models.shelf
    known = shelf.find(body.source)
    name = checked_name(body.destination, "destination")

    async def made() -> dict[str, str]:
        await keep(exchange, await asyncio.to_thread(naming.make, name, Modelfile(base_name(known)), base_of(known)))
        return {"status": "success"}

    return await exchange.whole(made())


@API.route(("DELETE",), "/api/delete", access=Access.OWNERS)
async def delete(exchange: Exchange) -> Response:
    """Delete a model: of a named one its settings, else its files in the folder of models."""
    body = exchange.read(ModelBody)
    models = exchange.house.models
    known = models.shelf.find(body.called)
    try:
        if known.named is None:
            await models.unload(known.name)
        await asyncio.to_thread(hub.remove, known.name)
    except HubError as error:
        raise refuse(f"{known.name} is not deleted: {error}", "model", status=403, code="not_permitted") from None
    exchange.house.models.shelf.removed(known)
    return Reply({"status": "success"})


def checked_name(name: str, param: str) -> str:
    """A name for a model. Raises ProblemError."""
    try:
        return naming.name_of(name)
    except HubError as error:
        raise refuse(str(error), param) from None


def base_of(known: Known) -> hub.Named | list[Path]:
    """What a named model that is made of a model is made of."""
    return known.named if known.named is not None else parts(known.path)


def base_name(known: Known) -> str:
    """What FROM says of a model: a name that can be fetched, or the file."""
    return known.name if hub.is_remote(known.name) or catalog.load().find(known.name) else str(known.path)


async def keep(exchange: Exchange, made: hub.Named) -> None:
    """Keep a named model, and serve it."""
    await asyncio.to_thread(naming.save, made)
    exchange.house.models.shelf.made(made)
