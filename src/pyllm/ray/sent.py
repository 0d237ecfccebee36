"""A request and its response on their way between the front and a replica."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyllm.config.serving import ServeOptions
from pyllm.ray.prefixes import Blocks

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that the front has checked."""

    id: str
    """By which both logs call it."""
    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    model: str
    """The model's name as it was asked for; "" for the default."""
    blocks: Blocks
    """What its prompt begins with."""


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a response."""

    status: int
    headers: Headers
    body: bytes
    """As much as is there already: all of it, where the headers say its length."""


def shared(model: str) -> str:
    """A model's name as names are compared."""
    return model.strip().lower()


def of_replica(options: ServeOptions, threads: int) -> ServeOptions:
    """The options of a replica: the front has checked keys, hosts and origins."""
    load = {"n_threads": threads, **options.load}
    return replace(options, api_keys=(), hosts=("*",), origins=("*",), load=load)


def of_front(options: ServeOptions) -> ServeOptions:
    """The options of a front, which has no models and asks for no device."""
    return replace(options, models=(), aliases=(), pinned=(), load={"backend": "reference"})
