"""What holds an answer: from the options of a call, and the tools of a chat, to constraints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pyllm.config import GenerateSettings
from pyllm.errors import RequestError
from pyllm.records import dataclass
from pyllm.tokenizers import Tokenizer

if TYPE_CHECKING:
    from pyllm.chat.dialects import DialectSpec
    from pyllm.chat.dialects.spec import Calls, Channels
    from pyllm.constraints.constraint import Constraint
    from pyllm.constraints.grammar import Grammar


@dataclass(frozen=True, slots=True)
class Held:
    """What holds the answers of a call."""

    constrain: Callable[[], Constraint] | None
    """Makes the constraint of one answer; None: there is something to say alone."""
    parse: Callable[[str], Any] | None = None
    """Makes a whole answer's text a value."""
    warnings: tuple[str, ...] = ()
    """What is not held."""


def of_settings(settings: GenerateSettings, tokenizer: Tokenizer | None, *, continues: bool) -> Held | None:
    """What `response_format`, `regex`, `choice` or `grammar` ask for; None without them. Raises RequestError."""
    made = _form(settings)
    return None if made is None else _held(made, tokenizer, continues, None)


def of_chat(
    settings: GenerateSettings,
    tools: Sequence[Mapping[str, Any]] | None,
    tokenizer: Tokenizer,
    spec: DialectSpec,
    *,
    continues: bool,
    reasoning_end: str | None,
) -> Held | None:
    """What the settings of a chat ask for: a form, calls of tools, or one of both where the model may choose.

    `reasoning_end`: the text that ends the reasoning in which the answer begins. Raises RequestError.
    """
    from pyllm.chat.dialects.spec import Calls

    choice = tool_named(settings.tool_choice)
    if choice not in ("auto", "none") and not tools:
        raise RequestError("tool_choice needs tools, and there are none")
    form = _form(settings)
    if form is None:
        return of_tools(settings, tools, tokenizer, spec, reasoning_end) if tools else None
    if choice not in ("auto", "none"):
        raise RequestError("an answer is calls of tools or has a form of its own; leave out tool_choice, or the form")
    if tools and choice == "auto" and isinstance(spec.calls, Calls):
        from pyllm.constraints.grammar import either

        form = either(_calls(settings, tools, tokenizer, spec, spec.calls, "required"), form)
    elif tools and choice == "auto":
        warning = "tools: not called: no grammar describes an answer that is a call of this model's or has a form"
        form = replace(form, warnings=(*form.warnings, warning))
    return _held(form, tokenizer, continues, reasoning_end)


def _form(settings: GenerateSettings) -> Grammar | None:
    """The form that an answer must have."""
    forms = settings.response_format, settings.regex, settings.choice or None, settings.grammar
    if all(form is None for form in forms):
        return None
    from pyllm.constraints import grammar as grammars

    if settings.response_format is not None:
        return grammars.of_response_format(settings.response_format)
    if settings.regex is not None:
        return grammars.of_regex(settings.regex)
    if settings.choice:
        return grammars.of_choice(settings.choice)
    assert settings.grammar is not None
    return grammars.of_grammar(settings.grammar)


def of_tools(
    settings: GenerateSettings,
    tools: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    spec: DialectSpec,
    reasoning_end: str | None,
) -> Held | None:
    """What `tool_choice`, or tools that are strict, ask for; None where nothing is held.

    Raises RequestError: no such tool, a strict one that cannot be held, or a model whose calls are unknown.
    """
    from pyllm.chat.dialects.spec import Calls, Channels
    from pyllm.constraints.constraint import ArmedConstraint
    from pyllm.constraints.vocabulary import vocabulary

    choice = tool_named(settings.tool_choice)
    strict = any(tool.get("function", tool).get("strict") is True for tool in tools)
    if choice == "none" or (choice == "auto" and not strict):
        return None
    form = spec.calls or spec.channels
    required = choice != "auto"
    opening = form.opening if isinstance(form, Calls) else ()
    if not required and not opening and not isinstance(form, Channels):
        return Held(None, None, ("strict tools: not held: no grammar describes where this model's calls begin",))
    if form is None:
        raise RequestError("this model's calls of tools are unknown; tool_choice must be auto or none")
    made = _calls(settings, tools, tokenizer, spec, form, choice)
    if required or isinstance(form, Channels):
        return _held(made, tokenizer, False, reasoning_end)
    known = vocabulary(tokenizer)
    return Held(partial(ArmedConstraint, made, known, opening[:1], inclusive=True, needed=False), None, made.warnings)


def _calls(
    settings: GenerateSettings,
    tools: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    spec: DialectSpec,
    form: Calls | Channels,
    choice: str,
) -> Grammar:
    """The grammar of calls in the model's dialect."""
    from pyllm.constraints import tools as calls

    return calls.of_tools(
        tools,
        form,
        tokenizer,
        only=choice if choice not in ("auto", "required") else None,
        parallel=settings.parallel_tool_calls,
        required=choice != "auto",
        ids=spec.ids,
    )


def tool_named(choice: str | Mapping[str, Any]) -> str:
    """A `tool_choice`: "auto", "none", "required", or a tool's name. Raises RequestError."""
    if isinstance(choice, str):
        return choice
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise RequestError('tool_choice must be auto, none, required, or name a tool: {"function": {"name": …}}')
    return name


def _held(made: Grammar, tokenizer: Tokenizer | None, continues: bool, reasoning_end: str | None) -> Held:
    from pyllm.constraints.constraint import ArmedConstraint, GrammarConstraint
    from pyllm.constraints.vocabulary import vocabulary

    if tokenizer is None:
        raise RequestError(f"{made.name} needs a tokenizer, and this model has none that is usable")
    known = vocabulary(tokenizer)
    constrain: Callable[[], Constraint]
    if reasoning_end is not None:
        constrain = partial(ArmedConstraint, made, known, [reasoning_end], inclusive=False, needed=True)
    else:
        constrain = partial(GrammarConstraint, made, known, continues=continues)
    return Held(constrain, made.parse, made.warnings)
