"""Collection of an importance matrix: a model reads a text, and the squared inputs of its weights are summed.

The text is cut into non-overlapping windows of n_ctx tokens, each read from an empty context, its first token replaced
by BOS where the model adds one, as in llama.cpp's imatrix tool. A rest at the end is not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.base import Batch, ImportanceSums
from pyllm.config import ExecutionOptions, KVDtype, Progress
from pyllm.errors import ModelError, RequestError, TokenizerError
from pyllm.gguf.tensor import file_name
from pyllm.jit.processors import default_threads
from pyllm.llm.loading import TokenizerLoader, compile_model, find_model
from pyllm.program import Program
from pyllm.program.ops.linear import Linear
from pyllm.quant.imatrix import CHUNK_SIZE, ImportanceMatrix, Sums

if TYPE_CHECKING:
    from pyllm.tokenizers import Tokenizer

_PAGE_SIZE = 32


class Collector:
    """A model compiled for collection; use it in a `with` block, or `close` it.

    `n_ctx`: tokens of a window. `n_batch`: most tokens of a step, which takes as many windows as fit. `process_output`:
    collect the output matrix's importance too. Other arguments and errors as for `pyllm.load`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        n_ctx: int = CHUNK_SIZE,
        n_batch: int = 512,
        process_output: bool = False,
        backend: str = "cpu",
        n_threads: int | None = None,
        kv_dtype: KVDtype = "f16",
        progress: Progress | None = None,
    ) -> None:
        from pyllm.gguf import open_gguf

        if n_ctx < 2 or n_batch < 1:
            raise RequestError(f"windows of {n_ctx} tokens in steps of {n_batch} cannot be read")
        self.n_ctx = n_ctx
        self._side = max(1, n_batch // n_ctx)
        """Windows side by side."""
        self._pages = -(-n_ctx // _PAGE_SIZE)
        max_tokens = min(n_ctx * self._side, n_batch)
        options = ExecutionOptions(
            n_pages=self._side * self._pages,
            page_size=_PAGE_SIZE,
            max_tokens=max_tokens,
            max_seqs=self._side,
            max_rows=max_tokens,
            kv_dtype=kv_dtype,
            n_threads=n_threads or default_threads(),
            many_rows=True,
            collect_importance=True,
            progress=progress,
        )
        self._file = open_gguf(find_model(model, progress))
        self._tokenizer = TokenizerLoader(self._file)
        try:
            compiled = compile_model(self._file, n_ctx, options, backend)
            self._architecture, self._executable = compiled.architecture, compiled.executable
        except BaseException:
            self._tokenizer.wait()
            self._file.close()
            raise
        self._batch = Batch(options)
        self._output = _output_weight(self._architecture.program) if process_output else None
        self._output_squares = np.zeros(self._architecture.n_embd, np.float64)
        self._n_output = 0
        self.n_windows = 0
        """Windows read so far."""
        self.datasets: list[str] = []

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError where it has none; such a model takes token ids only."""
        tokenizer, error = self._tokenizer.get()
        if tokenizer is None:
            raise TokenizerError(str(error)) from error
        return tokenizer

    def read(
        self,
        text: str | Sequence[int],
        *,
        dataset: str = "",
        skip: int = 0,
        n_windows: int | None = None,
        parse_special: bool = False,
    ) -> Iterator[tuple[int, int]]:
        """Read a text (or token ids); yields after each step the number of its windows read, and their total.

        `dataset`: the text's name in the matrix. `skip`: windows skipped at the beginning; `n_windows`: most windows
        read. `parse_special`: text such as `<|im_start|>` means that token. An interrupt loses only the current step.

        Raises RequestError where no whole window is left; ModelError where activations are not finite.
        """
        tokens = np.asarray(
            self.tokenizer.encode(text, add_special=True, parse_special=parse_special)
            if isinstance(text, str)
            else text,
            np.int32,
        )
        total = len(tokens) // self.n_ctx - skip
        if total < 1:
            raise RequestError(
                f"the text has {len(tokens)} tokens; windows of {self.n_ctx} need at least {self.n_ctx * (skip + 1)}"
            )
        if tokens.min() < 0 or tokens.max() >= self._architecture.n_vocab:
            raise RequestError(f"token ids must be from 0 to {self._architecture.n_vocab - 1}")
        windows = tokens[skip * self.n_ctx :][: total * self.n_ctx].reshape(total, self.n_ctx)
        return self._steps(windows[: n_windows or total].copy(), dataset)

    def matrix(self) -> ImportanceMatrix:
        """The importance collected so far."""
        sums: ImportanceSums = self._executable.importance()
        kept = {
            file_name(name): Sums(squares, counts)  # rows of a tensor have the inputs of all
            for name, (squares, counts) in sums.items()
            if name.startswith("blk.") and counts.any()
        }
        if self._output is not None and self._n_output:
            kept[self._output] = Sums(self._output_squares[None].copy(), np.array([self._n_output]))
        for name, entry in kept.items():
            if not np.isfinite(entry.squares).all():
                raise ModelError(f"inputs of {name} are infinite or no numbers; the model is damaged")
        return ImportanceMatrix(kept, self.datasets, self.n_windows, self.n_ctx)

    def close(self) -> None:
        self._executable.close()
        self._tokenizer.wait()
        self._file.close()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _steps(
        self, windows: np.ndarray[tuple[int, int], np.dtype[np.int32]], dataset: str
    ) -> Iterator[tuple[int, int]]:
        tokenizer, _ = self._tokenizer.get()
        if tokenizer is not None and tokenizer.add_bos and tokenizer.bos_id is not None:
            windows[:, 0] = tokenizer.bos_id
        if dataset and dataset not in self.datasets:
            self.datasets.append(dataset)
        for start in range(0, len(windows), self._side):
            side = windows[start : start + self._side]
            self._run(side)
            self.n_windows += len(side)
            yield start + len(side), len(windows)

    def _run(self, windows: np.ndarray[tuple[int, int], np.dtype[np.int32]]) -> None:
        """Read windows side by side in one step; a window longer than a step, piece by piece."""
        most = len(self._batch.tokens) // len(windows)
        for start in range(0, self.n_ctx, most):
            self._batch.clear()
            for i, window in enumerate(windows):
                pages = range(i * self._pages, (i + 1) * self._pages)
                self._batch.add(window[start : start + most], start, pages, want="all")
            hidden = self._executable.run(self._batch, "hidden")
            if self._output is not None:
                self._output_squares += np.square(hidden, dtype=np.float64).sum(axis=0)
                self._n_output += len(hidden)


def _output_weight(program: Program) -> str | None:
    """The output matrix, which computes logits."""
    return next((op.weight for op in program.ops if isinstance(op, Linear) and op.x == program.hidden), None)
