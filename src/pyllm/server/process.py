"""Runs the server in this process until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import uvicorn

from pyllm.config.serving import ServeOptions
from pyllm.errors import RequestError
from pyllm.server.app import create_app
from pyllm.server.connection import connection_of
from pyllm.server.house import House, make_house
from pyllm.server.logs import say, to_stream
from pyllm.server.safety import MAX_HEAD, check_address

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(options: ServeOptions, ready: Callable[[str, Sequence[str]], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C: then new requests are refused and running ones end, up to `options.drain`
    seconds; a second signal ends them at once. `ready`: called with the address and the models' names when the server
    listens.

    Raises RequestError (an address that is taken, or open to a network without keys), HubError.
    """
    check_address(options)
    with to_stream(options.log_json):
        house = make_house(options)
        server = Running(house, patience=3.0)
        names = house.models.shelf.names()
        say("listening", address=server.address, models=names)
        if ready is not None:
            ready(server.address, names)
        server.run()


class Running:
    """A server with its socket."""

    def __init__(self, house: House, patience: float | None = None) -> None:
        """Begin to listen; requests are answered from `run` on. `patience`: seconds for which a loading that does not
        end keeps the process from ending. Raises RequestError."""
        options = house.options
        self._house = house
        self._listener = _listen(options)
        self.address = _address(options, self._listener)
        """URL of the server."""
        config = uvicorn.Config(
            create_app(house),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
            http=connection_of(options.idle_timeout),
            timeout_keep_alive=options.idle_timeout,  # type: ignore[arg-type]  # which may be a part of a second
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=MAX_HEAD,
            ws="none",
            lifespan="on",
            limit_concurrency=options.max_connections + 1,  # uvicorn counts the connection that asks, too
        )
        try:
            config.load()
        except OSError as error:  # an SSLError, too
            self._listener.close()
            reason = error.strerror or str(error)
            raise RequestError(f"cannot use the certificate {options.ssl_certfile}: {reason}") from None
        self._server = _Server(config, house, patience)

    @property
    def listens(self) -> bool:
        """Whether requests are answered."""
        return self._server.started

    def run(self) -> None:
        """Answer requests until the end."""
        try:
            self._server.run(sockets=[self._listener])
        finally:
            self._listener.close()
            if self._house.options.uds is not None:
                with suppress(OSError):
                    os.unlink(self._house.options.uds)

    def end(self, at_once: bool = False) -> None:
        """End as a signal does, from any thread; `at_once`: as the second one does."""
        for _ in range(2 if at_once else 1):
            self._server.end()


class _Server(uvicorn.Server):
    """uvicorn, whose end is drained and leaves exit code 0."""

    def __init__(self, config: uvicorn.Config, house: House, patience: float | None) -> None:
        super().__init__(config)
        self._house = house
        self._patience = patience
        self._ending: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        self._loop = asyncio.get_running_loop()
        is_main = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in _SIGNALS if is_main}
        for number in before:
            signal.signal(number, lambda *_: self.end())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._loop = None

    def end(self) -> None:
        """A signal came."""
        if (loop := self._loop) is not None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._drain())
        else:
            self.force_exit = self.should_exit = True
            self._exit_soon(1)
            self._house.cut_off()

    def _exit_soon(self, code: int) -> None:
        """End the process after a while, whatever a model's loading still does: threads cannot be ended."""
        if self._patience is not None:
            last = threading.Timer(self._patience, os._exit, (code,))
            last.daemon = True
            last.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves this out then, and the models' threads would go on
            await self.lifespan.shutdown()

    async def _drain(self) -> None:
        say("ending", requests=len(self._house.busy))
        for server in getattr(self, "servers", ()):
            server.close()
        cut = await self._house.drain(self._house.options.drain)
        if cut:
            say("cut off", requests=cut)
        if self._house.models.loading:
            self._exit_soon(0)
        self.should_exit = True


def _listen(options: ServeOptions) -> socket.socket:
    """The listening socket. Raises RequestError."""
    if options.uds is not None:
        return _listen_unix(options.uds)
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = found[0]
        listener = socket.socket(family, kind, number)
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise RequestError(
            f"cannot listen on {options.host}:{options.port}: {error.strerror or error}; choose another with --port"
        ) from None
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def _listen_unix(path: str) -> socket.socket:
    """A unix socket that only this user may open; one that a server left behind is replaced."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe, suppress(ConnectionRefusedError):
                probe.connect(path)
                raise RequestError(f"another server listens on {path}")
            os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as error:
        raise RequestError(f"cannot listen on {path}: {error.strerror or error}") from None
    finally:
        os.umask(before)
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def _address(options: ServeOptions, listener: socket.socket) -> str:
    if options.uds is not None:
        return f"unix:{options.uds}"
    host, port = listener.getsockname()[:2]
    scheme = "https" if options.ssl_certfile else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
