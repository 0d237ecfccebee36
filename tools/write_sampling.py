"""Writes what is made from the steps of sampling: src/pyllm/config/sampling.py, their settings as type checkers see
them, and the table of docs/sampling.md.

    python tools/write_sampling.py

A test compares the files with what this would write.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from pyllm.sampling.general import all_settings
from pyllm.sampling.steps import Setting, Step, all_steps

_ROOT = Path(__file__).resolve().parents[1]
FILE = _ROOT / "src" / "pyllm" / "config" / "sampling.py"
PAGE = _ROOT / "docs" / "sampling.md"
_BEGIN, _END = "<!-- steps -->\n", "<!-- end of steps -->\n"

_HEAD = '''\
"""The settings of sampling. Written by `python tools/write_sampling.py`; change `pyllm/sampling`, not this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from pyllm.arguments import settle


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen: the steps from logits to a token, each left out at its neutral value.

    Steps run in the order of their fields, unless `samplers` says otherwise.
    """

'''


def source() -> str:
    """The whole file."""
    settings = all_settings()
    lines = [_field(setting) for setting in settings]
    lines.append("\n    def __post_init__(self) -> None:\n        settle(self)\n")
    lines += [
        f"        if self.{s.name} == -1:\n            object.__setattr__(self, {s.name!r}, {s.minus_one!r})\n".replace(
            "'", '"'
        )
        for s in settings
        if s.minus_one != -1
    ]
    lines.append("\n\nclass SamplingOptions(TypedDict, total=False):\n")
    lines.append(
        '    """The fields of `SamplingParams`, where they and their defaults are described. None: as if it were not '
        'given."""\n\n'
    )
    lines += [f"    {s.name}: {_optional(s)}\n" for s in settings]
    return _HEAD + "".join(lines)


def _field(setting: Setting) -> str:
    default = repr(setting.default)
    if setting.default == {}:
        default = "field(default_factory=dict)"
    elif isinstance(setting.default, tuple):
        default = "(" + ", ".join(_text(v) for v in setting.default) + ("," if len(setting.default) == 1 else "") + ")"
    text = setting.doc.replace("\\", "\\\\")
    body = textwrap.wrap(text + '"""', 113, initial_indent='    """', subsequent_indent="    ")
    return f"    {setting.name}: {setting.type} = {default}\n" + "\n".join(body) + "\n"


def _text(value: str) -> str:
    text = repr(value)
    return text if '"' in value else '"' + text[1:-1] + '"'


def _optional(setting: Setting) -> str:
    kind = setting.options_type or setting.type
    return kind if kind.endswith("| None") else f"{kind} | None"


def page() -> str:
    """The whole page, with the table of now."""
    before, rest = PAGE.read_text(encoding="utf-8").split(_BEGIN)
    rows = ["| in `samplers` | settings and defaults | what it does | source |", "|---|---|---|---|"]
    rows += [_row(step) for step in all_steps()]
    return f"{before}{_BEGIN}\n" + "\n".join(rows) + f"\n\n{_END}{rest.split(_END)[1]}"


def _row(step: type[Step]) -> str:
    settings = ", ".join(f"`{s.name}` {_default(s.default)}".rstrip() for s in step.settings)
    text = " ".join((step.__doc__ or "").split())
    return f"| `{step.name()}` | {settings} | {text} | {step.source} |".replace(" |d", " \\|d")


def _default(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else ""


if __name__ == "__main__":
    FILE.write_text(source(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
