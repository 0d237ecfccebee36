"""Kimi K3: everything stands between `<|open|>KIND<|sep|>` and `<|close|>KIND<|sep|>`; arguments name their types."""

from __future__ import annotations

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Calls, DialectSpec, HeadBody, KeyForm, Reasoning, TaggedArguments

_END = "<|close|>argument<|sep|>"
_FORMS = (
    KeyForm('" type="string"<|sep|>', value_close=_END, kind="string"),
    *(
        KeyForm(f'" type="{kind}"<|sep|>', value_close=_END, kind="json")
        for kind in ("number", "integer", "boolean", "object", "array", "null")
    ),
)

KNOWN = Known(
    DialectSpec(
        "hand-written",
        Reasoning("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        Calls(
            HeadBody(("name", '" index="', "index", '"<|sep|>'), TaggedArguments('<|open|>argument key="', _FORMS)),
            start=('<|open|>call tool="',),
            end=("<|close|>call<|sep|>",),
            section_start=("<|open|>tools<|sep|>",),
            section_end=("<|close|>tools<|sep|>",),
        ),
        silent=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
        turn_ends=("<|end_of_msg|>",),
    ),
    marks=(("<|open|>", "<|sep|>", "<|close|>"),),
)
