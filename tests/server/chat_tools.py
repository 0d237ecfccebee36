"""A template in the form of Hermes, and tools that even a random model calls in few tokens."""

from __future__ import annotations

from typing import Any

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
