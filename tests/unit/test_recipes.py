"""Recipes against recorded choices of llama.cpp (tests/golden/make_recipes.py), and what is pyllm's own about them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm.errors import FormatError
from pyllm.gguf.types import by_name
from pyllm.quant.recipes import ALIASES, RECIPES, RecipeOptions, choose, recipe_named

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "recipes.json").read_text())
MODELS: dict[str, Any] = GOLDEN["models"]
BY_NUMBER = {recipe.file_type: recipe for recipe in RECIPES.values()}


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    format: str = "F16"

    @classmethod
    def of(cls, name: str, shape: list[int]) -> Tensor:
        return cls(name, tuple(shape), "F32" if len(shape) == 1 else "F16")


def tensors(model: dict[str, Any]) -> list[Tensor]:
    found, layer = [], 0
    for count, group in model["tensors"]:
        for _ in range(count):
            found += [Tensor.of(name.format(layer), shape) for name, shape in group]
            layer += "{}" in group[0][0]
    return found


def unpacked(text: str) -> list[str]:
    """Formats by letters: "2*AB 1*C" is A, B, A, B, C."""
    runs = [run.split("*") for run in text.split()]
    return [GOLDEN["formats"][letter] for count, letters in runs for letter in letters * int(count)]


def compare(model: dict[str, Any], number: int, packed: str | None, options: RecipeOptions) -> None:
    """Our choices against llama.cpp's; None: it found no format that fits."""
    chosen = choose(BY_NUMBER[number], model["metadata"], tensors(model), options)
    for tensor, choice in zip(tensors(model), chosen, strict=True):
        assert tensor.shape[-1] % by_name(choice.format).block_size == 0
    if packed is not None:
        pairs = zip(chosen, unpacked(packed), strict=True)
        wrong = [f"{c.name}: {c.format}, not {expected}" for c, expected in pairs if c.format != expected]
        assert not wrong, f"{BY_NUMBER[number].name}: {len(wrong)} differ: {wrong[:5]}"


@pytest.mark.parametrize("title", MODELS)
def test_choices_are_those_of_llama_cpp(title: str) -> None:
    model = MODELS[title]
    assert {int(n) for n in model["file_types"]} == set(BY_NUMBER)
    for number, (without, *rest) in model["file_types"].items():
        compare(model, int(number), without, RecipeOptions())
        compare(model, int(number), rest[0] if rest else without, RecipeOptions(has_imatrix=True))


@pytest.mark.parametrize("title", [title for title, model in MODELS.items() if model["options"]])
def test_options_change_choices_as_in_llama_cpp(title: str) -> None:
    for number, options, packed in MODELS[title]["options"]:
        compare(MODELS[title], number, packed, RecipeOptions(**options))


LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}
EIGHT_B = [
    Tensor("token_embd.weight", (128256, 4096)),
    Tensor("output.weight", (128256, 4096)),
    *(
        Tensor(f"blk.{i}.{name}.weight", shape)
        for i in range(32)
        for name, shape in {
            "attn_norm": (4096,),
            "attn_q": (4096, 4096),
            "attn_k": (1024, 4096),
            "attn_v": (1024, 4096),
            "attn_output": (4096, 4096),
            "ffn_gate": (14336, 4096),
            "ffn_up": (14336, 4096),
            "ffn_down": (4096, 14336),
        }.items()
    ),
]


@pytest.mark.parametrize("name", RECIPES)
def test_bits_are_those_of_llama_3_8b(name: str) -> None:
    n_weights = sum(math.prod(t.shape) for t in EIGHT_B)
    chosen = choose(RECIPES[name], LLAMA, EIGHT_B)
    sizes = [by_name(c.format).n_bytes(math.prod(t.shape)) for t, c in zip(EIGHT_B, chosen, strict=True)]
    assert 8 * sum(sizes) / n_weights == pytest.approx(RECIPES[name].bits, abs=0.06)


def test_what_does_not_fit_is_reported() -> None:
    narrow = [Tensor("blk.0.ffn_up.weight", (8, 576)), Tensor("blk.0.attn_q.weight", (8, 100))]
    wide = Tensor("blk.1.ffn_up.weight", (8, 512))
    first, second, third = choose(RECIPES["Q4_K_M"], LLAMA, [*narrow, wide])
    assert (first.format, first.reason) == ("Q5_0", "rows of 576 are not whole blocks of 256: Q4_K → Q5_0")
    assert (second.format, second.reason) == ("F16", "rows of 100 are not whole blocks of 256: Q4_K → F16")
    assert (third.format, third.reason) == ("Q4_K", "")


def test_one_bit_has_a_stand_in_where_llama_cpp_has_none() -> None:
    (choice,) = choose(RECIPES["Q1_0"], LLAMA, [Tensor("blk.0.ffn_up.weight", (8, 576))])
    assert choice.format == "Q4_0"


def test_overrides_hold_in_unquantized_recipes_too() -> None:
    options = RecipeOptions(tensor_types=[("attn_q", "Q8_0")])
    chosen = choose(RECIPES["F16"], LLAMA, [Tensor("blk.0.attn_q.weight", (8, 256)), EIGHT_B[0]], options)
    assert [c.format for c in chosen] == ["Q8_0", "F16"]


def test_asking_for_a_format_that_does_not_fit_is_reported() -> None:
    options = RecipeOptions(output_format="q4_k")
    (choice,) = choose(RECIPES["Q8_0"], LLAMA, [Tensor("output.weight", (8, 576))], options)
    assert choice.format == "Q5_0"
    assert choice.reason


def test_order_of_the_file_does_not_matter() -> None:
    chosen = choose(RECIPES["Q4_K_M"], LLAMA, EIGHT_B)
    again = choose(RECIPES["Q4_K_M"], LLAMA, EIGHT_B[::-1])
    assert again[::-1] == chosen


def test_what_needs_an_importance_matrix_says_so() -> None:
    def needing(name: str) -> set[str]:
        chosen = choose(RECIPES[name], LLAMA, EIGHT_B)
        return {c.name.split(".")[-2] for c in chosen if c.needs_importance}

    assert needing("Q4_K_M") == needing("Q2_K") == needing("IQ3_S") == set()
    assert needing("IQ2_XXS") == {"attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
    assert "ffn_up" in needing("Q2_K_S")


def test_names() -> None:
    assert recipe_named("q4_k_m") is RECIPES["Q4_K_M"]
    assert all(recipe_named(alias) is RECIPES[name] for alias, name in ALIASES.items())
    assert len(BY_NUMBER) == len(RECIPES)
    with pytest.raises(FormatError, match="there are F32, F16"):
        recipe_named("Q4_K_XL")


@pytest.mark.parametrize(
    "options",
    [
        RecipeOptions(tensor_types=[("attn", "Q4_K_M")]),
        RecipeOptions(tensor_types=[("(", "Q4_K")]),
        RecipeOptions(output_format="Q4"),
        RecipeOptions(embedding_format="Q4_K_M"),
    ],
)
def test_what_is_no_format_or_pattern_is_refused(options: RecipeOptions) -> None:
    with pytest.raises(FormatError):
        choose(RECIPES["Q4_K_M"], LLAMA, EIGHT_B, options)


def test_hostile_metadata_does_no_harm() -> None:
    for value in (None, "x", [], np.array([]), -1, 0, 1e9):
        metadata = {"general.architecture": "llama", "llama.attention.head_count_kv": value, "llama.block_count": value}
        assert choose(RECIPES["Q4_K_M"], metadata, EIGHT_B)
