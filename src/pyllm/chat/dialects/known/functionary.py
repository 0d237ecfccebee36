"""functionary v3.2: `>>>RECIPIENT\\nCONTENT`, where the recipient is "all" or a tool; the prompt ends with `>>>`."""

from __future__ import annotations

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Channels, DialectSpec

KNOWN = Known(
    DialectSpec(
        "hand-written",
        channels=Channels(
            opens=(">>>",),
            header_end="\n",
            begins=("",),
            call=r"^(?:>>>)?([\w.\-]+)\s*$",
            text=r"^(?:>>>)?all\s*$",
            known_only=True,
            calls=(("name",),),
            texts=("all",),
            between=">>>",
        ),
    ),
    marks=(
        (
            ">>>all",
            ">>>${recipient}",
        ),
    ),
)
