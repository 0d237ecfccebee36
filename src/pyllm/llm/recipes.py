"""What a named model adds to its file, applied: settings below those of a call, messages before a call's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.chat import ChatTemplate
    from pyllm.hub import Named
    from pyllm.hub.modelfile import Modelfile
    from pyllm.tokenizers import Tokenizer

_ALWAYS = ("system", "developer")


def recipe_of(model: str | os.PathLike[str]) -> Recipe | None:
    """The recipe of a named model's name; None for all other models. Raises HubError where its file has changed."""
    if not isinstance(model, str) or model.lower().endswith(".gguf"):
        return None
    from pyllm import hub

    named = hub.find_named(model)
    if named is None:
        return None
    named.check()
    return Recipe(named)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named model, as calls need it."""

    named: Named

    def loading(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `pyllm.load`: those that are given, above its own; adapters beside its own."""
        from pyllm.hub import parameters

        own = parameters.loading_of(self.named.parameters)
        found = {**own, **{name: value for name, value in given.items() if value is not None or name not in own}}
        if self.named.adapters:
            found["adapters"] = [*(file.path for file in self.named.adapters), *(given.get("adapters") or ())]
        return found

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a call: those that are given, above its own."""
        from pyllm.hub import parameters

        own = parameters.options_of(self.named.parameters)
        if given.get("sampling") is not None:
            own = {name: value for name, value in own.items() if name in ("max_tokens", "stop", "n_keep")}
        return {**own, **{name: value for name, value in given.items() if value is not None or name not in own}}

    def messages(self, given: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """A chat's messages after its own: the system message is its own where the chat has none."""
        first = next((i for i, message in enumerate(given) if message.get("role") not in _ALWAYS), len(given))
        system = list(given[:first])
        if not system and self.named.system:
            system = [{"role": "system", "content": self.named.system}]
        own = [{"role": role, "content": content} for role, content in self.named.messages]
        return [*system, *own, *given[first:]]

    def template(self, tokenizer: Tokenizer) -> ChatTemplate | None:
        """Its chat template; None where the file's own counts. Raises TemplateError where it does not parse."""
        return template_of(self.named.template, tokenizer) if self.named.template.strip() else None


def check(modelfile: Modelfile) -> None:
    """Raise where a Modelfile's template does not parse (TemplateError) or a parameter is out of bounds
    (RequestError)."""
    from pyllm.config import GenerateSettings, LoadSettings
    from pyllm.hub import parameters
    from pyllm.sampling.general import all_settings

    options = parameters.options_of(modelfile.parameters)
    GenerateSettings.of("PARAMETER", None, options)
    LoadSettings.of("PARAMETER", parameters.loading_of(modelfile.parameters))
    for setting in all_settings():
        setting.check(options.get(setting.name))
    if modelfile.template.strip():
        template_of(modelfile.template)


def template_of(text: str, tokenizer: Tokenizer | None = None) -> ChatTemplate:
    """A chat template of a Modelfile or a request: jinja2, or Go's as far as it is known. Raises TemplateError."""
    from pyllm.chat import ChatTemplate, go_template

    return ChatTemplate({"default": go_template.as_jinja(text) if go_template.is_go(text) else text}, tokenizer)
