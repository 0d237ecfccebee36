"""Templates in the form of Hermes and of models that reason; tools that even a random model calls in few tokens."""

from __future__ import annotations

from typing import Any

import pyllm
from pyllm.config import SamplingParams

TEMPLATE = """\
{%- if tools %}<|system|># Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
For each call write <tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call>
{% endif %}
{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}
{%- for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

REASONING = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)
"""The template of a model that reasons, unless it is told not to."""


def begin_with(llm: pyllm.LLM, prompt: list[int], text: str) -> None:
    """Let a model of bytes begin its greedy answers to a prompt with a text."""
    data = text.encode()

    def push(tokens: Any, logits: Any) -> Any:
        if len(tokens) - len(prompt) < len(data):
            logits[data[len(tokens) - len(prompt)]] += 1000
        return logits

    llm.sampling = SamplingParams(logits_processors=(push,), temperature=0)


def function(name: str, *options: str, **more: Any) -> dict[str, Any]:
    """A tool with one parameter that has few values."""
    parameters = {
        "type": "object",
        "properties": {"unit": {"type": "string", "enum": list(options)}},
        "required": ["unit"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [function("get_time", "utc", "local"), function("get_heat", "kelvin", "celsius")]
"""Two of them."""
