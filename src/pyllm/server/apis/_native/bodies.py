"""Bodies of POST /completion and /infill as asks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import field

from pyllm.llm import LLM
from pyllm.llm.infill import Infill, SourceFile
from pyllm.sampling.steps import by_name
from pyllm.server.apis._native.form import is_mixed, mixed_tokens, unsupported
from pyllm.server.asks import Ask
from pyllm.server.bodies import Body
from pyllm.server.options import options_of
from pyllm.server.problems import refuse

_RANDOM_SEED = (1 << 32) - 1
"""llama.cpp's way to say that a seed is a new one each time."""


class CompletionBody(Body, kw_only=True):
    """Prompts to continue. Options of sampling are read by their names; see `options_of`."""

    prompt: Any = ""
    """A text, token ids, both in a list, {"prompt_string": …}; or a list of several of those."""
    model: str = ""
    stream: bool = False
    n_predict: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    n_cmpl: int | None = None
    n_probs: int = 0
    post_sampling_probs: bool = False
    return_tokens: bool = False
    timings_per_token: bool = False
    response_fields: list[str] = field(default_factory=list)
    seed: int = -1
    temperature: float | None = None
    stop: str | list[str] = field(default_factory=list)
    grammar: str = ""
    json_schema: Any = None
    samplers: str | list[str] | None = None
    logit_bias: Any = None
    n_keep: int = 0
    lora: list[dict[str, Any]] | None = None

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def limit(self) -> int | None:
        """Most tokens; None: until the model ends the text."""
        given = (self.n_predict, self.max_tokens, self.max_completion_tokens)
        limit = next((n for n in given if n is not None), -1)
        return None if limit < 0 else limit

    @property
    def n_answers(self) -> int:
        """Answers to each prompt."""
        return self.n_cmpl or self.n or 1


class InfillBody(CompletionBody, kw_only=True):
    """A gap to fill; `prompt` is how the middle begins."""

    input_prefix: str
    input_suffix: str
    input_extra: list[dict[str, Any]] = field(default_factory=list)


def asks_of(body: CompletionBody, fields: Mapping[str, Any], llm: LLM) -> list[Ask]:
    """An ask for each prompt. Raises ProblemError."""
    options = _options(body, fields, llm)
    prompts: list[Any] = [_gap(body)] if isinstance(body, InfillBody) else _prompts(body.prompt, llm)
    return [Ask(body.model, prompt=p, parse_special=True, options=options, n=body.n_answers) for p in prompts]


def _options(body: CompletionBody, fields: Mapping[str, Any], llm: LLM) -> dict[str, Any]:
    options: dict[str, Any] = {**options_of(fields, type(body)), "max_tokens": body.limit}
    if body.post_sampling_probs and body.n_probs > 0:
        raise unsupported("post_sampling_probs: probabilities are those before sampling; leave it out")
    _check_lora(body, llm)
    if body.n_probs > 0:
        options["logprobs"] = body.n_probs
    elif body.stream and body.return_tokens:
        options["logprobs"] = 0
    if body.stops:
        options["stop"] = body.stops
    if body.seed not in (-1, _RANDOM_SEED):
        options["seed"] = body.seed
    if body.temperature is not None:
        options["temperature"] = max(body.temperature, 0.0)
    if body.n_keep > 0:
        options["n_keep"] = body.n_keep
    if body.grammar:
        options["grammar"] = body.grammar
    elif body.json_schema is not None:
        options["response_format"] = {"type": "json_schema", "json_schema": {"schema": body.json_schema}}
    if body.samplers is not None:
        options["samplers"] = _samplers(body.samplers)
    if body.logit_bias:
        options["logit_bias"] = _biases(body.logit_bias, llm)
    return options


def _samplers(given: str | list[str]) -> list[str]:
    """The steps that there are here; llama-server leaves out the others, too ("infill")."""
    names = given.replace(",", ";").split(";") if isinstance(given, str) else given
    return [name for name in names if name.strip().lower().replace("-", "_") in by_name()]


def _biases(given: Any, llm: LLM) -> dict[int, float]:
    """Biases by token id. A text stands for all its tokens, false for never."""
    if isinstance(given, dict):
        pairs: list[Any] = [(int(key) if key.isdecimal() else key, bias) for key, bias in given.items()]
    elif isinstance(given, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        pairs = given
    else:
        raise refuse("logit_bias must be a list of [token, bias] pairs, or an object of them", "logit_bias")
    found: dict[int, float] = {}
    for token, bias in pairs:
        if bias is not False and type(bias) not in (int, float):
            raise refuse(f"logit_bias of {str(token)[:60]!r} must be a number, or false", "logit_bias")
        if type(token) is not int and not isinstance(token, str):
            raise refuse("logit_bias must name tokens by id or text", "logit_bias")
        ids = [token] if isinstance(token, int) else llm.tokenizer.encode(token, add_special=False)
        found |= dict.fromkeys(ids, -math.inf if bias is False else float(bias))
    return found


def keeps_adapters(given: Sequence[Mapping[str, Any]], llm: LLM) -> bool:
    """Whether a list of ids and scales says what is so; an adapter that it leaves out is off."""
    own = [{"id": i, "scale": adapter.scale} for i, adapter in enumerate(llm.adapters)]
    said = [{"id": entry.get("id"), "scale": entry.get("scale")} for entry in given]
    return all(entry in own for entry in said) and all(entry in said for entry in own if entry["scale"])


def _check_lora(body: CompletionBody, llm: LLM) -> None:
    if body.lora is not None and not keeps_adapters(body.lora, llm):
        raise unsupported("lora: the scales of adapters are set when the model is loaded; leave it out", "lora")


def _prompts(value: Any, llm: LLM) -> list[str | list[int]]:
    if isinstance(value, list) and value and not is_mixed(value):
        return [_prompt(f"prompt[{i}]", entry, llm) for i, entry in enumerate(value)]
    return [_prompt("prompt", value, llm)]


def _prompt(place: str, value: Any, llm: LLM) -> str | list[int]:
    if isinstance(value, dict):
        if value.get("multimodal_data"):
            raise refuse(f"{place} has multimodal_data, and this model reads text alone", place)
        value = value.get("prompt_string")
    if isinstance(value, str):
        return value
    if is_mixed(value):
        return mixed_tokens(llm.tokenizer, value, add_special=True, parse_special=True)
    raise refuse(f"{place} must be a text, a list of token ids and texts, or an object with a prompt_string", place)


def _gap(body: InfillBody) -> Infill:
    if not isinstance(body.prompt, str):
        raise refuse("prompt must be a text: how the middle begins", "prompt")
    files = []
    for i, entry in enumerate(body.input_extra):
        name, text = entry.get("filename") or "tmp", entry.get("text")
        if not isinstance(text, str) or not isinstance(name, str):
            place = f"input_extra[{i}]"
            raise refuse(f'{place} must be {{"filename": "…", "text": "…"}}', place)
        files.append(SourceFile(name, text))
    return Infill(body.input_prefix, body.input_suffix, body.prompt, files, field="input_suffix")
