"""A text that grows on a terminal: finished lines stay, the last ones are written again as they change."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyllm.cli import _streams

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_EVERY = 0.03
"""Seconds between two drawings, at least ..."""
_SHARE = 5
"""... and times what the last one took."""


def document() -> Document | None:
    """A document on standard output; None where that is no terminal that can move its cursor and has the signs."""
    if not sys.stdout.isatty() or not (sys.stdout.encoding or "").lower().startswith("utf"):
        return None
    from rich.console import Console

    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal or console.legacy_windows:
        return None
    return Document(console)


class Document:
    """Markdown that comes piece by piece. Blocks are written once when they are finished, code line by line."""

    def __init__(self, console: Console) -> None:
        from pyllm.cli import _markdown  # now, while the prompt is computed

        self._blocks = _markdown.blocks
        self._console = console
        self._screen = _Screen(console)
        self._source = ""
        """The text from the first unfinished block on."""
        self._n_parts = 0
        """Parts of that block that are written for good."""
        self._n_blocks = 0
        """Blocks before it."""
        self._changed = False
        self._next = 0.0

    def add(self, text: str) -> None:
        """More of the text, without control characters."""
        self._source += text
        self._changed = True
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Show all of the text so far."""
        if self._changed:
            self._changed = False
            began = time.monotonic()
            self._draw(ended=False)
            now = time.monotonic()
            self._next = now + max(_EVERY, _SHARE * (now - began))

    def end(self) -> bool:
        """Show the whole text; the cursor stays after it. Returns whether there was anything to show."""
        self._draw(ended=True)
        shown = self._n_blocks + self._n_parts > 0
        self._source, self._n_blocks, self._n_parts, self._changed = "", 0, 0, False
        self._screen.forget()
        return shown

    def _draw(self, ended: bool) -> None:
        from rich.text import Text

        blocks = self._blocks(self._source, self._console, ended)
        if not blocks:
            return
        done: list[Text] = []
        live: list[Text] = []
        for i, block in enumerate(blocks):
            first = 0 if i else self._n_parts
            for number, part in enumerate(block.parts[first:], first):
                lines = live if live or not part.final else done
                if number == 0 and self._n_blocks + i:
                    lines.append(Text())
                lines += part.lines()
        self._screen.show(done, live)
        unfinished = (i for i, block in enumerate(blocks) if not all(part.final for part in block.parts))
        i = next(unfinished, len(blocks) - 1)
        self._n_parts = sum(part.final for part in blocks[i].parts)
        self._n_blocks += i
        self._source = "\n".join(self._source.split("\n")[blocks[i].start :])


class _Screen:
    """The last lines of a terminal, as far as they may change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.forget()

    def forget(self) -> None:
        """What is shown stays, and the cursor is elsewhere."""
        self._shown: list[str] = []
        self._heights: list[int] = []
        self._below = False
        """Whether the cursor is at the end of a finished line."""

    def show(self, done: Sequence[Text], live: Sequence[Text]) -> None:
        """Write lines in place of those that may change; `done` are finished. The cursor stays after the last one.

        Of lines that may change, no more are shown than the screen has: others could not be written again.
        """
        columns, rows = self._console.size
        heights = [_height(line, columns) for line in live]
        while len(heights) > 1 and sum(heights) >= rows:
            del heights[0]
        shown = live[len(live) - len(heights) :]
        texts = [self._sequences(line) for line in [*done, *shown]]
        out = self._changes(texts)
        self._below = not shown and (bool(texts) or self._below)
        self._shown, self._heights = texts[len(done) :], heights
        # Last: an interruption while it is written leaves the rest in the stream's buffer.
        if out:
            _streams.write(out)

    def _changes(self, texts: Sequence[str]) -> str:
        """What writes texts in place of those shown, from the first on that differs."""
        shown = self._shown
        if texts == shown:
            return ""
        same = next((i for i, (old, new) in enumerate(zip(shown, texts, strict=False)) if old != new), len(shown))
        same = min(same, max(0, len(texts) - 1))  # the cursor belongs to the end of the last one
        start = ""
        if same < len(shown):
            up = sum(self._heights[same:]) - 1
            start = "\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J"
        elif shown or self._below:
            start = "\n"
        return start + "\n".join(texts[same:])

    def _sequences(self, line: Text) -> str:
        """A line with its styles as control sequences."""
        with self._console.capture() as capture:
            self._console.print(line, end="", soft_wrap=True)
        return capture.get()


def _height(line: Text, columns: int) -> int:
    """Rows of the terminal that a line takes."""
    from rich.cells import chop_cells

    return 1 if line.cell_len <= columns else len(chop_cells(line.plain, columns))
