"""Loading a model for a command, with what takes a while shown on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyllm.cli import _options
from pyllm.cli._progress import Display

if TYPE_CHECKING:
    from pyllm.llm import LLM


def load(options: dict[str, Any], **more: Any) -> LLM:
    """Load what the options of `_options.engine_options`, `lora_options` and -m describe, and take them out."""
    import pyllm
    from pyllm import hub

    with Display() as display:
        return pyllm.load(
            options.pop("model") or hub.default_name(),
            backend=options.pop("backend"),
            n_ctx=options.pop("ctx"),
            n_threads=options.pop("threads"),
            kv_dtype=options.pop("kv"),
            adapters=_options.adapters(options),
            progress=display.progress,
            **more,
        )
