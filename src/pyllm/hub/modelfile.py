"""Modelfiles: Ollama's form of a model with settings of its own, read and written.

Source of the format: docs/modelfile.md in Ollama's repository. Instructions are in any case; a value ends with its
line, or with the quotes, one or three, that it begins with; lines that begin with # are comments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from pyllm.errors import HubError
from pyllm.hub import parameters
from pyllm.records import dataclass

ROLES = ("system", "user", "assistant")
_IGNORED = ("RENDERER", "PARSER", "REQUIRES")
"""Instructions that name code of Ollama's."""
_KNOWN = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "MESSAGE", "LICENSE")
MOST = 1 << 20
"""Characters of a Modelfile."""


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says."""

    base: str = ""
    """The model or file that FROM names."""
    adapters: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """By Ollama's names, as numbers, booleans and texts; "stop" is a list of texts."""
    template: str = ""
    system: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content), at the beginning of each chat."""
    licences: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """Instructions that mean nothing here."""


def parse(text: str) -> Modelfile:
    """Read a Modelfile. Raises HubError with the line where it is wrong."""
    if len(text) > MOST:
        raise HubError(f"the Modelfile has {len(text)} characters; {MOST} are allowed")
    found = _Reader()
    for line, word, value in _instructions(text):
        try:
            found.take(word, value)
        except HubError as error:
            raise HubError(f"line {line} of the Modelfile: {error}") from None
    if not found.base:
        raise HubError("the Modelfile has no FROM, which names a model or a file")
    return Modelfile(
        found.base,
        tuple(found.adapters),
        found.parameters,
        found.template,
        found.system,
        tuple(found.messages),
        tuple(found.licences),
        tuple(found.ignored),
    )


def text_of(model: Modelfile) -> str:
    """A Modelfile that says the same."""
    lines = [f"FROM {_quoted(model.base)}"]
    lines += [f"ADAPTER {_quoted(adapter)}" for adapter in model.adapters]
    if model.template:
        lines.append(f"TEMPLATE {_quoted(model.template)}")
    if model.system:
        lines.append(f"SYSTEM {_quoted(model.system)}")
    lines += [f"PARAMETER {line}" for line in parameter_lines(model.parameters)]
    lines += [f"MESSAGE {role} {_quoted(content)}" for role, content in model.messages]
    lines += [f"LICENSE {_quoted(licence)}" for licence in model.licences]
    return "\n".join(lines) + "\n"


def parameter_lines(given: Mapping[str, Any]) -> list[str]:
    """Parameters as a Modelfile has them, without the word PARAMETER."""
    found = []
    for name, value in given.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            found.append(f"{name} {_quoted(one) if isinstance(one, str) else _plain(one)}")
    return found


class _Reader:
    """Collects what the instructions say."""

    def __init__(self) -> None:
        self.base = self.template = self.system = ""
        self.adapters: list[str] = []
        self.parameters: dict[str, Any] = {}
        self.messages: list[tuple[str, str]] = []
        self.licences: list[str] = []
        self.ignored: list[str] = []

    def take(self, word: str, value: str) -> None:
        """An instruction. Raises HubError."""
        if word == "FROM":
            if self.base:
                raise HubError(f"FROM is there twice; {self.base} was named before")
            self.base = value
        elif word == "PARAMETER":
            self._parameter(value)
        elif word == "MESSAGE":
            role, _, content = value.partition(" ")
            if role.lower() not in ROLES:
                raise HubError(f"a MESSAGE is of {', '.join(ROLES)}, not of {role[:40]!r}")
            self.messages.append((role.lower(), _unquoted(content.strip()) or ""))
        elif word == "ADAPTER":
            self.adapters.append(value)
        elif word == "LICENSE":
            self.licences.append(value)
        elif word in _IGNORED:
            self.ignored.append(word)
        else:
            setattr(self, word.lower(), value)
        if word in ("FROM", "ADAPTER") and not value:
            raise HubError(f"{word} names nothing")

    def _parameter(self, value: str) -> None:
        name, _, text = value.partition(" ")
        text = _unquoted(text.strip()) or ""
        name = name.lower()
        read = parameters.read(name, text)
        if name == "stop":
            self.parameters.setdefault(name, []).append(read)
        else:
            self.parameters[name] = read


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, instruction, value), the instruction in capitals. Raises HubError."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    at = 0
    while at < len(lines):
        line, at = lines[at].lstrip(), at + 1
        if not line or line.startswith("#"):
            continue
        word, rest = _first_word(line)
        word = word.upper()
        if word not in (*_KNOWN, *_IGNORED):
            known = ", ".join(_KNOWN)
            raise HubError(f"line {at} of the Modelfile: {word[:40]!r} is no instruction; there are {known}")
        start, head = at, ""
        if word in ("PARAMETER", "MESSAGE"):
            name, rest = _first_word(rest)
            head = name + " "
        # A quoted value may go on for several lines.
        pieces = [rest]
        while _unquoted(value := "\n".join(pieces).strip()) is None:
            if at == len(lines):
                raise HubError(f"line {start} of the Modelfile: the quotes that {word} begins with do not end")
            pieces.append(lines[at])
            at += 1
        yield start, word, head + value if head else _unquoted(value) or ""


def _first_word(text: str) -> tuple[str, str]:
    """The first word and the rest, which blanks divide."""
    parts = text.split(maxsplit=1)
    return (parts[0] if parts else "", parts[1] if len(parts) > 1 else "")


def _unquoted(value: str) -> str | None:
    """A value without its quotes; None where they do not end."""
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            whole = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if whole else None
    return value


def _quoted(value: str) -> str:
    """A value as a Modelfile has it."""
    plain = value and value == value.strip() and "\n" not in value and not value.startswith('"')
    if plain:
        return value
    return f'"{value}"' if '"' not in value and "\n" not in value else f'"""{value}"""'


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
