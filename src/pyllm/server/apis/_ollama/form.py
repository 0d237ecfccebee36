"""What Ollama's routes share: errors, lines, times, durations, what they call models by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from pyllm.hub import parameters
from pyllm.llm.results import Usage
from pyllm.server.api import Api, Exchange
from pyllm.server.bodies import Body
from pyllm.server.live import NDJSON, Framing, line_frame
from pyllm.server.problems import Problem, refuse
from pyllm.units import seconds


def error(problem: Problem) -> dict[str, Any]:
    """Ollama's form of an error."""
    return {"error": problem.message}


API = Api("ollama", error)
FRAMING = Framing(NDJSON, lambda: b"", lambda problem: line_frame(error(problem)))
"""A line of JSON each. There is no line that all clients ignore, so silence is not filled."""


class ModelBody(Body):
    """A model by its name; older clients say `name`."""

    model: str = ""
    name: str = ""

    @property
    def called(self) -> str:
        """The name. Raises ProblemError where there is none."""
        if not (self.model or self.name):
            raise refuse("model is missing", "model", code="missing_field")
        return self.model or self.name


async def lines(exchange: Exchange, stream: bool, frames: AsyncIterator[dict[str, Any]]) -> Response:
    """A stream of lines; or, without `stream`, the last of them alone, an error among them with its status."""
    if stream:
        return await exchange.live(_encoded(frames), FRAMING)

    async def last() -> dict[str, Any]:
        found: dict[str, Any] = {}
        async for line in frames:
            found = line
        return found

    return await exchange.whole(last())


async def _encoded(frames: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async for line in frames:
        yield line_frame(line)


def now() -> str:
    """This moment as Ollama writes it."""
    return moment(datetime.now(UTC).timestamp())


def moment(unix: float) -> str:
    """A moment, given in Unix seconds."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds_of(value: Any) -> float | None:
    """A `keep_alive` in seconds: a number, or a duration such as "5m"; negative: for good. Raises ProblemError."""
    if value is None or value == "":
        return None
    found: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    elif isinstance(value, str):
        found = seconds(value)
    if found is None or found != found:
        raise refuse('keep_alive must be a number of seconds, or a duration such as "5m"', "keep_alive")
    return -1.0 if found < 0 or found > 1e9 else found


def options_of(exchange: Exchange, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of a generation from `options`. What concerns loading alone is noted in the log."""
    found = parameters.settle(given or {}, "options.")
    if (n_ctx := found.get("num_ctx")) is not None:
        exchange.log["num_ctx"] = n_ctx
    return parameters.options_of(found)


def durations(usage: Usage, seconds: float, loading: float) -> dict[str, int]:
    """The counts, and the durations in nanoseconds, of a last line."""
    return {
        "total_duration": _ns(seconds),
        "load_duration": _ns(loading),
        "prompt_eval_count": usage.n_prompt,
        "prompt_eval_duration": _ns(usage.prompt_seconds),
        "eval_count": usage.n_generated,
        "eval_duration": _ns(usage.seconds),
    }


def _ns(seconds: float) -> int:
    return max(1, round(seconds * 1e9))


def reason_of(reason: str) -> str:
    """A finish reason in Ollama's words, which has none for calls of tools."""
    return "stop" if reason in ("stop", "tool_calls") else "length"
