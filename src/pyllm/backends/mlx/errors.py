"""Translation of mlx's errors into pyllm's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyllm.errors import BackendError, OutOfMemoryError

_MEMORY = ("memory", "malloc", "allocate", "bad_alloc")


@contextmanager
def device_errors(doing: str) -> Iterator[None]:
    """Errors of mlx and Metal become BackendError, or OutOfMemoryError; `doing` says what failed."""
    try:
        yield
    except BackendError:
        raise
    except (RuntimeError, MemoryError) as error:
        raise translated(error, doing) from error


def translated(error: Exception, doing: str) -> BackendError:
    text = " ".join(str(error).split())[:500] or type(error).__name__  # a shader's error includes its source
    if isinstance(error, MemoryError) or any(word in text.lower() for word in _MEMORY):
        return OutOfMemoryError(
            f"mlx ran out of memory {doing} ({text}); a shorter context, fewer sequences or fewer layers take less"
        )
    return BackendError(f"mlx failed {doing} ({text}); loading the model again may help, and so may backend 'cpu'")
