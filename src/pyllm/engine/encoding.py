"""An encoder's pass over a prompt: what it leaves is handed to the decoder's pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch, Executable


class Encoder:
    """The executable of a program's encoder beside the decoder's, which has equal pages. It holds one source at a
    time, whose pages are copied."""

    def __init__(self, encoder: Executable, decoder: Executable, start: int) -> None:
        """`start`: the token that the decoder begins with."""
        self._encoder, self._decoder, self.start = encoder, decoder, start
        self._batch = Batch(encoder.options)

    @property
    def most(self) -> int:
        """Most tokens of a source."""
        o = self._encoder.options
        return min(o.max_tokens, o.n_pages * o.page_size)

    def read(self, source: NDArray[np.int32], pages: Sequence[int]) -> None:
        """Leave a source's keys and values in these pages of the decoder. Raises as `Executable.run`."""
        n = -(-len(source) // self._batch.page_size)
        self._batch.clear()
        self._batch.add(source, 0, range(n), "none")
        self._encoder.run(self._batch, "hidden")
        for i, page in enumerate(pages[:n]):
            self._decoder.write_page(page, self._encoder.read_page(i))

    def interrupt(self) -> None:
        """Stop the running pass, from any thread."""
        self._encoder.interrupt()

    def memory(self) -> dict[str, int]:
        """Bytes held, as `Executable.memory` has them."""
        return self._encoder.memory()

    def close(self) -> None:
        """Free the encoder; before the decoder."""
        self._encoder.close()
