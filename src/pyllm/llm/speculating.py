"""The drafter that a model is loaded with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.config import LoadSettings
from pyllm.errors import RequestError

if TYPE_CHECKING:
    from pyllm.engine.speculation import Drafter
    from pyllm.program import Program


def drafter_of(settings: LoadSettings, program: Program) -> Drafter | None:
    """What guesses tokens, by `spec`; None: nothing. Raises RequestError where the model cannot take drafts back."""
    if settings.spec == "off" or (settings.spec == "auto" and program.slots):
        return None
    if program.slots:
        raise RequestError("the model has recurrent states, which cannot take guesses back; load it with spec='off'")
    from pyllm.engine.speculation import Lookup

    return Lookup()
