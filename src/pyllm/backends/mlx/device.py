"""What executables share of mlx: limits of its memory, and streams."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from pyllm.backends.mlx import metal

_FREE_BYTES, _FREE_ON_CPU = 256 << 20, 16 << 20
"""Bytes of unused memory that mlx may keep: on a GPU, where allocation is slow, beside twice a step's; on the CPU."""

_kept_free = 0


def keep_free(work_bytes: int) -> None:
    """Limit unused memory that mlx keeps, by the memory of a step, to the largest limit of all executables: steps of
    many sizes would accumulate it."""
    global _kept_free
    _kept_free = max(_kept_free, 2 * work_bytes + _FREE_BYTES if metal.available() else _FREE_ON_CPU)
    mx.set_cache_limit(_kept_free)


def keep_resident() -> None:
    """Ask Metal to keep mlx's memory resident: otherwise macOS may evict weights from the GPU between steps, and a
    model that fills much of memory is reloaded in each."""
    if metal.available() and (usable := mx.device_info(mx.gpu).get("max_recommended_working_set_size")):
        mx.set_wired_limit(int(usable))


_streams: list[Any] = []
"""Streams of closed executables: mlx keeps streams until the process ends, so they are reused."""


def take_stream() -> Any:
    """A stream usable from any thread: weights are packed in the compiling thread, steps run in another."""
    if _streams:
        return _streams.pop()
    return mx.new_thread_unsafe_stream(mx.gpu if metal.available() else mx.cpu)


def return_stream(stream: Any) -> None:
    """Take back the stream of a closed executable."""
    _streams.append(stream)
