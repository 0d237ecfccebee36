"""Application of a recipe to a model: the format of each tensor."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from pyllm.arguments import settle
from pyllm.errors import FormatError
from pyllm.gguf.types import by_name
from pyllm.quant.recipes.conditions import ModelShape, Place
from pyllm.quant.recipes.roles import EMBEDDINGS, OUTPUT, Role, is_quantized, layer_of, role_of
from pyllm.quant.recipes.table import ALIASES, RECIPES, Recipe
from pyllm.records import dataclass

_SMALLER_BLOCKS = {
    "Q4_0": ("Q2_K", "Q3_K", "TQ1_0", "TQ2_0", "Q2_0", "Q1_0", "NVFP4"),
    "IQ4_NL": ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"),
    "Q5_0": ("Q4_K",),
    "Q5_1": ("Q5_K",),
    "Q8_0": ("Q6_K",),
}
_FALLBACKS = {wanted: instead for instead, many in _SMALLER_BLOCKS.items() for wanted in many}
_NEEDS_IMPORTANCE = frozenset(("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"))
_FEED_FORWARD = (Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN)


class Tensor(Protocol):
    """Facts of a tensor for recipes (`TensorInfo`, `TensorSpec` and `SourceTensor` have them)."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def format(self) -> str: ...


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """Overrides of a recipe. Formats are ggml's names, in any case."""

    tensor_types: Sequence[tuple[str, str]] = ()
    """(regular expression, format): tensors whose names contain a match; the first matching pair counts."""
    output_format: str | None = None
    """Format of the output matrix, and of tied token embeddings."""
    embedding_format: str | None = None
    """Format of token embeddings; precedes `output_format`."""
    pure: bool = False
    """Every matrix takes the recipe's base format."""
    leave_output: bool = False
    """The output matrix is not quantized."""
    has_imatrix: bool = False
    """Whether there is an importance matrix, which some recipes depend on."""

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True)
class Choice:
    """The format of a tensor."""

    name: str
    format: str
    reason: str = ""
    """Why the recipe's or user's format was not used: rows are not whole blocks of it."""
    needs_importance: bool = False
    """Whether the format is useless without importance."""


def recipe_named(name: str) -> Recipe:
    """The recipe of this name or alias, in any case. Raises FormatError if there is none."""
    upper = name.upper()
    try:
        return RECIPES[ALIASES.get(upper, upper)]
    except KeyError:
        close = difflib.get_close_matches(upper, RECIPES, n=3)
        hint = f"did you mean {' or '.join(close)}; " if close else ""
        raise FormatError(f"{name!r} is not a recipe; {hint}there are {', '.join(RECIPES)}") from None


def choose(
    recipe: Recipe, metadata: Mapping[str, Any], tensors: Iterable[Tensor], options: RecipeOptions | None = None
) -> list[Choice]:
    """The format of each tensor, in the order of `tensors`; tensors that are not quantized keep theirs.

    Overrides precede the recipe, formats of output and embeddings precede overrides. Raises FormatError for an unknown
    format, an invalid pattern, and a pattern that matches no quantized tensor.
    """
    tensors = list(tensors)
    chooser = _Chooser(recipe, ModelShape.of(metadata), options or RecipeOptions(), tensors)
    # llama.cpp counts tensors in this order, whatever that of the file is
    order = sorted(range(len(tensors)), key=lambda i: _layer_then_name(tensors[i].name))
    chosen = {i: chooser.choice(tensors[i]) for i in order}
    return [chosen[i] for i in range(len(tensors))]


def asked_for(tensors: Iterable[Tensor], options: RecipeOptions) -> dict[str, Choice]:
    """Formats that the options name for tensors, by name; `pure` is ignored."""
    tensors = list(tensors)
    plain = replace(options, pure=False)
    chooser = _Chooser(RECIPES["F16"], ModelShape.of({}), plain, tensors)
    return {t.name: choice for t in tensors if (choice := chooser.by_wish(t)) is not None}


def fitting(format: str, columns: int, instead: str | None = None) -> str:
    """`format`, or its substitute where rows of `columns` weights are not whole blocks; finally F16.

    `instead` replaces the usual substitute.
    """
    for candidate in (format, instead or _FALLBACKS.get(format, "F16")):
        if columns % by_name(candidate).block_size == 0:
            return candidate
    return "F16"


class _Chooser:
    """Chooses formats; tensors must come layer by layer, since rules depend on how many of a kind came before."""

    def __init__(self, recipe: Recipe, model: ModelShape, options: RecipeOptions, tensors: Sequence[Tensor]) -> None:
        names = [t.name for t in tensors]
        self._recipe = recipe
        self._model = model
        self._options = options
        free = [t.name for t in tensors if is_quantized(t.name, t.shape)]
        self._overrides = [(_pattern(text, free), _format(format)) for text, format in options.tensor_types]
        self._output = _format(options.output_format) if options.output_format else None
        self._embedding = _format(options.embedding_format) if options.embedding_format else None
        self._is_tied = OUTPUT not in names
        self._n_values = sum(role_of(name) is Role.ATTN_V for name in names)
        self._seen: Counter[Role] = Counter()

    def choice(self, tensor: Tensor) -> Choice:
        if not is_quantized(tensor.name, tensor.shape) or (self._options.leave_output and tensor.name == OUTPUT):
            return Choice(tensor.name, tensor.format)
        by_wish = self.by_wish(tensor)
        if by_wish is not None:
            return by_wish
        instead = "Q8_0" if self._role(tensor.name) is Role.OUTPUT else None
        return self._fitted(tensor, self._by_rules(tensor), instead)

    def by_wish(self, tensor: Tensor) -> Choice | None:
        """The format that the options name for a tensor, None: by the recipe."""
        if not is_quantized(tensor.name, tensor.shape) or (self._options.leave_output and tensor.name == OUTPUT):
            return None
        format = self._asked_for(tensor.name)
        return None if format is None else self._fitted(tensor, format)

    def _fitted(self, tensor: Tensor, wanted: str, instead: str | None = None) -> Choice:
        columns = tensor.shape[-1]
        format, reason = fitting(wanted, columns, instead), ""
        if format != wanted:
            block = by_name(wanted).block_size
            reason = f"rows of {columns} are not whole blocks of {block}: {wanted} → {format}"
        return Choice(tensor.name, format, reason, self._needs_importance(tensor.name, format))

    def _asked_for(self, name: str) -> str | None:
        role = role_of(name)
        override = next((format for pattern, format in self._overrides if pattern.search(name)), None)
        # a table of embeddings for every layer is large: an override may name it beside the embeddings proper
        if role is Role.EMBEDDING and self._embedding and not (override and name != EMBEDDINGS[0]):
            return self._embedding
        if role is Role.OUTPUT and self._output:
            return self._output
        if override is None and self._options.pure:
            return self._recipe.base
        if override is None and self._role(name) is Role.OUTPUT:
            return self._output
        return override

    def _by_rules(self, tensor: Tensor) -> str:
        role = self._role(tensor.name)
        index, count = self._seen[role], self._n_values if role is Role.ATTN_V else self._model.n_layers
        self._seen[role] += 1
        if role in _FEED_FORWARD and self._model.n_experts > 1 and not self._recipe.in_order:
            layer = layer_of(tensor.name)
            index = index if layer is None else layer
        is_stacked = len(tensor.shape) > 2 and tensor.shape[-3] > 1
        place = Place(index, count, self._model, self._options.has_imatrix, is_stacked)
        rules = self._recipe.rules.get(role, ())
        return next((format for condition, format in rules if condition(place)), self._recipe.base)

    def _role(self, name: str) -> Role:
        """The role for rules; tied embeddings have the output's."""
        role = role_of(name)
        return Role.OUTPUT if self._is_tied and role is Role.EMBEDDING else role

    def _needs_importance(self, name: str, format: str) -> bool:
        if role_of(name) in (Role.EMBEDDING, Role.OUTPUT):
            return False
        return format in _NEEDS_IMPORTANCE or (format == "Q2_K" and self._recipe.name == "Q2_K_S")


def _layer_then_name(name: str) -> tuple[int, str]:
    layer = layer_of(name)
    return -1 if layer is None else layer, name


def _format(name: str) -> str:
    return by_name(name.upper()).name


def _pattern(text: str, names: Iterable[str]) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise FormatError(f"{text!r} is not a regular expression: {error}") from None
    if not any(pattern.search(name) for name in names):
        raise FormatError(f"{text!r} fits no matrix of this model; `pyllm show --tensors` lists their names")
    return pattern
