"""A small text to collect importance on where none is given: of many kinds, written for this purpose.

Prose of several registers, some twenty languages, chats, code of a dozen languages and mathematics are files here; what
machines write (tables, records, logs, sums) is made up by a fixed rule, with random words and numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files

_FILES = ("prose", "chat", "code", "maths", "languages")
_SYLLABLES = (
    "ar", "be", "cor", "del", "en", "fi", "gra", "hol", "in", "jas", "ka", "lu", "mer",
    "nor", "os", "pel", "qui", "ra", "sto", "tan", "ul", "ver", "wil", "yor", "zen",
)  # fmt: skip
_PLACES = ["north", "south", "harbour", "station", "warehouse 3", "online"]


def text() -> str:
    """About 50 kB, always the same."""
    parts = [files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8") for name in _FILES]
    return "\n\n".join([*parts, *_made_up()])


class _Random:
    """Numbers that look random and are the same everywhere (Lehmer's generator)."""

    def __init__(self, state: int) -> None:
        self.state = state

    def below(self, n: int) -> int:
        self.state = self.state * 48271 % 2147483647
        return self.state % n

    def word(self) -> str:
        return "".join(_SYLLABLES[self.below(len(_SYLLABLES))] for _ in range(2 + self.below(2)))

    def name(self) -> str:
        return self.word().capitalize()


def _made_up() -> Iterator[str]:
    r = _Random(20)
    yield "\n".join(_csv(r))
    yield json.dumps([_record(r) for _ in range(12)], indent=2)
    yield "\n".join(json.dumps(_record(r)) for _ in range(8))
    yield "\n".join(_log(r))
    yield "\n".join(_table(r))
    yield "\n".join(_sums(r))


def _csv(r: _Random) -> Iterator[str]:
    yield "date,customer,place,units,price,total"
    for _ in range(28):
        units, cents = 1 + r.below(40), 95 + r.below(9000)
        date = f"20{20 + r.below(12)}-{1 + r.below(12):02}-{1 + r.below(28):02}"
        place = _PLACES[r.below(len(_PLACES))]
        yield f"{date},{r.name()} {r.name()},{place},{units},{cents / 100:.2f},{units * cents / 100:.2f}"


def _record(r: _Random) -> dict[str, object]:
    first = r.name()
    return {
        "id": 1000 + r.below(9000),
        "name": f"{first} {r.name()}",
        "email": f"{first.lower()}@{r.word()}.example",
        "active": r.below(3) > 0,
        "score": r.below(1000) / 10,
        "tags": [r.word() for _ in range(r.below(4))],
        "address": {"street": f"{1 + r.below(150)} {r.name()} Road", "city": r.name(), "zip": f"{r.below(99999):05}"},
        "manager": None if r.below(2) else 1000 + r.below(9000),
    }


def _log(r: _Random) -> Iterator[str]:
    levels = ["INFO", "INFO", "INFO", "DEBUG", "WARNING", "ERROR"]
    seconds = 28800
    for _ in range(32):
        seconds += r.below(90)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{r.below(1000):03}"
        address = ".".join(str(r.below(256)) for _ in range(4))
        what = [
            f"GET /{r.word()}/{r.below(500)} 200 {r.below(90)}ms",
            f"connection from {address}:{1024 + r.below(60000)} accepted",
            f"job {r.state:08x} finished in {r.below(9000) / 1000:.3f} s",
            f"cannot open /var/lib/{r.word()}/{r.word()}.db: permission denied, retrying in {1 + r.below(9)} s",
        ][r.below(4)]
        yield f"2031-03-{1 + r.below(3):02} {clock} {levels[r.below(len(levels))]} [{r.word()}] {what}"


def _table(r: _Random) -> Iterator[str]:
    yield "| Town | Population | Area (km²) | Founded | Mean temperature |"
    yield "|---|---:|---:|---:|---:|"
    for _ in range(16):
        year, warm = 980 + r.below(900), (r.below(180) - 20) / 10
        yield f"| {r.name()} | {r.below(400000):,} | {r.below(30000) / 100} | {year} | {warm} °C |"


def _sums(r: _Random) -> Iterator[str]:
    for _ in range(30):
        a, b = 2 + r.below(998), 2 + r.below(98)
        yield [
            f"{a} + {b} = {a + b}",
            f"{a} - {b} = {a - b}",
            f"{a} × {b} = {a * b}",
            f"{a * b} / {b} = {a}",
            f"What is {a} times {b}? {a} times {b} is {a * b}.",
        ][r.below(5)]
