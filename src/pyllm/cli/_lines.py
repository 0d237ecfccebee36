'''Messages as a user types them, or as they are piped in. `"""` begins and ends one of several lines.'''

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyPressEvent

QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether the text begins with quotes that have not been closed yet."""
    text = text.strip()
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES))


def unquote(text: str) -> str:
    """The text without the quotes around it."""
    text = text.strip()
    if text.startswith(QUOTES):
        text = text.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return text


def piped_lines() -> Iterator[str]:
    """Messages from standard input, a line each; blank lines between messages are skipped."""
    text = ""
    for raw in sys.stdin.buffer:
        text += raw.decode("utf-8", "replace")
        if not is_open(text):
            yield unquote(text)
            text = ""
    if text:
        yield unquote(text)


def file_history(path: Path) -> History:
    """What was typed before, kept in a file; in memory alone where the file can't be read or written."""
    from prompt_toolkit.history import FileHistory

    class Kept(FileHistory):
        def load_history_strings(self) -> Iterable[str]:
            try:
                return list(super().load_history_strings())
            except OSError:
                return []

        def store_string(self, string: str) -> None:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                super().store_string(string)

    return Kept(str(path))


def typed_lines() -> Iterator[str]:
    """Messages from the terminal, with line editing and a history that is kept. Ends at Ctrl-D.

    Ctrl-C throws the line away. A terminal that cannot be edited on (TERM=dumb) still works, line by line.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

    from pyllm import env

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        ">>> ",
        history=file_history(env.data_dir() / "chat_history"),
        key_bindings=keys,
        multiline=True,
        prompt_continuation="... ",
    )
    while True:
        try:
            yield unquote(session.prompt())
        except KeyboardInterrupt:
            print("(Ctrl-D or /exit leaves)")
        except EOFError:
            return
