"""Loading a model for a command, with progress on the terminal."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from pyllm.cli import _options
from pyllm.cli._output import note
from pyllm.cli._progress import Display

if TYPE_CHECKING:
    from pyllm.llm import LLM

_OBJECTS = 100_000
"""New objects after which Python looks for cycles among them. Loading makes eighty thousand, all of which stay; with
Python's own threshold of some hundreds, a tenth of the time to the first token would go into looking through them."""


def load(options: dict[str, Any], chat_template: str | None = None, **more: Any) -> LLM:
    """Load the model of -m and of `engine_options`, `placement_options` and `lora_options`, and remove these options.
    `chat_template` replaces the model's own."""
    gc.set_threshold(_OBJECTS)
    import pyllm
    from pyllm import hub

    settings = {**_options.loading(options), **more}
    with Display() as display:
        llm = pyllm.load(options.pop("model") or hub.default_name(), **settings, progress=display.progress)
    if chat_template is not None:
        llm.chat_template = pyllm.ChatTemplate({"default": chat_template}, llm.tokenizer)
    if settings.get("n_gpu_layers", "auto") not in ("auto", 0) and llm.devices == ("cpu",):
        note("note: no GPU is used, all layers run on the CPU; `pyllm doctor` says what there is")
    return llm
