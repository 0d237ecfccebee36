"""From a path or a name to a compiled model: what `pyllm.load` and the benchmark share."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm.errors import BackendError, ModelError, TokenizerError

if TYPE_CHECKING:
    from pyllm.archs import Architecture
    from pyllm.backends.base import Executable
    from pyllm.config import ExecutionOptions, Progress
    from pyllm.gguf import GGUFFile
    from pyllm.lora import Adapter
    from pyllm.tokenizers import Tokenizer

DEFAULT_N_CTX = 4096


def find_model(model: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The file of a model: a path that exists, else a name that `pyllm.hub` knows (which may download it)."""
    path = Path(model).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name the GGUF file in it")
    if not isinstance(model, str) or path.suffix.lower() == ".gguf" or path.is_absolute():
        raise ModelError(f"there is no file {path}")
    from pyllm import hub

    return hub.resolve(model, progress=progress)


def compile_model(
    file: GGUFFile, n_ctx: int, options: ExecutionOptions, backend: str, adapters: Sequence[Adapter] = ()
) -> tuple[Architecture, Executable]:
    """Record the model's pass for contexts up to `n_ctx`, with what adapters add, and compile it.

    The file and the adapters must stay open as long as the executable. Raises ModelError, BackendError.
    """
    from pyllm import archs, backends

    architecture = archs.load(file.metadata, file.tensors, n_ctx)
    chosen = backends.get(backend)
    probe = chosen.probe()
    if not probe.available:
        raise BackendError(f"backend {backend!r} cannot be used here: {probe.reason}")
    tensors = file.tensors
    if adapters:
        from pyllm.lora import adapt

        program, tensors = adapt(architecture.program, tensors, architecture.name, adapters)
        architecture = replace(architecture, program=program)
    return architecture, chosen.compile(architecture.program, tensors, options)


class TokenizerLoader:
    """Builds a file's tokenizer in a thread of its own, while the weights are packed."""

    def __init__(self, file: GGUFFile) -> None:
        self._tokenizer: Tokenizer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._build, args=(file,), name="pyllm-tokenizer", daemon=True)
        self._thread.start()

    def _build(self, file: GGUFFile) -> None:
        try:
            from pyllm import tokenizers

            self._tokenizer = tokenizers.from_gguf(file.metadata)
        except BaseException as error:
            self._error = error

    def get(self) -> tuple[Tokenizer | None, TokenizerError | None]:
        """The tokenizer, or why there is none; anything else that went wrong is raised."""
        self.wait()
        if self._error is not None and not isinstance(self._error, TokenizerError):
            raise self._error
        return self._tokenizer, self._error

    def wait(self) -> None:
        """Until the thread no longer reads the file."""
        self._thread.join()


def default_n_ctx(metadata: Mapping[str, Any]) -> int:
    """The length that the model was trained for, but at most `DEFAULT_N_CTX`: memory for the rest is seldom needed."""
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length", 0)
    return min(int(trained), DEFAULT_N_CTX) if isinstance(trained, int) and trained > 0 else DEFAULT_N_CTX
