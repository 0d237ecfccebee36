"""The variables by which chat templates are told how much a model should reason."""

from __future__ import annotations

from typing import Any

SWITCHES = ("enable_thinking", "thinking")
"""Variables that are true or false; each template knows one of them, or none."""
_NEAREST = {"minimal": "low", "xhigh": "high", "max": "high"}
"""Efforts that no template knows by these names."""


def off() -> dict[str, Any]:
    """Variables that turn reasoning off, where the template can."""
    return dict.fromkeys(SWITCHES, False)


def of_effort(effort: str | None) -> dict[str, Any]:
    """Variables of an effort of OpenAI's: "none", "minimal", "low", "medium", "high", "xhigh"; none for None."""
    if effort is None:
        return {}
    if effort == "none":
        return off()
    return {"reasoning_effort": _NEAREST.get(effort, effort), **dict.fromkeys(SWITCHES, True)}
