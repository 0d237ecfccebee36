"""Settings of a server, and the flags of `pyllm serve`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllm.config.loading import Size
from pyllm.config.setting import complete, setting
from pyllm.errors import RequestError
from pyllm.records import dataclass

Aliases = tuple[tuple[str, str], ...]
"""(name, model) pairs."""
Seconds = float
"""A time; on the command line also "5m"."""

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How models are served, complete and validated."""

    models: tuple[str, ...] = setting(
        (), "Models to serve, by name or file; none named: all local ones. The first is the default."
    )
    aliases: Aliases = setting((), "A further name of a model; may be repeated.", flags=("--alias",))
    pinned: tuple[str, ...] = setting(
        (), "A model that is loaded at the start and stays; may be repeated.", flags=("--pin",), metavar="MODEL"
    )
    host: str = setting(
        "127.0.0.1",
        "Address to listen on. Others than this machine's own need `api_keys`.",
        flags=("--host",),
        metavar="ADDRESS",
    )
    port: int = setting(11500, "Port; 0: any that is free.", low=0, high=65535, flags=("--port",))
    uds: str | None = setting(
        None, "Unix socket to listen on, in place of `host` and `port`.", flags=("--uds",), metavar="PATH"
    )
    api_keys: tuple[str, ...] = setting(
        (),
        "A key that clients must send; may be repeated. Other users see what is on a command line: a file or "
        "PYLLM_API_KEY is safer.",
        flags=("--api-key",),
        metavar="KEY",
    )
    insecure: bool = setting(
        False, "Listen on an address that other machines reach, without keys.", flags=("--insecure",)
    )
    origins: tuple[str, ...] = setting(
        (),
        "Web pages that may call, such as https://chat.example; * for all; may be repeated.",
        flags=("--origin",),
        metavar="URL",
    )
    hosts: tuple[str, ...] = setting(
        (),
        "A name by which this server is called, beside its address and localhost; * for any; may be repeated. With "
        "`api_keys` any name will do.",
        flags=("--allow-host",),
        metavar="NAME",
    )
    ssl_certfile: str | None = setting(
        None, "Certificate, and those it is signed with, for HTTPS.", flags=("--ssl-certfile",), metavar="FILE"
    )
    ssl_keyfile: str | None = setting(
        None, "The certificate's private key, where it has a file of its own.", flags=("--ssl-keyfile",), metavar="FILE"
    )
    n_ctx: int | None = setting(
        None,
        "Longest prompt and answer together, of each model; default: as much as was trained and memory allows.",
        help="Context in tokens [default: as trained, as far as memory allows].",
        low=1,
        minus_one=None,
        must="1 or more",
        flags=("-c", "--ctx"),
    )
    max_seqs: int = setting(
        16, "Most requests of a model that are computed at once; further ones wait.", low=1, flags=("--max-seqs",)
    )
    max_waiting: int = setting(
        512, "Most requests of a model that wait; further ones are refused.", low=0, flags=("--max-waiting",)
    )
    max_loaded: int | None = setting(
        None,
        "Most models loaded at a time; default: as many as memory allows.",
        help="Most models loaded at a time [default: as memory allows].",
        low=1,
        flags=("--max-loaded",),
    )
    keep_alive: Seconds = setting(
        300.0,
        "Time after which an unused model is unloaded; negative: never.",
        help="Time after which an unused model is unloaded, in seconds, or 5m; -1: never  [default: 5m].",
        flags=("--keep-alive",),
    )
    load: Mapping[str, Any] = setting({}, "Further arguments of `pyllm.load`, for all models.", factory=dict)
    max_body: Size = setting(
        32 * MIB,
        "Most bytes of a request's body.",
        help="Most bytes of a request's body  [default: 32MiB].",
        low=1,
        flags=("--max-body",),
    )
    max_blob: Size = setting(
        256 << 30,
        "Most bytes of a file that a client sends, for a model that it makes.",
        help="Most bytes of a file that a client sends, for a model that it makes  [default: 256GiB].",
        low=1,
        flags=("--max-blob",),
    )
    max_tokens: int | None = setting(
        None,
        "Most tokens of an answer, whatever is asked; default: any number.",
        help="Most tokens of an answer, whatever is asked.",
        low=1,
        minus_one=None,
        flags=("--max-tokens",),
    )
    max_choices: int = setting(16, "Most answers to one prompt.", low=1)
    timeout: Seconds | None = setting(
        None,
        "Seconds after which an answer ends with what there is; default: none.",
        help="Time after which an answer ends with what there is, in seconds, or 5m.",
        low=0,
        above_low=True,
        flags=("--timeout",),
    )
    body_timeout: float = setting(60.0, "Seconds in which a request's body must arrive.", low=0, above_low=True)
    max_connections: int = setting(
        1024,
        "Most open connections and running requests; further ones are refused.",
        low=1,
        flags=("--max-connections",),
    )
    idle_timeout: float = setting(
        75.0, "Seconds after which a connection is closed on which no request comes.", low=0, above_low=True
    )
    ping_every: float = setting(
        10.0, "Seconds of silence after which a waiting client hears something.", low=0, above_low=True
    )
    grace: float = setting(
        1.0,
        "Seconds for which the status waits for what might be wrong; after them a stream's headers are sent.",
        low=0,
    )
    drain: Seconds = setting(
        30.0,
        "Seconds for which running requests may go on when the server is told to end.",
        help="Time for which running requests may go on when the server is told to end  [default: 30].",
        low=0,
        flags=("--drain",),
    )
    log_json: bool = setting(False, "Write the log as lines of JSON.", flags=("--log-json",))
    log_prompts: bool = setting(False, "Write prompts and answers into the log.", flags=("--log-prompts",))
    page: bool = setting(True, "Serve the chat page at /.", help="Serve no chat page.", flags=("--no-page",))

    def __post_init__(self) -> None:
        complete(self)
        if not all(key.strip() and key.isascii() and key.isprintable() for key in self.api_keys):
            raise RequestError("an API key must be printable ASCII, and not empty")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise RequestError("ssl_keyfile needs ssl_certfile")
