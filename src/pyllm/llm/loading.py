"""From a path or a name to a compiled model; shared by `pyllm.load` and the benchmark."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pyllm import env
from pyllm.config import ExecutionOptions, LoadSettings, PlacementOptions, Progress
from pyllm.errors import ModelError, TokenizerError
from pyllm.jit.memory import total_memory
from pyllm.jit.processors import default_threads
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.archs import Architecture
    from pyllm.archs.decoder import Features
    from pyllm.backends.base import DeviceInfo, Executable
    from pyllm.engine.encoding import Encoder
    from pyllm.gguf import GGUFFile
    from pyllm.gguf.tensor import TensorInfo
    from pyllm.llm.adapters import Adapter
    from pyllm.program import Program
    from pyllm.tokenizers import Tokenizer

DEFAULT_N_CTX = 4096
_PAGE_SIZE = 32
MAX_DRAFTS = 32
"""Drafted tokens of a step, where there is speculation."""
_ROOM_OF_FURTHER = 512
"""Positions of the KV cache for each sequence beyond the first, unless `n_kv` is given."""
_CHECKPOINT_BYTES = 512 << 20
_STATE_SHARE = 8
"""Part of the machine's memory that recurrent states of running sequences may take: an eighth, or `_LEAST_STATES`."""
_LEAST_STATES = 1 << 30
_LEAST_CHECKPOINTS, _MOST_CHECKPOINTS = 4, 64
"""Memory for checkpoints of recurrent states, and how many there are at least and at most."""


def find_model(model: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The file of a model: of a named one, a catalog's name with its tag, else an existing path, else a name known to
    `pyllm.hub`.

    A name may be downloaded. Raises ModelError, HubError.
    """
    if isinstance(model, str) and not model.lower().endswith(".gguf"):
        from pyllm import hub

        if hub.is_catalogued(model) or hub.find_named(model) is not None:
            return hub.resolve(model, progress=progress)
    path = env.user_path(model)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name that is too long, a folder without access
        raise ModelError(f"{path} cannot be opened: {error.strerror}") from error
    if is_file:
        return path
    if is_folder:
        raise ModelError(f"{path} is a folder; name the GGUF file in it")
    from pyllm import hub

    a_file = not isinstance(model, str) or path.suffix.lower() == ".gguf" or path.is_absolute()
    if a_file and not hub.is_remote(str(model)):
        raise ModelError(f"there is no file {path}")
    return hub.resolve(model, progress=progress)


class Model(Protocol):
    """A `GGUFFile`, or a substitute, that can be compiled."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...


class ModelFile(Model, Protocol):
    """A file of a model, or a substitute, and where it is."""

    @property
    def path(self) -> Path: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Compiled:
    """A model ready to run, and its placement."""

    architecture: Architecture
    executable: Executable
    devices: tuple[DeviceInfo, ...]
    """Devices that compute."""
    n_gpu_layers: int
    """Layers with a part on a GPU; the output counts as one."""


def execution_options(n_ctx: int, settings: LoadSettings) -> ExecutionOptions:
    """Capacities for contexts of `n_ctx` tokens."""
    max_seqs = settings.max_seqs
    n_kv = max(n_ctx, settings.n_kv or n_ctx + (max_seqs - 1) * min(n_ctx, _ROOM_OF_FURTHER))
    return ExecutionOptions(
        n_pages=-(-n_kv // _PAGE_SIZE),
        page_size=_PAGE_SIZE,
        max_tokens=max(settings.n_batch, max_seqs),
        max_seqs=max_seqs,
        max_rows=max(settings.n_rows, max_seqs),
        max_drafts=0 if settings.spec == "off" else MAX_DRAFTS,
        many_rows=settings.n_rows > 128,
        kv_dtype=settings.kv_dtype,
        n_threads=settings.n_threads or default_threads(),
        progress=settings.progress,
    )


def with_slots(options: ExecutionOptions, program: Program) -> ExecutionOptions:
    """The same with slots, where the program has recurrent states: two for each sequence, since a step reads one and
    writes another, and some for checkpoints and drafts. Fewer sequences at once, where states are large."""
    from pyllm.backends.base import slot_bytes

    if not program.slots:
        return options
    size = slot_bytes(program)
    most = max(_LEAST_STATES, (total_memory() or 0) // _STATE_SHARE) // (2 * size)
    max_seqs = max(1, min(options.max_seqs, most))
    n_checkpoints = min(max(_CHECKPOINT_BYTES // size, _LEAST_CHECKPOINTS), _MOST_CHECKPOINTS)
    n_drafts = min(options.max_drafts, n_checkpoints)
    return replace(options, max_seqs=max_seqs, n_slots=2 * max_seqs + n_checkpoints + n_drafts)


def capacities(options: ExecutionOptions, program: Program, n_ctx: int) -> ExecutionOptions:
    """The same as the program needs them: slots, and steps that hold whole sequences where it takes nothing less."""
    if program.whole:
        options = replace(options, max_tokens=max(options.max_tokens, n_ctx), max_rows=max(options.max_rows, n_ctx))
    return with_slots(options, program)


def record(
    file: Model, n_ctx: int, adapters: Sequence[Adapter] = (), features: Features | None = None
) -> tuple[Architecture, Mapping[str, TensorInfo]]:
    """Record a model's program for contexts up to `n_ctx`, with adapters; returns it with its tensors. `features`: as
    for `archs.load`.

    Raises ModelError.
    """
    from pyllm import archs

    check_vocabulary(file)
    architecture = archs.load(file.metadata, file.tensors, n_ctx, features)
    if not adapters:
        return architecture, architecture.tensors
    from pyllm.program.lora import adapt

    program, tensors = adapt(architecture.program, architecture.tensors, architecture.name, adapters)
    return replace(architecture, program=program), tensors


def compile_model(
    file: Model,
    n_ctx: int,
    options: ExecutionOptions,
    backend: str,
    adapters: Sequence[Adapter] = (),
    placement: PlacementOptions | None = None,
    features: Features | None = None,
    encodes: bool = False,
) -> Compiled:
    """Record the model's program for contexts up to `n_ctx`, with adapters, and compile it; `features` as for `record`.
    `encodes`: the caller compiles its encoder too (`compile_encoder`); else a model that has one is refused.

    The file and the adapters must stay open as long as the executable. With automatic GPU layers ("auto"), a load that
    runs out of memory is tried again with fewer. Raises ModelError, RequestError, BackendError, OutOfMemoryError.
    """
    from pyllm import backends
    from pyllm.backends import devices
    from pyllm.backends.split import compile_placed

    placement = placement or PlacementOptions()
    architecture, tensors = record(file, n_ctx, adapters, features)
    chosen = of_program(architecture.program, devices.choose(backend, placement))
    if architecture.program.encoder is not None and (adapters or not encodes):
        what = "adapters are" if encodes else "this is"
        raise ModelError(f"{what} for models without an encoder, and {architecture.name} has one; complete() works")
    if options.collect_importance and backend == devices.AUTO:
        chosen = [device for device in chosen if backends.get(device.backend).collects_importance] or chosen
    placement = replace(placement, devices=())  # all that are chosen are those
    options = capacities(options, architecture.program, n_ctx)
    executable, placed = compile_placed(architecture.program, tensors, placement, chosen, options)
    used = tuple(device for device in chosen if device.name in placed.device_of_op)
    return Compiled(architecture, executable, used, min(placed.n_gpu_layers, architecture.n_layers + 1))


def of_program(program: Program, chosen: Sequence[DeviceInfo]) -> list[DeviceInfo]:
    """The chosen devices that a program may be on: of a model with an encoder the last one that has attention to a
    source."""
    from pyllm import backends

    if program.encoder is None:
        return list(chosen)
    return [device for device in chosen if backends.get(device.backend).reads_sources][-1:] or list(chosen)


def encoder_options(options: ExecutionOptions, n_ctx: int) -> ExecutionOptions:
    """Capacities of an encoder beside a model with these: a source at a time."""
    n_pages = -(-n_ctx // options.page_size)
    return replace(options, n_pages=n_pages, max_tokens=n_ctx, max_seqs=1, max_rows=1, max_drafts=0)


def compile_encoder(compiled: Compiled, n_ctx: int) -> Encoder | None:
    """The encoder of a compiled model, if it has one, for sources of up to `n_ctx` tokens. Raises as
    `compile_model`."""
    from pyllm import backends
    from pyllm.engine.encoding import Encoder

    architecture, executable = compiled.architecture, compiled.executable
    if (program := architecture.program.encoder) is None:
        return None
    options = encoder_options(executable.options, n_ctx)
    encoder = executable.beside(program, architecture.tensors, options)
    if encoder is None:
        encoder = backends.get(compiled.devices[0].backend).compile(program, architecture.tensors, options)
    return Encoder(encoder, executable, architecture.start)


class TokenizerLoader:
    """Builds a file's tokenizer in a thread while the weights are packed."""

    def __init__(self, file: GGUFFile) -> None:
        self._tokenizer: Tokenizer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._build, args=(file,), name="pyllm-tokenizer", daemon=True)
        self._thread.start()

    def _build(self, file: GGUFFile) -> None:
        try:
            from pyllm import tokenizers

            self._tokenizer = tokenizers.from_gguf(file.metadata, token_rows(file))
        except BaseException as error:
            self._error = error

    def get(self) -> tuple[Tokenizer | None, TokenizerError | None]:
        """The tokenizer, or the TokenizerError; raises any other error."""
        self.wait()
        if self._error is not None and not isinstance(self._error, TokenizerError):
            raise self._error
        return self._tokenizer, self._error

    def wait(self) -> None:
        """Wait until the thread no longer reads the file."""
        self._thread.join()


def token_rows(file: Model) -> int | None:
    """Rows of a model's token table; None without one."""
    table = file.tensors.get("token_embd.weight")
    return None if table is None or not table.shape else table.shape[0]


def check_vocabulary(file: Model) -> None:
    """Raise ModelError where the vocabulary has more tokens than the token table has rows; fewer are usual."""
    from pyllm.gguf.metadata import Metadata

    key, rows, metadata = "tokenizer.ggml.tokens", token_rows(file), file.metadata
    if key not in metadata:
        return
    # The field's count suffices; texts are decoded in the tokenizer's thread.
    tokens = metadata.field(key).count if isinstance(metadata, Metadata) else len(metadata[key])
    if rows is not None and tokens > rows:
        raise ModelError(
            f"the vocabulary has {tokens} tokens, but token_embd.weight has only {rows} rows; the file is damaged or "
            "was converted from parts that do not belong together"
        )


def n_ctx_of(settings: LoadSettings, metadata: Mapping[str, Any]) -> int:
    """The context length that settings ask for."""
    return settings.n_ctx or default_n_ctx(metadata, most=None if settings.n_ctx == 0 else DEFAULT_N_CTX)


def default_n_ctx(metadata: Mapping[str, Any], most: int | None = DEFAULT_N_CTX) -> int:
    """The context length that the model was trained for, at most `most`: memory for more is seldom needed."""
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length", 0)
    if not isinstance(trained, int) or trained <= 0:
        return DEFAULT_N_CTX
    return trained if most is None else min(trained, most)
