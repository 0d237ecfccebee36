"""The drafters that a model is loaded with, and what a second model of its vocabulary takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyllm.config import ExecutionOptions, LoadSettings
from pyllm.errors import ModelError
from pyllm.llm.fit import Draft
from pyllm.llm.loading import compile_model, execution_options, find_model

if TYPE_CHECKING:
    from pyllm.engine.speculation import Drafter, DraftModel
    from pyllm.gguf import GGUFFile


def drafters_of(settings: LoadSettings, metadata: Mapping[str, Any], n_ctx: int) -> list[Drafter]:
    """What guesses tokens of a model, by `spec`. Raises for a draft model what `load` raises."""
    if settings.spec == "off":
        return []
    from pyllm.engine.speculation import Lookup

    return [Lookup(), _draft_model(settings, metadata, n_ctx)] if settings.draft_model else [Lookup()]


@contextmanager
def beside(settings: LoadSettings, metadata: Mapping[str, Any], n_ctx: int) -> Iterator[Draft | None]:
    """The draft model of settings, for the prediction of memory; None: there is none. Raises as `drafters_of`."""
    if not settings.draft_model:
        yield None
        return
    with _open(settings, metadata) as file:
        yield Draft(file, _options(settings, n_ctx))


def _open(settings: LoadSettings, metadata: Mapping[str, Any]) -> GGUFFile:
    """The file of the draft model. Raises ModelError where its vocabulary is not that of the model with this
    metadata."""
    from pyllm.gguf import open_gguf

    file = open_gguf(find_model(settings.draft_model, settings.progress))
    if difference := _difference(metadata, file.metadata):
        file.close()
        raise ModelError(f"{settings.draft_model} cannot draft for this model: {difference}; take one of its family")
    return file


def _options(settings: LoadSettings, n_ctx: int) -> ExecutionOptions:
    """Capacities of a draft model: it holds as many sequences, and gives a row of each."""
    options = execution_options(n_ctx, settings)
    return replace(options, max_rows=options.max_seqs, max_drafts=0, many_rows=False)


def _draft_model(settings: LoadSettings, metadata: Mapping[str, Any], n_ctx: int) -> DraftModel:
    from pyllm.engine.speculation import DraftModel

    file = _open(settings, metadata)
    try:
        options = _options(settings, n_ctx)
        compiled = compile_model(file, n_ctx, options, settings.backend, (), settings.placement)
    except BaseException:
        file.close()
        raise
    executable = compiled.executable

    def close() -> None:
        executable.close()
        file.close()

    if executable.program.slots or executable.program.logits is None:
        close()
        raise ModelError(f"{settings.draft_model} cannot draft: it has recurrent states, or no output head")
    return DraftModel(executable, min(_n_tokens(metadata), _n_tokens(file.metadata)), close)


def _n_tokens(metadata: Mapping[str, Any]) -> int:
    return len(metadata["tokenizer.ggml.tokens"])


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """What differs between two vocabularies; empty: nothing."""
    keys = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens")
    for key in keys[:2]:
        if a.get(key) != b.get(key):
            return f"{key} is {b.get(key)}, not {a.get(key)}"
    ours, theirs = a.get(keys[2]), b.get(keys[2])
    if ours is None or theirs is None:
        return "a vocabulary is missing"
    if len(ours) != len(theirs):
        return f"its vocabulary has {len(theirs)} tokens, not {len(ours)}"
    for i, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if own != other:
            return f"its token {i} is {other!r}, not {own!r}"
    return ""
