"""Run quantized language models on your own machine.

    import pyllm

    with pyllm.load("qwen2.5-coder:0.5b") as llm:
        print(llm.chat("Why is the sky blue?").text)
        for piece in llm.complete("Once upon a time", stream=True):
            print(piece, end="", flush=True)

Names are imported when they are first used: `import pyllm` itself loads neither numpy nor a backend.
"""

# Imports nothing, not even `typing`: with `python -m pyllm` the current folder is still in the search path here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyllm.chat import ChatTemplate
    from pyllm.config import SamplingParams
    from pyllm.errors import (
        BackendError,
        CacheError,
        ClosedError,
        ContextFullError,
        FormatError,
        GGUFError,
        HubError,
        ModelError,
        OutOfMemoryError,
        PyllmError,
        PyllmWarning,
        QueueFullError,
        RequestError,
        TemplateError,
        TokenizerError,
    )
    from pyllm.gguf import GGUFFile, open_gguf
    from pyllm.llm import LLM, load, load_tokenizer
    from pyllm.llm.asynchronous import AsyncLLM
    from pyllm.llm.results import Completion, TokenLogprob, Usage
    from pyllm.llm.streams import AsyncCompletionStream, AsyncEventStream, CompletionStream, EventStream
    from pyllm.quant.quantize import quantize
    from pyllm.quant.recipes import RecipeOptions
    from pyllm.tokenizers import Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "pyllm.chat": ("ChatTemplate",),
    "pyllm.config": ("SamplingParams",),
    "pyllm.errors": (
        "BackendError",
        "CacheError",
        "CacheError",
        "ClosedError",
        "ContextFullError",
        "FormatError",
        "GGUFError",
        "HubError",
        "ModelError",
        "OutOfMemoryError",
        "PyllmError",
        "PyllmWarning",
        "QueueFullError",
        "RequestError",
        "TemplateError",
        "TokenizerError",
    ),
    "pyllm.gguf": ("GGUFFile", "open_gguf"),
    "pyllm.llm": ("LLM", "load", "load_tokenizer"),
    "pyllm.quant.quantize": ("quantize",),
    "pyllm.quant.recipes": ("RecipeOptions",),
    "pyllm.llm.asynchronous": ("AsyncLLM",),
    "pyllm.llm.results": ("Completion", "TokenLogprob", "Usage"),
    "pyllm.llm.streams": ("AsyncCompletionStream", "AsyncEventStream", "CompletionStream", "EventStream"),
    "pyllm.tokenizers": ("Tokenizer",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LLM",
    "AsyncCompletionStream",
    "AsyncEventStream",
    "AsyncLLM",
    "BackendError",
    "CacheError",
    "ChatTemplate",
    "ClosedError",
    "Completion",
    "CompletionStream",
    "ContextFullError",
    "EventStream",
    "FormatError",
    "GGUFError",
    "GGUFFile",
    "HubError",
    "ModelError",
    "OutOfMemoryError",
    "PyllmError",
    "PyllmWarning",
    "QueueFullError",
    "RecipeOptions",
    "RequestError",
    "SamplingParams",
    "TemplateError",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
    "Usage",
    "__version__",
    "load",
    "load_tokenizer",
    "open_gguf",
    "quantize",
]


def __getattr__(name: str) -> "Any":
    if name not in _HOME_OF:
        raise AttributeError(f"module 'pyllm' has no attribute '{name}'")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
