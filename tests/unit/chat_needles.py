"""Chats in the forms that clients send, whose texts are found again in a prompt; and small templates of many habits."""

from __future__ import annotations

import json
from typing import Any

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Tells {name}",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
    for name in ("forecast", "distance")
]
_USER = {"role": "user", "content": "ask-one"}
_MORE = {"role": "user", "content": "ask-two"}
_ANSWER = {"role": "assistant", "content": "answer-one"}
_SYSTEM, _RULES = {"role": "system", "content": "system-one"}, {"role": "system", "content": "system-two"}
_PARTS = [{"type": "text", "text": "part-one"}, {"type": "text", "text": "part-two"}]
_ARGUMENTS = {"place": "Bonn-am-Rhein"}


def _call(*arguments: Any, **more: Any) -> dict[str, Any]:
    calls = [
        {
            "id": f"call_{i}f3b9a7c2d4e6f8",
            "type": "function",
            "function": {"name": TOOLS[i]["function"]["name"], "arguments": given},
        }
        for i, given in enumerate(arguments)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls} | more


def _result(content: Any, i: int = 0) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{i}f3b9a7c2d4e6f8", "content": content}


_ONE = ["ask-one", "Bonn-am-Rhein", "result-one"]
Case = tuple[list[dict[str, Any]], list[dict[str, Any]] | None, dict[str, Any], list[str]]
CASES: dict[str, Case] = {
    "plain": ([_USER, _ANSWER, _MORE], None, {}, ["ask-one", "answer-one", "ask-two"]),
    "system": ([_SYSTEM, _USER], None, {}, ["system-one", "ask-one"]),
    "developer": ([{"role": "developer", "content": "system-one"}, _USER], None, {}, ["system-one", "ask-one"]),
    "system, developer": (
        [_SYSTEM, {"role": "developer", "content": "system-two"}, _USER],
        None,
        {},
        ["system-one", "system-two", "ask-one"],
    ),
    "two systems": ([_SYSTEM, _RULES, _USER], None, {}, ["system-one", "system-two", "ask-one"]),
    "system not first": ([_USER, _ANSWER, _SYSTEM, _MORE], None, {}, ["ask-one", "answer-one", "ask-two"]),
    "two users": ([_USER, _MORE], None, {}, ["ask-one", "ask-two"]),
    "parts": ([{"role": "user", "content": _PARTS}], None, {}, ["part-one", "part-two"]),
    "system in parts": ([{"role": "system", "content": _PARTS}, _USER], None, {}, ["part-one", "part-two", "ask-one"]),
    "answer in parts": (
        [_USER, {"role": "assistant", "content": _PARTS}, _MORE],
        None,
        {},
        ["ask-one", "part-one", "part-two", "ask-two"],
    ),
    "null content": ([_USER, _call(_ARGUMENTS), _result("result-one")], TOOLS, {}, _ONE),
    "missing content": (
        [_USER, {"role": "assistant", "tool_calls": _call(_ARGUMENTS)["tool_calls"]}, _result("result-one")],
        TOOLS,
        {},
        _ONE,
    ),
    "null fields": (
        [_USER, _ANSWER | {"tool_calls": None, "refusal": None, "function_call": None}, _MORE],
        None,
        {},
        ["ask-one", "answer-one", "ask-two"],
    ),
    "arguments as text": ([_USER, _call(json.dumps(_ARGUMENTS)), _result("result-one")], TOOLS, {}, _ONE),
    "arguments as dictionary": ([_USER, _call(_ARGUMENTS, content=""), _result("result-one")], TOOLS, {}, _ONE),
    "no arguments": ([_USER, _call(""), _result("result-one")], TOOLS, {}, ["ask-one", "result-one"]),
    "result in parts": ([_USER, _call("{}"), _result(_PARTS)], TOOLS, {}, ["ask-one", "part-one", "part-two"]),
    "system, call": ([_SYSTEM, _USER, _call(_ARGUMENTS), _result("result-one")], TOOLS, {}, ["system-one", *_ONE]),
    "text beside a call": (
        [_USER, _call(_ARGUMENTS, content="I-look"), _result("result-one")],
        TOOLS,
        {},
        ["ask-one", "I-look", "Bonn-am-Rhein", "result-one"],
    ),
    "two calls": (
        [_USER, _call(_ARGUMENTS, {"place": "Köln"}), _result("result-one"), _result("result-two", 1)],
        TOOLS,
        {},
        ["ask-one", "Bonn-am-Rhein", "result-one", "result-two"],
    ),
    "call, answer, turn": (
        [_USER, _call(_ARGUMENTS), _result("result-one"), _ANSWER, _MORE],
        TOOLS,
        {},
        [*_ONE, "answer-one", "ask-two"],
    ),
    "calls without tools": ([_USER, _call(_ARGUMENTS), _result("result-one")], None, {}, _ONE),
    "reasoning_content": (
        [_USER, _call(_ARGUMENTS, reasoning_content="thought-one"), _result("result-one")],
        TOOLS,
        {},
        ["ask-one", "thought-one", "Bonn-am-Rhein", "result-one"],
    ),
    "reasoning": (
        [_USER, _call(_ARGUMENTS, reasoning="thought-one"), _result("result-one")],
        TOOLS,
        {},
        ["ask-one", "thought-one", "Bonn-am-Rhein", "result-one"],
    ),
    "tools": ([_SYSTEM, _USER], TOOLS, {}, ["system-one", "ask-one"]),
    "tools alone": ([_USER], [tool["function"] for tool in TOOLS], {}, ["ask-one"]),
    "prefill": (
        [_USER, {"role": "assistant", "content": "begun-one"}],
        None,
        {"continue_final_message": True},
        ["ask-one", "begun-one"],
    ),
    "prefill in parts": (
        [_USER, {"role": "assistant", "content": _PARTS}],
        None,
        {"continue_final_message": True},
        ["ask-one", "part-one", "part-two"],
    ),
}

_TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<ai>{% endif %}"
_CALLS = "{% for c in m.tool_calls %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}"
_SHOWS_TOOLS = "{% if tools %}<tools>{{ tools | tojson }}{% endif %}"
TEMPLATES: dict[str, str] = {
    "texts alone": _TURNS,
    "texts joined": "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}",
    "no system": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('by turns') }}{% endif %}"
        "<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
    ),
    "system first": (
        _SHOWS_TOOLS + "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first"
        "') }}{% elif m.role in ['system', 'user', 'tool'] %}<{{ m.role }}>{{ m.content }}{% elif m.role == 'assistant'"
        " %}<ai>{{ m.content or '' }}" + _CALLS + "{% endif %}{% endfor %}"
    ),
    "parts alone": (
        "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p['text'] }}{% endfor %}{% endfor %}"
    ),
    "parts or text": (
        _SHOWS_TOOLS + "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}" + _CALLS + "{% endfor %}"
    ),
    "ids of nine": (
        _SHOWS_TOOLS + "{% for m in messages %}{% if m.tool_calls is defined %}{% for c in m.tool_calls %}"
        "{% if c.id | length != 9 %}{{ raise_exception('ids of nine') }}{% endif %}"
        "[{{ c.id }} {{ c.function | tojson }}]{% endfor %}{% elif m.role == 'tool' %}({{ m.tool_call_id }} "
        "{{ m.content }}){% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    ),
    "name in the id": (
        _SHOWS_TOOLS + "{% for m in messages %}{% if m.role == 'tool' %}({{ m.tool_call_id }}){% else %}<{{ m.role }}>"
        "{% endif %}{{ m.content }}{% for c in m.tool_calls %}[{{ c.id }} {{ c.function.arguments | tojson }}]"
        "{% endfor %}{% endfor %}"
    ),
    "arguments as text": (
        _SHOWS_TOOLS + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls %}"
        "{{ '[' + c.function.name + ' ' + c.function.arguments + ']' }}{% endfor %}{% endfor %}"
    ),
    "arguments as mapping": (
        _SHOWS_TOOLS + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls %}[{{ "
        "c.function.name }}{% for k, v in c.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}]{% endfor %}"
        "{% endfor %}"
    ),
    "one call": (
        _SHOWS_TOOLS + "{% for m in messages %}<{{ m.role }}>{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1"
        " %}{{ raise_exception('one at a time') }}{% endif %}" + _CALLS + "{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    ),
    "names of results": (
        _SHOWS_TOOLS + "{% for m in messages %}{{ '<' + (m.name if m.role == 'tool' else m.role) + '>' }}"
        "{{ m.content }}" + _CALLS + "{% endfor %}"
    ),
    "thinking": (
        _SHOWS_TOOLS + "{% for m in messages %}<{{ m.role }}>{% if m.thinking %}(({{ m.thinking }})){% endif %}"
        "{{ m.content }}" + _CALLS + "{% endfor %}"
    ),
    "tools of another name": (
        "{% if xml_tools %}<tools>{{ xml_tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>"
        "{{ m.content }}" + _CALLS + "{% endfor %}"
    ),
    "tools as a text": (
        "{{ '<functions>' + functions + ' on ' + datetime }}{% for m in messages %}{{ '<' + m.role + '>' + m.content }}"
        + _CALLS
        + "{% endfor %}"
    ),
    "tools must be absent": (
        "{% if tools is defined %}{% for t in tools %}<tool>{{ t | tojson }}{% endfor %}{% endif %}" + _TURNS
    ),
    "system with the last user": (
        _SHOWS_TOOLS
        + "{% set first = messages[0].role == 'system' %}{% for m in messages %}{% if m.role != 'system' %}"
        "<{{ m.role }}>{% if first and loop.last and m.role == 'user' %}{{ messages[0].content }} {% endif %}"
        "{{ m.content }}" + _CALLS + "{% endif %}{% endfor %}"
    ),
    "developer": (
        "{% for m in messages %}{% if m.role == 'developer' %}<rules>{{ m.content }}{% elif m.role in ['user', "
        "'assistant'] %}<{{ m.role }}>{{ m.content }}{% elif m.role == 'system' %}<base>{{ m.content }}{% endif %}"
        "{% endfor %}"
    ),
}
