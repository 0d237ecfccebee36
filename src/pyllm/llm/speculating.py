"""The drafters that a model is loaded with, and what a second model of its vocabulary, or a head, takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyllm.config import ExecutionOptions, LoadSettings
from pyllm.errors import ModelError
from pyllm.llm.fit import Draft, head_device
from pyllm.llm.loading import Compiled, ModelFile, compile_model, execution_options, find_model
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.archs.heads import HeadModel
    from pyllm.engine.speculation import Drafter, DraftModel, Head
    from pyllm.gguf import GGUFFile


_HEADS = "mtp-*.gguf"
"""Names of files that hold a head alone."""


@dataclass(frozen=True, slots=True)
class HeadFile:
    """A head that guesses, and its file."""

    model: HeadModel
    file: ModelFile
    is_own: bool
    """Whether it is the model's."""

    def close(self) -> None:
        """Close it, unless it is the model's."""
        if not self.is_own:
            self.file.close()


def drafters_of(
    settings: LoadSettings, metadata: Mapping[str, Any], n_ctx: int, compiled: Compiled, head: HeadFile | None
) -> list[Drafter]:
    """What guesses tokens of a compiled model, by `spec`; `head`: of `head_of`, closed with the drafter. Raises for a
    draft model what `load` raises."""
    if settings.spec == "off":
        return []
    from pyllm.engine.speculation import Lookup

    if head is not None:
        return [Lookup(), _head(head, n_ctx, compiled)]
    return [Lookup(), _draft_model(settings, metadata, n_ctx)] if settings.draft_model else [Lookup()]


@contextmanager
def beside(settings: LoadSettings, file: ModelFile, n_ctx: int) -> Iterator[Draft | None]:
    """The draft model or the head of settings, for the prediction of memory; None: there is none. Raises as
    `drafters_of`."""
    if (head := head_of(settings, file)) is not None:
        with closing(head):
            yield Draft(head.file, _row_each(execution_options(n_ctx, settings)), head.model)
    elif settings.draft_model:
        with _open(settings, file.metadata) as model:
            yield Draft(model, _row_each(execution_options(n_ctx, settings)))
    else:
        yield None


def head_of(settings: LoadSettings, file: ModelFile) -> HeadFile | None:
    """The head that `spec` uses: in the model's file, in `mtp-*.gguf` in its folder, or of EAGLE-3; None: no head is
    used. Raises ModelError where there is none and `spec` asks for one, or where it was made for another model."""
    from pyllm.archs import heads
    from pyllm.gguf import open_gguf

    if settings.draft_model:
        return _eagle3(settings, file)
    if settings.spec not in ("mtp", "auto"):
        return None
    if (own := heads.find(file.metadata, file.tensors)) is not None:
        return HeadFile(own, file, is_own=True)
    folder, name = file.path.parent, file.path.name
    for path in sorted(folder.glob(_HEADS), key=lambda path: (-_common(path.name.removeprefix("mtp-"), name), path)):
        found = open_gguf(path)
        head = heads.find(found.metadata, found.tensors)
        if head is not None and not _other_size(file.metadata, found.metadata):
            return HeadFile(head, found, is_own=False)
        found.close()
    if settings.spec == "auto":
        return None
    raise ModelError(f"{name} has no head that guesses, nor has a file {_HEADS} beside it; spec='ngram' needs none")


def _eagle3(settings: LoadSettings, file: ModelFile) -> HeadFile | None:
    """The head that is given as a draft model; None: it is a model."""
    from pyllm.archs import eagle3

    found = _open(settings, file.metadata)
    try:
        if found.metadata.get("general.architecture") == eagle3.ARCH:
            model = eagle3.head(found.metadata, found.tensors, file.metadata, file.tensors)
            return HeadFile(model, found, is_own=False)
    except BaseException:
        found.close()
        raise
    found.close()
    return None


def _common(a: str, b: str) -> int:
    """How many characters two names have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _other_size(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two files are of other architectures, or of other sizes of one."""
    name = a.get("general.architecture")
    return any(a.get(key) != b.get(key) for key in ("general.architecture", f"{name}.embedding_length"))


def _head(head: HeadFile, n_ctx: int, compiled: Compiled) -> Head:
    from pyllm import backends
    from pyllm.engine.speculation import Head

    program, tensors = head.model.record(n_ctx)
    device = head_device(compiled.devices)
    options = _row_each(replace(compiled.executable.options, device=device.index, n_slots=0))
    executable = compiled.executable.beside(program, tensors, options)
    if executable is None:
        executable = backends.get(device.backend).compile(program, tensors, options)

    def close() -> None:
        executable.close()
        head.close()

    return Head(executable, compiled.architecture.n_vocab, close, head.model.token_ids)


def _open(settings: LoadSettings, metadata: Mapping[str, Any]) -> GGUFFile:
    """The file of the draft model. Raises ModelError where its vocabulary is not that of the model with this
    metadata."""
    from pyllm.gguf import open_gguf

    file = open_gguf(find_model(settings.draft_model, settings.progress))
    if difference := _difference(metadata, file.metadata):
        file.close()
        raise ModelError(f"{settings.draft_model} cannot draft for this model: {difference}; take one of its family")
    return file


def _row_each(options: ExecutionOptions) -> ExecutionOptions:
    """Capacities of what drafts for a model of these: it holds as many sequences, and gives a row of each."""
    return replace(options, max_rows=options.max_seqs, max_drafts=0, many_rows=False)


def _draft_model(settings: LoadSettings, metadata: Mapping[str, Any], n_ctx: int) -> DraftModel:
    from pyllm.engine.speculation import DraftModel

    file = _open(settings, metadata)
    try:
        options = _row_each(execution_options(n_ctx, settings))
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
