"""POST /api/generate."""

from __future__ import annotations

from starlette.responses import Response

from pyllm.llm.infill import Infill
from pyllm.server.api import Exchange
from pyllm.server.apis._ollama import form
from pyllm.server.apis._ollama.answers import (
    PLAIN,
    PROMPT,
    Answer,
    AnswerBody,
    ask_options,
    load_only,
    refuse_images,
    thinking,
)
from pyllm.server.asks import Ask
from pyllm.server.live import Reply
from pyllm.server.problems import refuse


class GenerateBody(AnswerBody):
    """A prompt."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: list[int] = []  # noqa: RUF012 - msgspec copies it
    raw: bool = False
    images: list[str] = []  # noqa: RUF012


@form.API.post("/api/generate")
async def generate(exchange: Exchange) -> Response:
    """Answer a prompt; without one, load or unload the model."""
    body = exchange.read(GenerateBody)
    refuse_images(body.images, "images")
    if not body.prompt and not body.suffix:
        return Reply(await load_only(exchange, body, PROMPT))
    answer = Answer(exchange, body, _ask(exchange, body), PROMPT, context=not body.raw and not body.suffix)
    if body.stream:
        return await exchange.live(answer.lines(), answer.framing())
    return await exchange.whole(answer.whole())


def _ask(exchange: Exchange, body: GenerateBody) -> Ask:
    options = ask_options(exchange, body)
    keep_alive = form.seconds_of(body.keep_alive)
    if body.raw and (body.template or body.system or body.context):
        raise refuse("raw takes the prompt as it is; leave out template, system and context", "raw")
    if body.suffix:
        return Ask(body.called, prompt=Infill(body.prompt, body.suffix), options=options, keep_alive=keep_alive)
    if body.raw:
        return Ask(body.called, prompt=body.prompt, parse_special=True, options=options, keep_alive=keep_alive)
    system = [{"role": "system", "content": body.system}] if body.system else []
    return Ask(
        body.called,
        messages=[*system, {"role": "user", "content": body.prompt}],
        variables=thinking(body.think),
        options=options,
        template=body.template,
        fallback=PLAIN,
        before=body.context,
        truncate="oldest" if body.truncate else None,
        keep_alive=keep_alive,
    )
