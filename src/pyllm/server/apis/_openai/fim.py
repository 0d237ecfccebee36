"""POST /v1/fim/completions: Mistral's form of filling a gap, which editors use. Answers have the form of a chat's."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from pyllm.llm.infill import Infill
from pyllm.server.api import Exchange
from pyllm.server.apis._openai.chat import whole
from pyllm.server.apis._openai.chunks import ChatStyle, chunks
from pyllm.server.apis._openai.form import API, FRAMING
from pyllm.server.asks import Ask
from pyllm.server.bodies import Body
from pyllm.server.options import options_of


class FimBody(Body):
    """A gap. Options of sampling are read by their names; see `options_of`."""

    prompt: str
    suffix: str = ""
    model: str = ""
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None


@API.post("/v1/fim/completions", "/fim/completions")
async def fill(exchange: Exchange) -> Response:
    """Fill a gap."""
    body = exchange.read(FimBody)
    options = {**options_of(exchange.fields, FimBody), "max_tokens": body.max_tokens}
    ask = Ask(body.model, prompt=Infill(body.prompt, body.suffix), options=options)
    style = ChatStyle(usage=bool((body.stream_options or {}).get("include_usage")))
    if body.stream:
        return await exchange.live(chunks(exchange, ask, style), FRAMING)
    return await exchange.whole(whole(exchange, ask, style))
