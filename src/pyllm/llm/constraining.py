"""What holds an answer: from the options of a call, and the tools of a chat, to constraints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pyllm.config import GenerateSettings
from pyllm.errors import RequestError
from pyllm.records import dataclass
from pyllm.tokenizers import Tokenizer

if TYPE_CHECKING:
    from pyllm.chat.dialects import DialectSpec
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


def of_settings(
    settings: GenerateSettings, tokenizer: Tokenizer | None, *, continues: bool, reasoning_end: str | None = None
) -> Held | None:
    """What `response_format`, `regex`, `choice` or `grammar` ask for; None without them.

    `reasoning_end`: the text that ends the reasoning in which the answer begins. Raises RequestError.
    """
    forms = settings.response_format, settings.regex, settings.choice or None, settings.grammar
    if all(form is None for form in forms):
        return None
    from pyllm.constraints import grammar as grammars

    made: Grammar | None
    if settings.response_format is not None:
        made = grammars.of_response_format(settings.response_format)
    elif settings.regex is not None:
        made = grammars.of_regex(settings.regex)
    elif settings.choice:
        made = grammars.of_choice(settings.choice)
    else:
        assert settings.grammar is not None
        made = grammars.of_grammar(settings.grammar)
    return None if made is None else _held(made, tokenizer, continues, reasoning_end)


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
    from pyllm.constraints import tools as calls
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
    made = calls.of_tools(
        tools,
        form,
        tokenizer,
        only=choice if choice not in ("auto", "required") else None,
        parallel=settings.parallel_tool_calls,
        required=required,
        ids=spec.ids,
    )
    if required or isinstance(form, Channels):
        return _held(made, tokenizer, False, reasoning_end)
    known = vocabulary(tokenizer)
    return Held(partial(ArmedConstraint, made, known, opening[:1], inclusive=True, needed=False), None, made.warnings)


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
