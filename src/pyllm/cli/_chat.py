"""A conversation: its history, and the commands that begin with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pyllm import env
from pyllm.cli._answer import Printer, variables
from pyllm.cli._output import cut_off, describe, note, speeds, where, write
from pyllm.errors import ClosedError, PyllmError, RequestError
from pyllm.units import size

if TYPE_CHECKING:
    from pyllm.llm import LLM
    from pyllm.llm.results import Completion


class Conversation:
    """The messages so far, and the model."""

    def __init__(
        self, llm: LLM, request: Mapping[str, Any], system: str | None, reasoning: str | None, markdown: bool
    ) -> None:
        self._llm = llm
        assert llm.chat_template is not None
        self._request = {**request, "variables": variables(llm.chat_template, reasoning, request.get("variables"))}
        self._reasoning = reasoning
        self._markdown = markdown
        self._system = system
        self._messages: list[dict[str, str]] = []
        self._last: Completion | None = None
        self._told = False
        """Whether the note about left-out messages was shown."""
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "system": self._set_system,
            "clear": self._clear,
            "regen": self._regenerate,
            "save": self._save,
            "load": self._load,
            "stats": self._stats,
        }

    def greet(self) -> None:
        name = self._llm.metadata.get("general.name") or self._llm.path.stem
        gpus = f", on {where(self._llm)}" if self._llm.n_gpu_layers else ""
        write(f"{name}, {self._llm.n_ctx} tokens of context{gpus}. /help shows the commands, /exit leaves.\n")

    def hold(self, lines: Iterator[str]) -> None:
        """Answer lines until the input ends or /exit."""
        for line in lines:
            text = line.strip()
            if text in ("/exit", "/quit", "/bye"):
                return
            try:
                if text.startswith("/") and not text.startswith("//"):
                    self._command(text)
                elif text:
                    self._ask(text.removeprefix("/") if text.startswith("//") else line)
            except ClosedError:
                raise
            except KeyboardInterrupt:
                write("\n")
            except (PyllmError, OSError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                note(f"error: {describe(error)}")

    def _command(self, text: str) -> None:
        name, _, argument = text[1:].partition(" ")
        if name not in self._commands:
            raise RequestError(f"there is no /{name}; /help shows what there is, // begins a message with a slash")
        self._commands[name](argument.strip())

    def _ask(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        try:
            self._answer()
        except BaseException:
            self._messages.pop()
            raise

    def _answer(self) -> None:
        """Stream an answer to the last message. Ctrl-C ends it early; the part shown stays in the history."""
        stream = self._llm.chat(self._with_system(), stream="events", truncate="oldest", **self._request)
        if stream.n_dropped and not self._told:
            self._told = True
            note(
                f"(the oldest messages are left out from now on: {self._llm.n_ctx} tokens of context have no room for "
                "them; --ctx makes more)"
            )
        printer = Printer(self._reasoning, self._markdown)
        try:
            for event in stream:
                printer.show(event)
        except KeyboardInterrupt:
            stream.close()
            printer.interrupted()
        finally:
            printer.end()
        self._last = stream.result
        self._messages.append(self._last.message)
        if sys.stdout.isatty() and (why := cut_off(self._llm, self._last)):
            note(f"({why})")

    def _with_system(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self._system}] if self._system else []
        return system + self._messages

    def _help(self, _: str) -> None:
        write(
            "/system [TEXT]  show or set what the model is told first; '-' takes it back\n"
            "/clear          forget the conversation\n"
            "/regen          answer the last message again\n"
            "/save FILE      write the conversation to a JSON file\n"
            "/load FILE      read one\n"
            "/stats          tokens, speed and memory\n"
            "/exit           leave (so does Ctrl-D)\n"
            'Several lines: begin and end with """, or press Alt-Enter for a new line. Ctrl-C stops an answer.\n'
        )

    def _set_system(self, text: str) -> None:
        if text:
            self._system = None if text == "-" else text
        write(f"system: {self._system}\n" if self._system else "There is no system message of yours.\n")

    def _clear(self, _: str) -> None:
        self._messages.clear()
        self._told = False
        write("The conversation is forgotten.\n")

    def _regenerate(self, _: str) -> None:
        if not self._messages:
            raise RequestError("there is no message to answer yet")
        answer = self._messages.pop()
        try:
            self._answer()
        except BaseException:
            self._messages.append(answer)
            raise

    def _save(self, file: str) -> None:
        if not file:
            raise RequestError("/save needs the name of a file")
        path = env.user_path(file)
        content = {"model": self._llm.path.name, "system": self._system, "messages": self._messages}
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        write(f"{len(self._messages)} messages are in {path}.\n")

    def _load(self, file: str) -> None:
        if not file:
            raise RequestError("/load needs the name of a file")
        try:
            content = json.loads(env.user_path(file).read_text(encoding="utf-8"))
            messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in content["messages"]]
            system = content.get("system")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(f"{file} is not a conversation that /save wrote: {error!r}") from error
        roles = [m["role"] for m in messages]
        if roles != (["user", "assistant"] * len(roles))[: len(roles)] or len(roles) % 2:
            raise RequestError(f"{file} is not a conversation that /save wrote: user and assistant must take turns")
        self._messages = messages
        self._told = False
        self._system = None if system is None else str(system)
        write(f"{len(messages)} messages are loaded.\n")

    def _stats(self, _: str) -> None:
        if self._last is not None:
            usage = self._last.usage
            write(f"last answer: {speeds(usage)}\n")
            write(f"context: {usage.n_prompt + usage.n_generated} of {self._llm.n_ctx} tokens\n")
        held = ", ".join(f"{name} {size(n)}" for name, n in self._llm.memory().items())
        write(f"memory: {held}; threads: {self._llm.n_threads}\n")
