"""Docstrings for the reference: paragraphs that describe arguments, one after the other, become lists.

pyllm's docstrings say `name`: what it is, a line or more for each. Read as Markdown, that would be one paragraph.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ARGUMENT = re.compile(r"^`[\w()*, =\"'.]+`(?:, `[\w()*, ]+`)*(?: [\w-]+){0,2}(?::| (?:is|are) )")


class ArgumentLists(griffe.Extension):
    """Makes the lists when a docstring's object has been read. Shows pyllm's dataclasses as the standard library's."""

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        found = mod.members.get("dataclass")
        if isinstance(found, griffe.Alias) and found.target_path == "pyllm.records.dataclass":
            found.target_path = mod.imports["dataclass"] = "dataclasses.dataclass"

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(text: str) -> str:
    """`text`, where each paragraph of two or more lines that begin with an argument is a list."""
    return "\n\n".join(_as_list(paragraph) for paragraph in text.split("\n\n"))


def _as_list(paragraph: str) -> str:
    lines = paragraph.splitlines()
    begins = [bool(_ARGUMENT.match(line)) for line in lines]
    if not begins or not begins[0] or sum(begins) < 2:
        return paragraph
    return "\n".join(("- " if begin else "  ") + line for begin, line in zip(begins, lines, strict=True))
