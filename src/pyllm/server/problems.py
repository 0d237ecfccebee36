"""What is wrong with a request, in one form; each API writes it in its own."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyllm.errors import (
    ClosedError,
    ContextFullError,
    HubError,
    OutOfMemoryError,
    PyllmError,
    QueueFullError,
    RequestError,
    TemplateError,
    TokenizerError,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal or a failure."""

    status: int
    """HTTP's."""
    code: str
    """A word for programs, in OpenAI's terms where it has one: context_length_exceeded, model_not_found, …"""
    message: str
    param: str | None = None
    """The request's field that is wrong."""
    retry_after: float | None = None
    """Seconds until the same request may work."""
    headers: tuple[tuple[str, str], ...] = ()
    request_id: str | None = None
    """The request that it is about, where an API's errors say that."""

    @property
    def kind(self) -> str:
        """The group of the status, in OpenAI's terms."""
        return _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


ENDING = Problem(503, "shutting_down", "the server is ending", retry_after=5)


class ProblemError(PyllmError):
    """A `Problem`, raised."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def refuse(message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> ProblemError:
    """The error of a request that cannot be served as it is."""
    return ProblemError(Problem(status, code or ("invalid_value" if param else "invalid_request"), message, param))


def problem_of(error: BaseException) -> Problem:
    """What an error means to a client. Errors that nobody raised on purpose tell nothing of what is inside."""
    if isinstance(error, ProblemError):
        return error.problem
    text = str(error)
    if isinstance(error, ContextFullError):
        if error.n_ctx:
            text = (
                f"the prompt has {error.n_tokens} tokens and the context holds {error.n_ctx}; shorten it, or start the "
                "server with a larger --ctx"
            )
        return Problem(400, "context_length_exceeded", text, "messages")
    if isinstance(error, QueueFullError):
        return Problem(429, "queue_full", text, retry_after=error.retry_after)
    if isinstance(error, RequestError | TemplateError | TokenizerError):
        return Problem(400, "invalid_request", text, _field_of(text))
    if isinstance(error, ClosedError):
        return Problem(503, "model_unloaded", text, retry_after=1)
    if isinstance(error, OutOfMemoryError):
        return Problem(503, "out_of_memory", text, retry_after=10)
    if isinstance(error, HubError):
        return Problem(404, "model_not_found", text, "model")
    if isinstance(error, PyllmError):
        return Problem(500, "failed", text)
    return Problem(500, "internal_error", "the server failed; its log says more, under this request's id")


_FIELD = re.compile(r"([a-z_]+)((?:\[\d+\]|\.[a-z_]+)*)(?::| must | needs | names | has a | holds )")


def _field_of(text: str) -> str | None:
    """The field that a message begins with, as those on arguments do: "max_tokens must be …", "messages[0] has a …"."""
    found = _FIELD.match(text)
    return found[1] + found[2] if found else None
