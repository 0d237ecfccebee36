"""A terminal: what its screen and its scrollback hold after some output. What it does not know is an error."""

from __future__ import annotations

import re
import unicodedata

_SEQUENCE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")


class Terminal:
    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.scrollback: list[str] = []
        self.screen: list[list[str]] = [[]]
        self.x = self.y = 0

    @property
    def lines(self) -> list[str]:
        """All lines, without spaces at their ends."""
        return [*self.scrollback, *("".join(row).rstrip() for row in self.screen)]

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            if found := _SEQUENCE.match(text, at):
                self._control(found[2], found[1])
                at = found.end()
            else:
                self._character(text[at])
                at += 1

    def _control(self, command: str, arguments: str) -> None:
        if command == "A":
            self.y -= int(arguments)
            assert self.y >= 0, "a line above the screen would be written again"
        elif command == "J":
            assert not arguments
            del self.screen[self.y][self.x :]
            del self.screen[self.y + 1 :]
        else:
            assert command == "m", f"an unexpected sequence: {arguments}{command}"

    def _character(self, character: str) -> None:
        if character == "\r":
            self.x = 0
        elif character == "\n":
            self._line_feed()
        else:
            assert unicodedata.category(character) not in ("Cc", "Cs"), f"a control character: {character!r}"
            width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if self.x + width > self.columns:  # only now, not when the last column was written
                self._line_feed()
            row = self.screen[self.y]
            row += [" "] * (self.x - len(row))
            row[self.x :] = [character, ""][:width]
            self.x += width

    def _line_feed(self) -> None:
        self.x = 0
        self.y += 1
        if self.y == len(self.screen):
            self.screen.append([])
        if self.y == self.rows:
            self.scrollback.append("".join(self.screen.pop(0)).rstrip())
            self.y -= 1
