"""Ollama's parameters, of Modelfiles and of requests, and what they are called in pyllm."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from pyllm.errors import HubError, RequestError
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter."""

    kind: type
    option: str = ""
    """The option of `LLM.chat`; "" for none."""
    loading: str = ""
    """The option of `pyllm.load`; "" for none."""


TABLE: Mapping[str, Parameter] = {
    "num_predict": Parameter(int, "max_tokens"),
    "temperature": Parameter(float, "temperature"),
    "seed": Parameter(int, "seed"),
    "stop": Parameter(str, "stop"),
    "top_k": Parameter(int, "top_k"),
    "top_p": Parameter(float, "top_p"),
    "min_p": Parameter(float, "min_p"),
    "typical_p": Parameter(float, "typical_p"),
    "tfs_z": Parameter(float, "tfs_z"),
    "repeat_last_n": Parameter(int, "repeat_last_n"),
    "repeat_penalty": Parameter(float, "repeat_penalty"),
    "presence_penalty": Parameter(float, "presence_penalty"),
    "frequency_penalty": Parameter(float, "frequency_penalty"),
    "mirostat": Parameter(int, "mirostat"),
    "mirostat_tau": Parameter(float, "mirostat_tau"),
    "mirostat_eta": Parameter(float, "mirostat_eta"),
    "num_keep": Parameter(int, "n_keep"),
    "num_ctx": Parameter(int, loading="n_ctx"),
    "num_batch": Parameter(int, loading="n_batch"),
    "num_thread": Parameter(int, loading="n_threads"),
    "num_gpu": Parameter(int, loading="n_gpu_layers"),
    "main_gpu": Parameter(int, loading="main_gpu"),
    # Known to Ollama, now or once, and without a meaning here.
    "numa": Parameter(bool),
    "low_vram": Parameter(bool),
    "f16_kv": Parameter(bool),
    "logits_all": Parameter(bool),
    "vocab_only": Parameter(bool),
    "use_mmap": Parameter(bool),
    "use_mlock": Parameter(bool),
    "embedding_only": Parameter(bool),
    "penalize_newline": Parameter(bool),
    "num_gqa": Parameter(int),
    "rope_frequency_base": Parameter(float),
    "rope_frequency_scale": Parameter(float),
    "draft_num_predict": Parameter(int),
}
"""By Ollama's names."""


def read(name: str, text: str) -> Any:
    """A parameter's value from a Modelfile. Raises HubError for an unknown one, or a wrong value."""
    parameter = TABLE.get(name)
    if parameter is None:
        close = difflib.get_close_matches(name, TABLE, n=1)
        raise HubError(f"there is no parameter {name[:40]!r}" + (f"; did you mean {close[0]}?" if close else ""))
    if parameter.kind is str:
        if not text:
            raise HubError(f"{name} must be a text that is not empty")
        return text
    if parameter.kind is bool:
        if text.lower() not in ("true", "false"):
            raise HubError(f"{name} must be true or false, not {text[:40]!r}")
        return text.lower() == "true"
    try:
        return _number(name, float(text) if parameter.kind is float else int(text), parameter.kind)
    except (ValueError, RequestError):
        kind = "a number" if parameter.kind is float else "a whole number"
        raise HubError(f"{name} must be {kind}, not {text[:40]!r}") from None


def settle(given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Parameters of a request: known ones with values of their kind; others and nulls are left out.

    `where`: "options.", for errors. Raises RequestError.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        parameter = TABLE.get(name)
        if parameter is None or value is None:
            continue
        if parameter.kind is str:
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
                raise RequestError(f"{where}{name} must be a text or a list of texts")
            found[name] = [text for text in texts if text]
        elif parameter.kind is bool:
            if not isinstance(value, bool):
                raise RequestError(f"{where}{name} must be true or false")
            found[name] = value
        else:
            found[name] = _number(where + name, value, parameter.kind)
    return found


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `LLM.chat` for settled parameters."""
    found = {TABLE[name].option: value for name, value in given.items() if TABLE[name].option}
    if found.get("max_tokens", 0) < 0:
        found["max_tokens"] = None  # -1: any number, -2: until the context is full
    if "stop" in found:
        found["stop"] = tuple(found["stop"])
    return found


def loading_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `pyllm.load` for settled parameters."""
    found = {TABLE[name].loading: value for name, value in given.items() if TABLE[name].loading}
    if found.get("n_gpu_layers", 0) < 0:
        found["n_gpu_layers"] = "auto"
    return {name: value for name, value in found.items() if value != 0 or name in ("n_gpu_layers", "main_gpu")}


def _number(name: str, value: Any, kind: type) -> Any:
    """A number of a kind; 40.0 is a whole one. Raises RequestError."""
    words = "a number" if kind is float else "a whole number"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{name} must be {words}")
    if kind is int:
        if value != int(value) or abs(value) >= 1 << 63:
            raise RequestError(f"{name} must be {words}")
        return int(value)
    return float(value)
