"""Speculation beside none: the same answers with and without it, in turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from pyllm.errors import BackendError
from pyllm.llm import LLM
from pyllm.llm.opening import load
from pyllm.llm.results import Completion
from pyllm.records import dataclass

_LINES = 60
"""Lines of the file that is edited."""
TASKS = {
    "edit": "Rename the method `match` to `find` everywhere in this file, and change nothing else. Answer with the "
    "whole file in one code block, without any explanation.\n\n```python\n{source}```",
    "code": "Write a Python module with a class `Matrix`: addition, multiplication, transposition, determinant by "
    "elimination, inverse, equality, string form, each with a docstring, and unit tests for all of them.",
    "free": "Tell a story about a lighthouse keeper who finds a message in a bottle.",
}
"""What is asked: a file of 60 lines with a name changed, new code, free text."""
_WARM = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """An answer with speculation and without, in tokens per second; medians of several turns."""

    task: str
    spec: str
    n_tokens: int
    without: float
    rate: float
    ratio: float
    """Of rates in the same turn."""
    n_drafted: int
    n_accepted: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    model: Path | str, specs: Iterable[str], options: Mapping[str, Any], n_tokens: int, repetitions: int
) -> Iterator[Comparison]:
    """Comparisons for each method and task. `options`: of `load`. Takes the memory of two models.

    Raises what `load` and `LLM.chat` raise, and BackendError where answers differ on devices whose results do not
    depend on company.
    """
    with load(model, **options) as plain:
        for spec in specs:
            with load(model, spec=spec, **options) as llm:
                for task in TASKS:
                    yield _compared(plain, llm, task, spec, n_tokens, repetitions)


def _compared(plain: LLM, llm: LLM, task: str, spec: str, n_tokens: int, repetitions: int) -> Comparison:
    for one in (plain, llm):
        _answer(one, task, _WARM)  # the prompt is then in the prefix cache
    turns = []
    for _ in range(repetitions):
        before, after = _answer(plain, task, n_tokens), _answer(llm, task, n_tokens)
        if before.tokens != after.tokens and llm.devices == ("cpu",):
            raise BackendError(f"the answers to {task!r} differ with and without speculation")
        turns.append((before.usage.rate, after.usage.rate))
    usage = after.usage
    return Comparison(
        task=task,
        spec=spec,
        n_tokens=usage.n_generated,
        without=median(before for before, _ in turns),
        rate=median(after for _, after in turns),
        ratio=median(after / before for before, after in turns if before),
        n_drafted=usage.n_drafted,
        n_accepted=usage.n_accepted,
    )


def _answer(llm: LLM, task: str, n_tokens: int) -> Completion:
    import pyllm.cache.pool

    lines = Path(pyllm.cache.pool.__file__).read_text(encoding="utf-8").splitlines(keepends=True)
    text = TASKS[task].format(source="".join(lines[:_LINES]))
    return llm.chat([{"role": "user", "content": text}], temperature=0, max_tokens=n_tokens)


def table(found: Iterable[Comparison]) -> Iterator[str]:
    """Lines of a Markdown table, each when its comparison is done."""
    yield "| task | method | tokens | without, t/s | with, t/s | ratio | guesses right |"
    yield "|---|---|---|---|---|---|---|"
    for c in found:
        method = c.spec.split("=")[0]
        rates = f"{c.without:.1f} | {c.rate:.1f} | {c.ratio:.2f}"
        yield f"| {c.task} | {method} | {c.n_tokens} | {rates} | {c.n_accepted} of {c.n_drafted} |"
