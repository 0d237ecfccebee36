"""The server's log: a line for each request, as text or JSON. Prompts and answers are not part of it, unless asked."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any, TextIO

from pyllm.server.problems import problem_of

if TYPE_CHECKING:
    from pyllm.server.api import Exchange

LOGGER = logging.getLogger("pyllm.server")
GONE = 499
"""The status, in the log, of a client that went away before it had one."""
_MOST = 1000
"""Characters of what a client wrote into a request's first line."""


class Logs:
    """Writes what happened to the logger `pyllm.server`."""

    def __init__(self, prompts: bool = False) -> None:
        self.prompts = prompts
        """The user wants prompts and answers in the log."""

    def served(self, exchange: Exchange) -> None:
        """A request is over."""
        method, path = exchange.request.method, exchange.request.scope["path"]
        status = GONE if exchange.status is None else exchange.status
        fields: dict[str, Any] = {
            "id": exchange.id,
            "method": method[:_MOST],
            "path": path[:_MOST],
            "status": status,
            "seconds": round(perf_counter() - exchange.began, 3),
            **exchange.log,
        }
        quiet = exchange.is_probe and status in (200, 503)  # 503 is an answer, too: not ready
        LOGGER.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})

    def failed(self, exchange: Exchange, error: BaseException) -> None:
        """A request failed; where nobody raised the error on purpose, with its place."""
        problem = problem_of(error)
        unexpected = problem.code == "internal_error"
        LOGGER.log(
            logging.ERROR if unexpected else logging.INFO,
            "failed",
            exc_info=error if unexpected else None,
            extra={"fields": {"id": exchange.id, "error": repr(error) if unexpected else str(error)}},
        )

    def text(self, exchange: Exchange, name: str, value: Any) -> None:
        """A prompt or an answer; see `prompts`."""
        LOGGER.info("text", extra={"fields": {"id": exchange.id, name: value}})


def say(event: str, **fields: Any) -> None:
    """Something that concerns no request: a model was loaded, the server ends."""
    LOGGER.info(event, extra={"fields": fields})


def complain(event: str, error: BaseException, **fields: Any) -> None:
    """Something that concerns no request failed, and nobody raised that on purpose."""
    LOGGER.error(event, exc_info=error, extra={"fields": {**fields, "error": repr(error)}})


class _Lines(logging.Formatter):
    """`12:30:01 request id=… status=200`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        text = " ".join([moment, record.getMessage(), *(f"{key}={_plain(value)}" for key, value in fields.items())])
        return text + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class _JSONLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


@contextmanager
def to_stream(as_json: bool, stream: TextIO | None = None) -> Iterator[None]:
    """Write the log to standard error, or to `stream`; with it uvicorn's own lines on what goes wrong outside of
    requests."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JSONLines() if as_json else _Lines())
    loggers = ((LOGGER, logging.INFO), (logging.getLogger("uvicorn.error"), logging.WARNING))
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger, _ in loggers]
    for logger, level in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def _plain(value: Any) -> str:
    """A value on one line, without what would steer a terminal."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text
