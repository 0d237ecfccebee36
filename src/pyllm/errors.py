"""One tree of exceptions: catch `PyllmError` to catch everything that pyllm raises on purpose.

A message says what is wrong, where, and what would work; clauses are joined by "; ", nothing is capitalized and no
full stop ends it (`tests/unit/test_messages.py`). The command line prints it as it is.
"""

from __future__ import annotations


class PyllmError(Exception):
    """Base of every error that pyllm raises on purpose."""


class GGUFError(PyllmError):
    """A GGUF file cannot be read (names the file, the byte offset and what was wrong there) or written."""


class FormatError(PyllmError):
    """A tensor format is unknown, or cannot do what was asked of it."""


class TokenizerError(PyllmError):
    """A vocabulary is missing, unusable or of a kind that is not known."""


class TemplateError(PyllmError):
    """A chat template does not parse, refuses its input, or does something it may not."""


class ModelError(PyllmError):
    """A model cannot be loaded: unknown architecture, missing tensor, contradicting metadata."""


class BackendError(PyllmError):
    """A backend is unknown, not available here, or failed; says why and which would work."""


class OutOfMemoryError(BackendError, MemoryError):
    """Weights, cache or work space do not fit; names the bytes needed and the bytes free."""


class RequestError(PyllmError, ValueError):
    """A request is contradictory or outside what the model allows."""


class ContextFullError(RequestError):
    """A prompt has more tokens than the context holds. (An answer that fills the context ends there.)"""

    def __init__(self, message: str, n_tokens: int = 0, n_ctx: int = 0) -> None:
        super().__init__(message)
        self.n_tokens = n_tokens
        """Tokens of the prompt; 0 where that is not known."""
        self.n_ctx = n_ctx
        """What the context holds."""


class QueueFullError(PyllmError):
    """More requests are waiting than the queue holds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds until there will probably be room."""


class ClosedError(PyllmError):
    """The model was closed."""


class CacheError(PyllmError):
    """A saved prefix cache is of another model, no such file at all, or cannot be read or written."""


class HubError(PyllmError):
    """A model name is unknown, or a download failed or did not match its hash."""


class PyllmWarning(UserWarning):
    """Something works, but worse than it could: the text says what would help. Issued by `warnings.warn`."""
