"""Llama 3.x: an answer that is one JSON object, `{"name": …, "parameters": {…}}`, at times after `<|python_tag|>`."""

from __future__ import annotations

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Calls, DialectSpec, ObjectBody

KNOWN = Known(
    DialectSpec(
        "hand-written",
        calls=Calls(ObjectBody("name", "parameters"), start=("<|python_tag|>",), separator=";", bare=True),
    ),
    marks=(
        (
            "<|start_header_id|>",
            "Environment: ipython",
            '"parameters": ',
        ),
    ),
)
