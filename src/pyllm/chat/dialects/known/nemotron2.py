"""Nemotron Nano v2: `<TOOLCALL>[{…}, {…}]</TOOLCALL>`; its template writes text and calls as two turns."""

from __future__ import annotations

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Calls, DialectSpec, ObjectBody

KNOWN = Known(
    DialectSpec(
        "hand-written",
        turn_ends=("\n<SPECIAL_12>\n", "<SPECIAL_12>\n\n"),
        calls=Calls(ObjectBody(), section_start=("<TOOLCALL>", "["), section_end=("]", "</TOOLCALL>"), separator=","),
    ),
    marks=(("<TOOLCALL>", "</TOOLCALL>"),),
)
