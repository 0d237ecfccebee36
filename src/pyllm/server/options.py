"""Options of a generation by the names that clients use for them: pyllm's own, and what other servers call them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from pyllm.config import GenerateSettings
from pyllm.config.setting import settings_of
from pyllm.sampling.general import all_settings

_SYNONYMS = {
    "repetition_penalty": "repeat_penalty",
    "guided_json": "response_format",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "response_format",
    "typ_p": "typical_p",
}
"""Names of vLLM and llama.cpp, with pyllm's."""
_UNSENT = frozenset({"sampling", "logits_processors", "prompt_logprobs", "best_of", "echo", "n", "logprobs"})
"""What is no value of JSON, or means something else from API to API; those that have it read it themselves."""


@cache
def sent() -> frozenset[str]:
    """Names of the options that a request may hold."""
    settings = [*all_settings(), *settings_of(GenerateSettings)]
    return frozenset(setting.name for setting in settings) - _UNSENT


def options_of(fields: Mapping[str, Any], body: type[msgspec.Struct] | None = None) -> dict[str, Any]:
    """The options among a body's fields, but for those that `body` reads itself. Nulls are left out."""
    own = frozenset(body.__struct_fields__) if body is not None else frozenset()
    found: dict[str, Any] = {}
    structured = fields.get("structured_outputs")
    given = {**_guided(structured), **fields} if isinstance(structured, Mapping) else fields
    for name, value in given.items():
        known = _SYNONYMS.get(name, name)
        if value is not None and known in sent() and name not in own:
            found[known] = value
    return found


def _guided(structured: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's present form of an answer's form, by the names of its older one."""
    return {f"guided_{name}": value for name, value in structured.items()}
