"""`ServeOptions`: all settings of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyllm.arguments import settle

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Settings of `pyllm serve`."""

    models: tuple[str, ...] = ()
    """Models to serve, by name or file; empty: all local ones. The first is the default."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Further names: (name, model)."""
    pinned: tuple[str, ...] = ()
    """Models that are loaded at the start and stay."""
    host: str = "127.0.0.1"
    port: int = 11500
    uds: str | None = None
    """Path of a unix socket, in place of host and port."""
    api_keys: tuple[str, ...] = ()
    """Keys that clients must send; empty: none."""
    insecure: bool = False
    """Listen on addresses other than this machine's without keys."""
    origins: tuple[str, ...] = ()
    """Web pages that may call, by origin: https://chat.example."""
    hosts: tuple[str, ...] = ()
    """Names by which this server is called, beside its address and localhost; with keys any name will do."""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    n_ctx: int | None = None
    """Longest prompt and answer together, of each model; None: as much as was trained and memory allows."""
    max_seqs: int = 16
    """Most sequences of a model that share a step; further requests wait."""
    max_waiting: int = 512
    """Most requests of a model that wait; further ones are refused."""
    max_loaded: int | None = None
    """Most models loaded at a time; None: as many as fit."""
    keep_alive: float = 300.0
    """Seconds after which an unused model is unloaded; negative: never."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `pyllm.load`, for all models."""
    max_body: int = 32 * MIB
    """Most bytes of a request's body."""
    max_blob: int = 256 << 30
    """Most bytes of a file that a client sends, for a model that it makes."""
    max_tokens: int | None = None
    """Most tokens of an answer, whatever is asked; None: any number."""
    max_choices: int = 16
    """Most answers to one prompt."""
    timeout: float | None = None
    """Seconds after which an answer ends with what there is; None: never."""
    body_timeout: float = 60.0
    """Seconds in which a request's body must arrive."""
    max_connections: int = 1024
    ping_every: float = 10.0
    """Seconds of silence after which a waiting client hears something."""
    grace: float = 1.0
    """Seconds for which the status waits for what might be wrong; after them a stream's headers are sent."""
    drain: float = 30.0
    """Seconds for which running requests may go on when the server is told to stop."""
    log_json: bool = False
    log_prompts: bool = False
    """Write prompts and answers into the log."""
    page: bool = True
    """Serve the chat page."""

    def __post_init__(self) -> None:
        settle(self)
