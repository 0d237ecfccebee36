"""A server whose tiny model says what a test needs, asked as Anthropic's clients ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyllm.config import SamplingParams
from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf

TEMPLATE = """\
{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>\
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}\
{% for c in m.tool_calls %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
USER: Any = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]},
}

told: list[bytes] = []
"""What the model is to say in the present test, if anything."""


def as_told(tokens: Any, logits: Any) -> Any:
    """Make the next byte of what is to be said certain, and then the end."""
    if told:
        said = bytes(token for token in tokens if token < 256).rpartition(b"<|assistant|>")[2]
        # An answer of an earlier test may still be written, and be longer.
        logits[(*told[0], 256)[min(len(said), len(told[0]))]] += 1000
    return logits


@contextmanager
def telling(folder: Path) -> Iterator[Rig]:
    """A server of the tiny model, which says what it is told."""
    # The model stays: another one would say nothing of what it is told.
    options: Any = {"ping_every": 0.2, "n_ctx": 1024, "keep_alive": -1.0}
    with running(write_tiny_gguf(folder / "tiny.gguf", TEMPLATE), **options) as rig:
        until(lambda: rig.house.models.loaded)
        rig.house.models.loaded[0].llm.llm.sampling = SamplingParams(logits_processors=(as_told,), temperature=0)
        yield rig


def saying(text: str, **more: Any) -> dict[str, Any]:
    """Arguments of a request to which the model answers `text`: with tools it is told, else it has no other choice."""
    form: dict[str, Any] = {"choice": [text]}
    if "tools" in more:
        told[:], form = [text.encode()], {}
    return {"model": "tiny", "max_tokens": 300, "messages": USER, **more, "extra_body": form}


def text_of(message: Any) -> str:
    """The text with which an answer begins."""
    text: str = message.content[0].text
    return text
