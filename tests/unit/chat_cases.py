"""Well-known chat templates with what transformers 5.23 renders from them (render_jinja_template), literally."""

from __future__ import annotations

from typing import Any

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "  Grüße, what is 1 < 2?\n"}
ANSWER = {"role": "assistant", "content": "True <ok>"}
AGAIN = {"role": "user", "content": "Why?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}],
}
RESULT = {"role": "tool", "content": '{"t": 21}'}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Weather of a "city" <now>',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_st"
    "art|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n"
    "' + message['content'] + '<|im_end|>' + '\n"
    "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "' }}{% endif %}"
)
PHI3 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + "
    "'\n"
    "' + message['content'] + '<|end|>' + '\n"
    "' + '<|assistant|>' + '\n"
    "'}}{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n"
    "'}}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_h"
    "eader_id|>' + message['role'] + '<|end_header_id|>\n"
    "\n"
    "'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_tok"
    "en + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_he"
    "ader_id|>assistant<|end_header_id|>\n"
    "\n"
    "' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 %"
    " 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/"
    "...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/IN"
    "ST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{"
    " raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
FEATURES = (
    "{%- set ns = namespace(found=false, n=0) %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'system' %}{% continue %}{% endif %}\n"
    "    {%- set ns.n = ns.n + 1 %}\n"
    "    {%- if ns.n > 2 %}{% break %}{% endif %}\n"
    "    {% if not loop.last %}\n"
    "    [{{ loop.index }}/{{ loop.length }}] {{ message.role | upper }}: {{ message.content | trim "
    "| replace('o', '0') }}\n"
    "    {% else %}\n"
    "    last\n"
    "    {% endif %}\n"
    "{%- endfor %}\n"
    "{% generation %}\n"
    "{{ {'b': [1, 2.5, none, true], 'a': '<é> & \"q\"'} | tojson }}\n"
    "{{ {'b': 1, 'a': {'c': []}} | tojson(indent=2, sort_keys=true) }}\n"
    "{% endgeneration %}\n"
    "{% macro tag(name, x=3) -%} <{{ name }}>{{ x ~ '!' }}{{ 'a,b'.split(',') | join(';') }} {%- end"
    "macro %}\n"
    "{{ tag('t') }} {{ tag('u', x=7 % 4) }}\n"
    "{% for k, v in {'x': 1, 'y': 2}.items() %}{{ k }}={{ v }}{{ ', ' if not loop.last else '.' }}{%"
    " endfor %}\n"
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length "
    "}}\n"
    "{{ 'yes' if tools is defined and tools is none else 'no' }} {{ undefined_name is defined }} {{ "
    "messages[0]['content'][:3] }} {{ messages[::-1][0].role }}\n"
    "{{ 'abc' * 2 + '-' * 3 }} {{ \"%s and %05.1f\" | format('x', 2.25) }} {{ [1] + [2] }} {{ 'k' in {"
    "'k': 1} }} {{ messages is iterable and messages is not mapping }}\n"
    "{% for row in [[1, [2]], [3]] recursive %}{% if row is iterable %}({{ loop(row) }}){% else %}{{"
    " row }}{% endif %}{% endfor %}\n"
)

# template, messages, tools, add_generation_prompt, text
CASES: list[tuple[str, list[dict[str, Any]], list[dict[str, Any]] | None, bool, str]] = [
    (
        SMOLLM2,
        [QUESTION],
        None,
        True,
        (
            "<|im_start|>system\n"
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\n"
            "  Grüße, what is 1 < 2?\n"
            "<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
    ),
    (
        SMOLLM2,
        [SYSTEM, QUESTION, ANSWER, AGAIN],
        None,
        True,
        (
            "<|im_start|>system\n"
            "Be brief.<|im_end|>\n"
            "<|im_start|>user\n"
            "  Grüße, what is 1 < 2?\n"
            "<|im_end|>\n"
            "<|im_start|>assistant\n"
            "True <ok><|im_end|>\n"
            "<|im_start|>user\n"
            "Why?<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
    ),
    (
        SMOLLM2,
        [SYSTEM, QUESTION, ANSWER],
        None,
        False,
        (
            "<|im_start|>system\n"
            "Be brief.<|im_end|>\n"
            "<|im_start|>user\n"
            "  Grüße, what is 1 < 2?\n"
            "<|im_end|>\n"
            "<|im_start|>assistant\n"
            "True <ok><|im_end|>\n"
        ),
    ),
    (
        PHI3,
        [QUESTION, ANSWER, AGAIN],
        None,
        True,
        (
            "<s><|user|>\n"
            "  Grüße, what is 1 < 2?\n"
            "<|end|>\n"
            "<|assistant|>\n"
            "True <ok><|end|>\n"
            "<|user|>\n"
            "Why?<|end|>\n"
            "<|assistant|>\n"
        ),
    ),
    (
        LLAMA3,
        [SYSTEM, QUESTION, ANSWER, AGAIN],
        None,
        True,
        (
            "<s><|start_header_id|>system<|end_header_id|>\n"
            "\n"
            "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
            "\n"
            "Grüße, what is 1 < 2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
            "\n"
            "True <ok><|eot_id|><|start_header_id|>user<|end_header_id|>\n"
            "\n"
            "Why?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
            "\n"
        ),
    ),
    (
        MISTRAL,
        [QUESTION, ANSWER, AGAIN],
        None,
        True,
        ("<s>[INST]   Grüße, what is 1 < 2?\n [/INST]True <ok></s>[INST] Why? [/INST]"),
    ),
    (
        FEATURES,
        [SYSTEM, QUESTION, ANSWER, AGAIN],
        None,
        True,
        (
            "    [2/4] USER: Grüße, what is 1 < 2?\n"
            "    [3/4] ASSISTANT: True <0k>\n"
            '{"b": [1, 2.5, null, true], "a": "<é> & \\"q\\""}\n'
            "{\n"
            '  "a": {\n'
            '    "c": []\n'
            "  },\n"
            '  "b": 1\n'
            "}\n"
            "<t>3!a;b <u>3!a;b\n"
            "x=1, y=2.2\n"
            "yes False Be  user\n"
            "abcabc--- x and 002.2 [1, 2] True True\n"
            "(1(2))(3)"
        ),
    ),
]

# template, messages, tools, add_generation_prompt, text
MODEL_CASES: list[tuple[str, list[dict[str, Any]], list[dict[str, Any]] | None, bool, str]] = [
    (
        "qwen-coder",
        [QUESTION, ANSWER, AGAIN],
        None,
        True,
        (
            "<|im_start|>system\n"
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n"
            "  Grüße, what is 1 < 2?\n"
            "<|im_end|>\n"
            "<|im_start|>assistant\n"
            "True <ok><|im_end|>\n"
            "<|im_start|>user\n"
            "Why?<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
    ),
    (
        "qwen-coder",
        [SYSTEM, QUESTION],
        TOOLS,
        True,
        (
            "<|im_start|>system\n"
            "Be brief.\n"
            "\n"
            "# Tools\n"
            "\n"
            "You may call one or more functions to assist with the user query.\n"
            "\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            "<tools>\n"
            '{"type": "function", "function": {"name": "weather", "description": "Weather of a \\"city\\" <now'
            '>", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["'
            'city"]}}}\n'
            "</tools>\n"
            "\n"
            "For each function call, return a json object with function name and arguments within <tool_call"
            "></tool_call> XML tags:\n"
            "<tool_call>\n"
            '{{"name": <function-name>, "arguments": <args-json-object>}}\n'
            "</tool_call><|im_end|>\n"
            "<|im_start|>user\n"
            "  Grüße, what is 1 < 2?\n"
            "<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
    ),
    (
        "qwen-coder",
        [QUESTION, CALL, RESULT, RESULT],
        TOOLS,
        True,
        (
            "<|im_start|>system\n"
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n"
            "\n"
            "# Tools\n"
            "\n"
            "You may call one or more functions to assist with the user query.\n"
            "\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            "<tools>\n"
            '{"type": "function", "function": {"name": "weather", "description": "Weather of a \\"city\\" <now'
            '>", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["'
            'city"]}}}\n'
            "</tools>\n"
            "\n"
            "For each function call, return a json object with function name and arguments within <tool_call"
            "></tool_call> XML tags:\n"
            "<tool_call>\n"
            '{{"name": <function-name>, "arguments": <args-json-object>}}\n'
            "</tool_call><|im_end|>\n"
            "<|im_start|>user\n"
            "  Grüße, what is 1 < 2?\n"
            "<|im_end|>\n"
            "<|im_start|>assistant\n"
            "<tool_call>\n"
            '{"name": "weather", "arguments": {"city": "Köln"}}\n'
            "</tool_call><|im_end|>\n"
            "<|im_start|>user\n"
            "<tool_response>\n"
            '{"t": 21}\n'
            "</tool_response>\n"
            "<tool_response>\n"
            '{"t": 21}\n'
            "</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
    ),
]
